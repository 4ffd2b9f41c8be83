// SPDX-License-Identifier: Apache-2.0
// The best next tokens, without a pass that writes all probabilities.

#pragma once

#include "vectors.h"

#define BLOCKS 128 // of values, at most, that are compared by their largest first

// Put a score among `kept` sorted ones, or in the place of the last of `count`; what belongs to them moves alike.
template <typename... Others>
static inline int place(float score, int *kept, int count, float *scores, Others *...others) {
    int at = *kept < count ? (*kept)++ : count - 1;
    for (; at > 0 && score > scores[at - 1]; at--) {
        scores[at] = scores[at - 1];
        ((others[at] = others[at - 1]), ...);
    }
    scores[at] = score;
    return at;
}

// The `count` largest of `values`, first the largest, as log-probabilities if `is_normalised`; NaN if there is a NaN.
static void best_of(const float *values, int width, int count, int is_normalised, float *best, int64_t *index) {
    int block = (width / BLOCKS + LANES) / LANES * LANES, blocks = 0, found = 0,
        whole = width / (8 * LANES) * (8 * LANES);
    float peaks[BLOCKS], least = -INFINITY;
    for (int from = 0; from < width; from += block) {
        float peak = -INFINITY;
        int end = from + block < width ? from + block : width, i = from;
        if (end - from >= LANES) {
            Lanes lanes = load(values + i);
            for (i += LANES; i + LANES <= end; i += LANES)
                lanes = larger(load(values + i), lanes);
            peak = largest(lanes);
        }
        for (; i < end; i++)
            peak = values[i] > peak ? values[i] : peak;
        peaks[blocks++] = peak;
        if (found < count || peak > best[count - 1])
            place(peak, &found, count, best);
    }
    if (found == count) // so many blocks have such a value
        least = best[count - 1];
    found = 0;
    for (int i = 0; i < blocks; i++)
        for (int j = i * block; peaks[i] >= least && j < (i + 1) * block && j < width; j++)
            if (found < count || values[j] > best[count - 1])
                index[place(values[j], &found, count, best, index)] = j;
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

// What `generation.SupportsTopK` finds: of each sentence the `count` best that may follow, of each hypothesis first
// `each`.
struct Ranking {
    int32_t count, each, beams, num_ends;
    const int64_t *ends;
    const float *totals; // log-probabilities of the hypotheses so far, (sentences, live), or nullptr: the logits decide
    float *best;         // (sentences, live, each)
    int64_t *index;      // (sentences, live, each)
    float *scores;       // (sentences, count)
    int64_t *parents;    // (sentences, count)
    int64_t *found;      // (sentences, count)
};

// The best of a sentence among the best of its `live` hypotheses.
static void best_of_sentence(const Ranking *ranking, int64_t sentence, int live) {
    int kept = 0, each = ranking->each, count = ranking->count;
    const float *totals = ranking->totals ? ranking->totals + sentence * live : nullptr;
    const float *best = ranking->best + sentence * live * each;
    const int64_t *index = ranking->index + sentence * live * each;
    float *scores = ranking->scores + sentence * count;
    int64_t *parents = ranking->parents + sentence * count, *found = ranking->found + sentence * count;
    for (int beam = 0; beam < live; beam++)
        for (int i = 0; i < each; i++) {
            float score = best[beam * each + i] + (totals ? totals[beam] : 0.0f);
            if (score != score) { // then nothing here is known
                for (int j = 0; j < count; j++)
                    scores[j] = NAN, parents[j] = found[j] = 0;
                return;
            }
            if (kept == count && !(score > scores[count - 1]))
                break; // nor is what follows
            int at = place(score, &kept, count, scores, parents, found);
            parents[at] = beam;
            found[at] = index[beam * each + i];
        }
}

// The last of the `beams` best scores of what may follow the hypotheses of a sentence that have been read, and does not
// end. Another hypothesis that has no more itself adds nothing to them: what follows it is at most as probable.
static float least_that_goes_on(const Ranking *ranking, int64_t sentence, int live) {
    int kept = 0, each = ranking->each, beams = ranking->beams;
    float *scores = ranking->scores + sentence * ranking->count; // not needed yet
    for (int64_t beam = sentence * live; beam < (sentence + 1) * live; beam++)
        for (int64_t i = beam * each; i < (beam + 1) * each; i++) {
            float score = ranking->best[i] + ranking->totals[beam];
            bool is_end = false;
            for (int j = 0; j < ranking->num_ends; j++)
                is_end |= ranking->index[i] == ranking->ends[j];
            if (!is_end && (kept < beams || score > scores[beams - 1]))
                place(score, &kept, beams, scores);
        }
    return kept == beams ? scores[beams - 1] : -INFINITY;
}
