// SPDX-License-Identifier: Apache-2.0
// Figure 1 of the paper: attention, "Add & Norm", and the layers made of them.

#pragma once

#include "linear.h"

namespace vanilla_transformer {

constexpr int kCacheBlock = 32;       // target tokens in a block of the cache
constexpr int kMaxQueriesPerTile = 4; // hypotheses that attend to their source together

struct Norm {
    const float *weight, *bias;
};

struct Layer {
    Linear query_key_value, output;                    // self-attention
    Linear cross_query, cross_key_value, cross_output; // a decoder's
    Linear linear_1, linear_2;
    Norm norms[3];
};

// An encoder's or a decoder's layers.
struct Stack {
    const Layer *layers;
    int32_t num_layers, d_model, d_ff, num_heads, d_k, d_v, is_pre_norm, is_decoder;
    float epsilon;
    Norm final_norm, embedding_norm; // weight nullptr: none
};

// The hypotheses that read a token together. A group holds up to kMaxQueriesPerTile of one sentence.
struct Rows {
    int32_t count, num_groups, alive; // rows; groups; hypotheses of each sentence
    int32_t *hypothesis;              // of each row: sentence * alive + beam
    int32_t *group_start;             // first row of each group, (num_groups + 1)
};

// Sentences that are being decoded. A sentence's memory stays in its slot, and a cache entry where it was written:
// reordering and selecting change `slots` and `ancestors` alone.
struct DecoderState {
    int32_t batch_size, num_beams, length, source_length, num_slots, max_length;
    const int64_t *slots;       // of each sentence, (batch_size)
    float *const *cache_blocks; // each (num_layers, num_slots, num_heads, kCacheBlock, num_beams, d_k + d_v)
    int32_t *ancestors;         // whose entry a hypothesis continues, (num_slots, num_beams, max_length)
    const float *source; // (num_layers, num_slots, num_heads) of keys (d_k, padded_length), values (source_length, d_v)
    const float *source_mask; // added to scores, (num_slots, source_length), or nullptr
    float *attention;         // of the last layer, (batch_size * alive, num_heads, source_length), or nullptr
};

static inline void prefetch_lines(const float *from, int width) {
    for (int i = 0; i < width; i += int(kCacheLine / sizeof(float)))
        __builtin_prefetch(from + i, 0, 2);
}

static inline float dot(const float *a, const float *b, int width) {
    VecF32 sums[2] = {};
    int i = 0;
    for (; i + 2 * kLanes <= width; i += 2 * kLanes) {
        sums[0] += load(a + i) * load(b + i);
        sums[1] += load(a + i + kLanes) * load(b + i + kLanes);
    }
    float total = reduce_sum(sums[0] + sums[1]);
    for (; i < width; i++)
        total += a[i] * b[i];
    return total;
}

// The softmax of `count` scores, whose largest is `peak`, in place; 0 behind them to the end of a vector.
static inline void normalize_scores(float *scores, int count, float peak) {
    VecF32 sums = {};
    for (int t = 0; t < count; t += kLanes) {
        VecF32 weights = exp_nonpositive(load(scores + t) - peak);
        weights = lane_numbers() + t < count ? weights : VecF32{};
        store(scores + t, weights);
        sums += weights;
    }
    VecF32 total = VecF32{} + reduce_sum(sums);
    for (int t = 0; t < count; t += kLanes)
        store(scores + t, load(scores + t) / total);
}

// The mean of values by `weights`, for `vectors` vectors of outputs.
template <int vectors> static inline void average_entries(const float *const *entry, int entries, int value,
                                                          int64_t next, const float *weights, float *context) {
    VecF32 sums[vectors] = {};
    for (int t = 0; t < entries; t++) {
        prefetch_lines(entry[t] + value + next, vectors * kLanes);
        for (int j = 0; j < vectors; j++)
            sums[j] += load(entry[t] + value + j * kLanes) * weights[t];
    }
    for (int j = 0; j < vectors; j++)
        store(context + j * kLanes, sums[j]);
}

// Equation 1 for one query and head: its keys are at entry[t] + key, its values at entry[t] + value. `mask` is added to
// the scores, or nullptr. `scores` has room for whole vectors, and holds the attention weights afterwards. The next
// head's keys and values, `next` floats behind, are prefetched.
static void attend(const float *query, const float *const *entry, int entries, int key, int value, int d_k, int d_v,
                   const float *mask, int64_t next, float *scores, float *context) {
    float peak = -INFINITY;
    for (int t = 0; t < entries; t++) {
        prefetch_lines(entry[t] + key + next, d_k);
        scores[t] = dot(query, entry[t] + key, d_k) + (mask ? mask[t] : 0.0f);
        peak = scores[t] > peak || scores[t] != scores[t] ? scores[t] : peak;
    }
    normalize_scores(scores, entries, peak);
    int i = 0;
    for (; i + 4 * kLanes <= d_v; i += 4 * kLanes)
        average_entries<4>(entry, entries, value + i, next, scores, context + i);
    for (; i + 2 * kLanes <= d_v; i += 2 * kLanes)
        average_entries<2>(entry, entries, value + i, next, scores, context + i);
    for (; i + kLanes <= d_v; i += kLanes)
        average_entries<1>(entry, entries, value + i, next, scores, context + i);
    for (; i < d_v; i++) {
        float partial = 0;
        for (int t = 0; t < entries; t++)
            partial += entry[t][value + i] * scores[t];
        context[i] = partial;
    }
}

static inline int padded_length(int length) { return (length + kLanes - 1) / kLanes * kLanes; }

// Scores of `queries` queries for `vectors` vectors of positions.
template <int queries, int vectors> static inline void score_tile(const float *query, int64_t stride, const float *keys,
                                                                  int width, int d_k, int64_t next, float *scores) {
    VecF32 sums[queries][vectors] = {};
    for (int k = 0; k < d_k; k++) {
        prefetch_lines(keys + int64_t(k) * width + next, vectors * kLanes);
        for (int q = 0; q < queries; q++)
            for (int v = 0; v < vectors; v++)
                sums[q][v] += load(keys + int64_t(k) * width + v * kLanes) * query[q * stride + k];
    }
    for (int q = 0; q < queries; q++)
        for (int v = 0; v < vectors; v++)
            store(scores + int64_t(q) * width + v * kLanes, sums[q][v]);
}

// The mean of `values` by `scores`, for `vectors` vectors of outputs.
template <int queries, int vectors> static inline void average_tile(const float *values, int64_t stride, int length,
                                                                    int d_v, int64_t next, const float *scores,
                                                                    float *context) {
    int64_t width = padded_length(length);
    VecF32 sums[queries][vectors] = {};
    for (int t = 0; t < length; t++) {
        prefetch_lines(values + int64_t(t) * d_v + next, vectors * kLanes);
        for (int q = 0; q < queries; q++)
            for (int v = 0; v < vectors; v++)
                sums[q][v] += load(values + int64_t(t) * d_v + v * kLanes) * scores[q * width + t];
    }
    for (int q = 0; q < queries; q++)
        for (int v = 0; v < vectors; v++)
            store(context + q * stride + v * kLanes, sums[q][v]);
}

// The softmax of `scores`, (queries, padded_length), in place, and the mean of `values` by these weights. The values of
// the next head are `next` floats behind.
template <int queries> static void average_values(const float *values, int64_t stride, int length, int d_v,
                                                  const float *mask, int64_t next, float *scores, float *context) {
    int width = padded_length(length);
    for (int q = 0; q < queries; q++) {
        float *row = scores + int64_t(q) * width;
        for (int t = 0; mask && t < length; t++)
            row[t] += mask[t];
        for (int t = length; t < width; t++)
            row[t] = -INFINITY;
        VecF32 peaks = load(row);
        for (int t = kLanes; t < width; t += kLanes)
            peaks = max(load(row + t), peaks);
        normalize_scores(row, length, reduce_max(peaks));
    }
    int i = 0;
    for (; i + 2 * kLanes <= d_v; i += 2 * kLanes)
        average_tile<queries, 2>(values + i, stride, length, d_v, next, scores, context + i);
    for (; i + kLanes <= d_v; i += kLanes)
        average_tile<queries, 1>(values + i, stride, length, d_v, next, scores, context + i);
    for (; i < d_v; i++)
        for (int q = 0; q < queries; q++) {
            float partial = 0;
            for (int t = 0; t < length; t++)
                partial += values[int64_t(t) * d_v + i] * scores[q * int64_t(width) + t];
            context[q * stride + i] = partial;
        }
}

// Equation 1 for some hypotheses of one sentence, which share its source. `scores` is (queries, padded_length), and
// holds the attention weights afterwards.
template <int queries> static void attend_tile(const float *query, int64_t stride, const float *source, int length,
                                               int d_k, int d_v, const float *mask, float *scores, float *context) {
    int width = padded_length(length), done = 0;
    int64_t next = int64_t(width) * d_k + int64_t(length) * d_v; // where the next head's source begins
    for (; done + 2 * kLanes <= width; done += 2 * kLanes)
        score_tile<queries, 2>(query, stride, source + done, width, d_k, next, scores + done);
    for (; done < width; done += kLanes)
        score_tile<queries, 1>(query, stride, source + done, width, d_k, next, scores + done);
    average_values<queries>(source + int64_t(width) * d_k, stride, length, d_v, mask, next, scores, context);
}

static void attend_tile(int queries, const float *query, int64_t stride, const float *source, int length, int d_k,
                        int d_v, const float *mask, float *scores, float *context) {
    switch (queries) {
    case 1: return attend_tile<1>(query, stride, source, length, d_k, d_v, mask, scores, context);
    case 2: return attend_tile<2>(query, stride, source, length, d_k, d_v, mask, scores, context);
    case 3: return attend_tile<3>(query, stride, source, length, d_k, d_v, mask, scores, context);
    case 4: return attend_tile<4>(query, stride, source, length, d_k, d_v, mask, scores, context);
    }
}

// `y` may be `x`.
static void layer_norm(const Norm *norm, const float *x, float *y, int width, float epsilon) {
    float mean = 0, variance = 0;
    int i, vectorized = width / kLanes * kLanes;
    VecF32 sums = {};
    for (i = 0; i < vectorized; i += kLanes)
        sums += load(x + i);
    for (mean = reduce_sum(sums); i < width; i++)
        mean += x[i];
    mean /= width;
    sums = VecF32{};
    for (i = 0; i < vectorized; i += kLanes)
        sums += (load(x + i) - mean) * (load(x + i) - mean);
    for (variance = reduce_sum(sums); i < width; i++)
        variance += (x[i] - mean) * (x[i] - mean);
    float factor = 1.0f / sqrtf(variance / width + epsilon);
    for (i = 0; i < vectorized; i += kLanes)
        store(y + i, (load(x + i) - mean) * factor * load(norm->weight + i) + load(norm->bias + i));
    for (; i < width; i++)
        y[i] = (x[i] - mean) * factor * norm->weight[i] + norm->bias[i];
}

// The rows that this thread adds and normalizes: its share of them; of few rows all, in its own copy without a barrier.
struct ThreadRows {
    float *states, *normed;
    int first, end, is_shared;
};

// Every thread.
static ThreadRows thread_rows(const Scratch *scratch, int rows) {
    int threads = omp_get_num_threads(), thread = omp_get_thread_num();
    if (rows > kMaxReplicatedRows)
        return {scratch->states, scratch->normed, rows * thread / threads, rows * (thread + 1) / threads, 1};
    int64_t copy = int64_t(thread) * kMaxReplicatedRows * scratch->stride;
    return {scratch->states + copy, scratch->normed + copy, 0, rows, 0};
}

// Every thread.
static void barrier_if_shared(const ThreadRows *own) {
    if (own->is_shared) {
#pragma omp barrier
    }
}

// Every thread: "Add & Norm" around `update`, which may be nullptr, then the input of the next sub-layer. `done` is the
// norm after this sub-layer, `next` the norm before the next one.
static const float *add_and_norm(const Stack *stack, const Scratch *scratch, const ThreadRows *own, const float *update,
                                 const Norm *done, const Norm *next) {
    int64_t stride = scratch->stride;
    for (int row = own->first; row < own->end; row++) {
        float *states = own->states + row * stride;
        if (update)
            for (int i = 0; i < stack->d_model; i++)
                states[i] += update[row * stride + i];
        if (update && !stack->is_pre_norm)
            layer_norm(done, states, states, stack->d_model, stack->epsilon);
        const Norm *before = stack->is_pre_norm ? next : nullptr;
        if (before)
            layer_norm(before, states, own->normed + row * stride, stack->d_model, stack->epsilon);
    }
    barrier_if_shared(own);
    return stack->is_pre_norm ? own->normed : own->states;
}

// Every thread: a decoder's self-attention, which also writes the new token's keys and values into the cache.
static void decoder_self_attention(const Stack *stack, const Scratch *scratch, const DecoderState *state,
                                   const Rows *rows, int layer, float *scores, const float **entry) {
    int threads = omp_get_num_threads(), thread = omp_get_thread_num(), heads = stack->num_heads;
    int d_k = stack->d_k, d_v = stack->d_v, now = state->length, beams = state->num_beams;
    int64_t tasks = int64_t(rows->num_groups) * heads;
    for (int64_t task = tasks * thread / threads; task < tasks * (thread + 1) / threads; task++) {
        int group = task / heads, head = task % heads;
        // One thread reads a whole group, whose rows have ancestors in common.
        for (int row = rows->group_start[group]; row < rows->group_start[group + 1]; row++) {
            int beam = rows->hypothesis[row] % rows->alive;
            int64_t slot = state->slots[rows->hypothesis[row] / rows->alive];
            const int32_t *ancestors = state->ancestors + (slot * beams + beam) * state->max_length;
            int64_t first = ((layer * int64_t(state->num_slots) + slot) * heads + head) * kCacheBlock * beams;
            auto cache_entry = [&](int t, int of) { // keys and values of one target token
                int64_t index = first + t % kCacheBlock * beams + of;
                return state->cache_blocks[t / kCacheBlock] + index * (d_k + d_v);
            };
            for (int t = 0; t < now; t++)
                entry[t] = cache_entry(t, ancestors[t]);
            const float *projected = scratch->wide + row * int64_t(scratch->stride);
            float *own = cache_entry(now, beam);
            memcpy(own, projected + heads * d_k + head * d_k, d_k * sizeof(float));
            memcpy(own + d_k, projected + 2 * heads * d_k + head * d_v, d_v * sizeof(float));
            entry[now] = own;
            attend(projected + head * d_k, entry, now + 1, 0, d_k, d_k, d_v, nullptr,
                   int64_t(kCacheBlock) * beams * (d_k + d_v), scores,
                   scratch->context + row * int64_t(scratch->stride) + head * d_v);
        }
    }
}

// Every thread: a decoder's attention to the source, which also copies the weights for `state->attention`.
static void cross_attention(const Stack *stack, const Scratch *scratch, const DecoderState *state, const Rows *rows,
                            int layer, float *scores) {
    int threads = omp_get_num_threads(), thread = omp_get_thread_num(), heads = stack->num_heads;
    int d_k = stack->d_k, d_v = stack->d_v, length = state->source_length, width = padded_length(length);
    int64_t tasks = int64_t(rows->num_groups) * heads;
    for (int64_t task = tasks * thread / threads; task < tasks * (thread + 1) / threads; task++) {
        int group = task / heads, head = task % heads, row = rows->group_start[group];
        int queries = rows->group_start[group + 1] - row;
        int64_t slot = state->slots[rows->hypothesis[row] / rows->alive], own = row * int64_t(scratch->stride);
        const float *source = state->source + ((layer * int64_t(state->num_slots) + slot) * heads + head) *
                                                  (int64_t(width) * d_k + int64_t(length) * d_v);
        attend_tile(queries, scratch->wide + own + head * d_k, scratch->stride, source, length, d_k, d_v,
                    state->source_mask ? state->source_mask + slot * length : nullptr, scores,
                    scratch->context + own + head * d_v);
        if (state->attention && layer == stack->num_layers - 1)
            for (int q = 0; q < queries; q++)
                memcpy(state->attention + (int64_t(rows->hypothesis[row + q]) * heads + head) * length,
                       scores + int64_t(q) * width, length * sizeof(float));
    }
}

// Every thread: an encoder's self-attention.
static void encoder_self_attention(const Stack *stack, const Scratch *scratch, int length, const float *mask, int rows,
                                   float *scores, const float **entry) {
    int threads = omp_get_num_threads(), thread = omp_get_thread_num(), heads = stack->num_heads;
    int d_k = stack->d_k, d_v = stack->d_v, keys = heads * d_k, last = -1;
    int64_t stride = scratch->stride, tasks = int64_t(rows) * heads;
    for (int64_t task = tasks * thread / threads; task < tasks * (thread + 1) / threads; task++) {
        int sentence = task / heads / length;
        int head = task / length % heads, row = sentence * length + task % length;
        if (sentence != last)
            for (int t = 0; t < length; t++)
                entry[t] = scratch->wide + (sentence * length + t) * stride + keys;
        last = sentence;
        attend(scratch->wide + row * stride + head * d_k, entry, length, head * d_k, keys + head * d_v, d_k, d_v,
               mask ? mask + int64_t(sentence) * length : nullptr, 0, scores,
               scratch->context + row * stride + head * d_v);
    }
}

// Every thread: all layers. A decoder reads `state` and `decoder_rows`, an encoder `length` and `mask` of the source.
// Returns the output, behind a barrier if the rows are shared; else each thread has its own copy.
static const float *run_layers(const Stack *stack, const Scratch *scratch, const DecoderState *state,
                               const Rows *decoder_rows, int length, const float *mask, int rows) {
    int64_t stride = scratch->stride, thread = omp_get_thread_num();
    ThreadRows own = thread_rows(scratch, rows);
    float *scores = scratch->scores + thread * kMaxQueriesPerTile * scratch->max_positions;
    const float **entry = scratch->entries + thread * scratch->max_positions;
    const Norm *final_norm = stack->final_norm.weight ? &stack->final_norm : nullptr;
    for (int row = own.first; stack->embedding_norm.weight && row < own.end; row++) {
        float *states = own.states + row * stride;
        layer_norm(&stack->embedding_norm, states, states, stack->d_model, stack->epsilon);
    }
    const float *read = add_and_norm(stack, scratch, &own, nullptr, nullptr, &stack->layers[0].norms[0]);
    for (int i = 0; i < stack->num_layers; i++) {
        const Layer *layer = stack->layers + i;
        linear(scratch, &layer->query_key_value, read, stride, rows, scratch->wide, stride, false);
#pragma omp barrier
        if (stack->is_decoder)
            decoder_self_attention(stack, scratch, state, decoder_rows, i, scores, entry);
        else
            encoder_self_attention(stack, scratch, length, mask, rows, scores, entry);
#pragma omp barrier
        linear(scratch, &layer->output, scratch->context, stride, rows, scratch->update, stride, false);
#pragma omp barrier
        if (stack->is_decoder) {
            read = add_and_norm(stack, scratch, &own, scratch->update, &layer->norms[0], &layer->norms[1]);
            linear(scratch, &layer->cross_query, read, stride, rows, scratch->wide, stride, false);
#pragma omp barrier
            cross_attention(stack, scratch, state, decoder_rows, i, scores);
#pragma omp barrier
            linear(scratch, &layer->cross_output, scratch->context, stride, rows, scratch->update, stride, false);
#pragma omp barrier
        }
        const Norm *done = &layer->norms[stack->is_decoder];
        read = add_and_norm(stack, scratch, &own, scratch->update, done, &layer->norms[2]);
        linear(scratch, &layer->linear_1, read, stride, rows, scratch->wide, stride, true);
#pragma omp barrier
        linear(scratch, &layer->linear_2, scratch->wide, stride, rows, scratch->update, stride, false);
#pragma omp barrier
        const Norm *next = i + 1 < stack->num_layers ? &stack->layers[i + 1].norms[0] : final_norm;
        read = add_and_norm(stack, scratch, &own, scratch->update, &layer->norms[2], next);
    }
    if (!final_norm)
        return own.states;
    if (!stack->is_pre_norm) {
        for (int row = own.first; row < own.end; row++)
            layer_norm(final_norm, own.states + row * stride, own.normed + row * stride, stack->d_model,
                       stack->epsilon);
        barrier_if_shared(&own);
    }
    return own.normed;
}

} // namespace vanilla_transformer
