// SPDX-License-Identifier: Apache-2.0
// The best next tokens, without a pass that writes all probabilities.

#pragma once

#include "vectors.h"

// The `count` largest of `values`, first the largest, as log-probabilities if `is_normalised`; NaN if there is a NaN.
static void best_of(const float *values, int width, int count, int is_normalised, float *best, int64_t *index) {
    int found = 0, whole = width / (8 * LANES) * (8 * LANES);
    for (int from = 0; from < width; from += 8 * LANES) {
        int end = from + 8 * LANES < width ? from + 8 * LANES : width;
        if (found == count && end - from == 8 * LANES) { // mostly nothing here is large enough
            Lanes peak = load(values + from);
            for (int j = 1; j < 8; j++)
                peak = larger(load(values + from + j * LANES), peak);
            if (!(largest(peak) > best[count - 1]))
                continue;
        }
        for (int i = from; i < end; i++) {
            if (found == count && !(values[i] > best[count - 1]))
                continue;
            int at = found < count ? found++ : count - 1;
            for (; at > 0 && values[i] > best[at - 1]; at--) {
                best[at] = best[at - 1];
                index[at] = index[at - 1];
            }
            best[at] = values[i];
            index[at] = i;
        }
    }
    if (!is_normalised) {
        Whole wrong[8] = {};
        int are_wrong = 0;
        for (int from = 0; from < whole; from += 8 * LANES)
            for (int j = 0; j < 8; j++)
                wrong[j] |= load(values + from + j * LANES) != load(values + from + j * LANES);
        for (int j = 0; j < 8; j++)
            for (int i = 0; i < LANES; i++)
                are_wrong |= wrong[j][i];
        for (int i = whole; i < width; i++)
            are_wrong |= values[i] != values[i];
        if (are_wrong)
            best[0] = NAN;
        return;
    }
    Lanes sums[4] = {}; // each waits for its own last addition only
    for (int from = 0; from < whole; from += 4 * LANES)
        for (int j = 0; j < 4; j++)
            sums[j] += exponential(load(values + from + j * LANES) - best[0]);
    float total = sum((sums[0] + sums[1]) + (sums[2] + sums[3]));
    for (int i = whole; i < width; i++)
        total += expf(values[i] - best[0]);
    float log_of_sum = best[0] + logf(total); // no number, if a value is none
    for (int i = 0; i < count; i++)
        best[i] -= log_of_sum;
}

// The `count` best of a sentence among the best `each` of its `live` hypotheses, whose log-probabilities are `totals`.
static void best_of_sentence(int live, int each, const float *totals, const float *best, const int64_t *index,
                             int count, float *scores, int64_t *beams, int64_t *found) {
    int kept = 0;
    for (int beam = 0; beam < live; beam++)
        for (int i = 0; i < each; i++) {
            float score = best[beam * each + i] + (totals ? totals[beam] : 0.0f);
            if (score != score) { // then nothing here is known
                for (int j = 0; j < count; j++)
                    scores[j] = NAN, beams[j] = found[j] = 0;
                return;
            }
            if (kept == count && !(score > scores[count - 1]))
                break; // nor is what follows
            int at = kept < count ? kept++ : count - 1;
            for (; at > 0 && score > scores[at - 1]; at--) {
                scores[at] = scores[at - 1];
                beams[at] = beams[at - 1];
                found[at] = found[at - 1];
            }
            scores[at] = score;
            beams[at] = beam;
            found[at] = index[beam * each + i];
        }
}
