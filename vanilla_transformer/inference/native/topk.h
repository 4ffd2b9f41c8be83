// SPDX-License-Identifier: Apache-2.0
// The best next tokens, without a pass that writes the probabilities of all.

#pragma once

#include "vectors.h"

namespace vanilla_transformer {

constexpr int kMaxTopKBlocks = 128; // blocks of logits whose maxima are compared first

// The steps of one call, at most max_steps. The call itself chooses the tokens after each completed step. `TopK` has the
// candidates of the last one, which is not completed.
struct Steps {
    int32_t max_steps, completed;
    int64_t *parents, *tokens; // of the hypotheses after each completed step, (completed, batch_size, num_beams)
    float *beam_scores;        // of the hypotheses after the last completed step, (batch_size, num_beams)
    int64_t *prefixes; // (batch_size, num_beams, 1 + completed): the hypothesis before the call, then the tokens since
};

// The request of `topk_steps`: k tokens for a sentence, and before them k_per_beam for each of its hypotheses.
struct TopK {
    int32_t k, k_per_beam, num_beams, num_eos_tokens;
    const int64_t *eos_token_ids;
    const float *beam_scores; // log-probabilities, (batch_size, alive); nullptr: one hypothesis each, ranked by logits
    float *scores_per_beam;   // (batch_size, alive, k_per_beam)
    int64_t *tokens_per_beam; // (batch_size, alive, k_per_beam)
    float *scores;            // (batch_size, k)
    int64_t *beam_indices;    // (batch_size, k)
    int64_t *tokens;          // (batch_size, k)
    Steps *steps;
};

// Inserts a score into `count` sorted ones, of which at most k stay, and makes room in `others` at the same place.
// Equal scores stay in the order of their insertion. Returns the place.
template <typename... Others>
static inline int insert_sorted(float score, int *count, int k, float *scores, Others *...others) {
    int at = *count < k ? (*count)++ : k - 1;
    for (; at > 0 && score > scores[at - 1]; at--) {
        scores[at] = scores[at - 1];
        ((others[at] = others[at - 1]), ...);
    }
    scores[at] = score;
    return at;
}

// The k largest of `values` in descending order, as log-probabilities if `normalize`. scores[0] is NaN if a value is.
static void blockwise_topk(const float *values, int width, int k, bool normalize, float *scores, int64_t *indices) {
    int block = (width / kMaxTopKBlocks + kLanes) / kLanes * kLanes, blocks = 0, found = 0;
    int vectorized = width / (8 * kLanes) * (8 * kLanes);
    float peaks[kMaxTopKBlocks], threshold = -INFINITY;
    for (int from = 0; from < width; from += block) {
        float peak = -INFINITY;
        int end = from + block < width ? from + block : width, i = from;
        if (end - from >= kLanes) {
            VecF32 maxima = load(values + i);
            for (i += kLanes; i + kLanes <= end; i += kLanes)
                maxima = max(load(values + i), maxima);
            peak = reduce_max(maxima);
        }
        for (; i < end; i++)
            peak = values[i] > peak ? values[i] : peak;
        peaks[blocks++] = peak;
        if (found < k || peak > scores[k - 1])
            insert_sorted(peak, &found, k, scores);
    }
    if (found == k) // k blocks have a value of at least this
        threshold = scores[k - 1];
    found = 0;
    for (int i = 0; i < blocks; i++)
        for (int j = i * block; peaks[i] >= threshold && j < (i + 1) * block && j < width; j++)
            if (found < k || values[j] > scores[k - 1])
                indices[insert_sorted(values[j], &found, k, scores, indices)] = j;
    if (!normalize) {
        VecI32 nan_lanes[8] = {};
        int has_nan = 0;
        for (int from = 0; from < vectorized; from += 8 * kLanes)
            for (int j = 0; j < 8; j++)
                nan_lanes[j] |= load(values + from + j * kLanes) != load(values + from + j * kLanes);
        for (int j = 0; j < 8; j++)
            for (int i = 0; i < kLanes; i++)
                has_nan |= nan_lanes[j][i];
        for (int i = vectorized; i < width; i++)
            has_nan |= values[i] != values[i];
        if (has_nan)
            scores[0] = NAN;
        return;
    }
    VecF32 sums[4] = {}; // a sum waits for the one before it
    for (int from = 0; from < vectorized; from += 4 * kLanes)
        for (int j = 0; j < 4; j++)
            sums[j] += exp_nonpositive(load(values + from + j * kLanes) - scores[0]);
    float total = reduce_sum((sums[0] + sums[1]) + (sums[2] + sums[3]));
    for (int i = vectorized; i < width; i++)
        total += expf(values[i] - scores[0]);
    float log_sum = scores[0] + logf(total); // NaN if a value is
    for (int i = 0; i < k; i++)
        scores[i] -= log_sum;
}

// The k best tokens of a sentence among the k_per_beam best of each hypothesis. All scores are NaN if one of those is.
static void merge_beams(const TopK *topk, int64_t sentence, int alive) {
    int found = 0, per_beam = topk->k_per_beam, k = topk->k;
    const float *beam_scores = topk->beam_scores ? topk->beam_scores + sentence * alive : nullptr;
    const float *scores_per_beam = topk->scores_per_beam + sentence * alive * per_beam;
    const int64_t *tokens_per_beam = topk->tokens_per_beam + sentence * alive * per_beam;
    float *scores = topk->scores + sentence * k;
    int64_t *beam_indices = topk->beam_indices + sentence * k, *tokens = topk->tokens + sentence * k;
    for (int beam = 0; beam < alive; beam++)
        for (int i = 0; i < per_beam; i++) {
            float score = scores_per_beam[beam * per_beam + i] + (beam_scores ? beam_scores[beam] : 0.0f);
            if (score != score) {
                for (int j = 0; j < k; j++)
                    scores[j] = NAN, beam_indices[j] = tokens[j] = 0;
                return;
            }
            if (found == k && !(score > scores[k - 1]))
                break; // the rest of this hypothesis scores no higher
            int at = insert_sorted(score, &found, k, scores, beam_indices, tokens);
            beam_indices[at] = beam;
            tokens[at] = tokens_per_beam[beam * per_beam + i];
        }
}

// Makes the best num_beams candidates the hypotheses of the next step, unless one is EOS, or a sentence has no finite
// score, or there is no step left. Returns whether it did.
static bool begin_next_step(TopK *topk, int64_t batch_size) {
    Steps *steps = topk->steps;
    int64_t beams = topk->num_beams, first = steps->completed * batch_size * beams;
    if (steps->completed + 1 >= steps->max_steps)
        return false;
    for (int64_t i = 0; i < batch_size; i++) {
        bool is_last = !std::isfinite(topk->scores[i * topk->k]);
        for (int64_t j = i * topk->k; j < i * topk->k + beams; j++)
            for (int e = 0; e < topk->num_eos_tokens; e++)
                is_last |= topk->tokens[j] == topk->eos_token_ids[e];
        if (is_last)
            return false;
        memcpy(steps->parents + first + i * beams, topk->beam_indices + i * topk->k, beams * sizeof(int64_t));
        memcpy(steps->tokens + first + i * beams, topk->tokens + i * topk->k, beams * sizeof(int64_t));
        memcpy(steps->beam_scores + i * beams, topk->scores + i * topk->k, beams * sizeof(float));
    }
    if (topk->beam_scores)
        topk->beam_scores = steps->beam_scores;
    steps->completed++;
    return true;
}

// Writes `prefixes`, from the last completed step back to the first.
static void backtrack(const TopK *topk, int64_t batch_size) {
    const Steps *steps = topk->steps;
    int64_t beams = topk->num_beams, *write = steps->prefixes;
    for (int64_t hypothesis = 0; hypothesis < batch_size * beams; hypothesis++, write += 1 + steps->completed) {
        int64_t beam = hypothesis % beams;
        for (int64_t t = steps->completed - 1; t >= 0; t--) {
            int64_t at = (t * batch_size + hypothesis / beams) * beams + beam;
            write[1 + t] = steps->tokens[at], beam = steps->parents[at];
        }
        write[0] = beam;
    }
}

// The num_beams-th best score of a non-EOS token after the hypotheses of a sentence that have been read, or -inf. A
// hypothesis with a lower score of its own need not be read: each token lowers it further.
static float deferred_threshold(const TopK *topk, int64_t sentence, int alive) {
    int found = 0, per_beam = topk->k_per_beam, beams = topk->num_beams;
    float *scores = topk->scores + sentence * topk->k; // free until `merge_beams`
    for (int64_t beam = sentence * alive; beam < (sentence + 1) * alive; beam++)
        for (int64_t i = beam * per_beam; i < (beam + 1) * per_beam; i++) {
            float score = topk->scores_per_beam[i] + topk->beam_scores[beam];
            bool is_eos = false;
            for (int j = 0; j < topk->num_eos_tokens; j++)
                is_eos |= topk->tokens_per_beam[i] == topk->eos_token_ids[j];
            if (!is_eos && (found < beams || score > scores[beams - 1]))
                insert_sorted(score, &found, beams, scores);
        }
    return found == beams ? scores[beams - 1] : -INFINITY;
}

} // namespace vanilla_transformer
