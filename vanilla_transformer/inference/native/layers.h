// SPDX-License-Identifier: Apache-2.0
// Figure 1 of the paper: attention, "Add & Norm", and the layers made of them.

#pragma once

#include "linear.h"

#define BLOCK 32   // target tokens in a block of the cache
#define TOGETHER 4 // hypotheses that attend to their source at once, at most

struct Norm {
    const float *weight, *bias;
};

struct Layer {
    Linear query_key_value, output;                    // self-attention
    Linear cross_query, cross_key_value, cross_output; // an encoder has none
    Linear linear_1, linear_2;
    Norm norms[3];
};

struct Stack {
    const Layer *layers;
    int32_t num_layers, d_model, d_ff, num_heads, d_k, d_v, is_pre_norm, is_decoder;
    float epsilon;
    Norm last; // weight nullptr: none
};

// Hypotheses of a target that read a token at once; they stand in groups of one sentence, which share its source.
struct Rows {
    int32_t count, groups, live; // rows; groups; hypotheses that a sentence has
    int32_t *id, *first;         // of a row: sentence * live + hypothesis; of a group: its first row, (groups + 1)
};

struct Target {
    int32_t sentences, beams, length, source_length, slots, longest;
    const int64_t *slot; // of each sentence, where its memory is
    float *const *cache; // blocks (num_layers, slots, num_heads, BLOCK, beams, d_k + d_v)
    int32_t *ancestors;  // (slots, beams, longest): whose entry a hypothesis continues
    const float
        *source;       // (num_layers, slots, num_heads), each keys (d_k, padded_length) and values (source_length, d_v)
    const float *mask; // added to scores, (slots, source_length), or nullptr
    float *attention;  // of the last layer, (sentences * live, num_heads, source_length), or nullptr
};

static inline float dot(const float *a, const float *b, int width) {
    Lanes sums[2] = {};
    int i = 0;
    for (; i + 2 * LANES <= width; i += 2 * LANES) {
        sums[0] += load(a + i) * load(b + i);
        sums[1] += load(a + i + LANES) * load(b + i + LANES);
    }
    float total = sum(sums[0] + sums[1]);
    for (; i < width; i++)
        total += a[i] * b[i];
    return total;
}

// Equation 1 for one query and head: `entries` pointers to keys and values; `mask` is added to the scores, or nullptr.
static void attend(const float *query, const float *const *entry, int entries, int key, int value, int d_k, int d_v,
                   const float *mask, float *scores, float *mixed) {
    float most = -INFINITY, total = 0;
    for (int t = 0; t < entries; t++) {
        scores[t] = dot(query, entry[t] + key, d_k) + (mask ? mask[t] : 0.0f);
        most = scores[t] > most || scores[t] != scores[t] ? scores[t] : most;
    }
    for (int t = entries; t % LANES; t++)
        scores[t] = -INFINITY; // there is room for whole vectors
    Lanes sums = {};
    for (int t = 0; t < entries; t += LANES) {
        Lanes weights = exponential(load(scores + t) - most);
        if (t + LANES > entries)
            for (int i = entries - t; i < LANES; i++)
                weights[i] = 0;
        store(scores + t, weights);
        sums += weights;
    }
    total = sum(sums);
    for (int t = 0; t < entries; t++)
        scores[t] /= total;
    int i = 0;
    for (; i + 4 * LANES <= d_v; i += 4 * LANES) {
        Lanes parts[4] = {};
        for (int t = 0; t < entries; t++)
            for (int j = 0; j < 4; j++)
                parts[j] += load(entry[t] + value + i + j * LANES) * scores[t];
        for (int j = 0; j < 4; j++)
            store(mixed + i + j * LANES, parts[j]);
    }
    for (; i < d_v; i++) {
        float part = 0;
        for (int t = 0; t < entries; t++)
            part += entry[t][value + i] * scores[t];
        mixed[i] = part;
    }
}

static inline int padded_length(int length) { return (length + LANES - 1) / LANES * LANES; }

// Scores of some queries for as many positions as `vectors` hold.
template <int queries, int vectors>
static inline void score(const float *query, int64_t stride, const float *keys, int width, int d_k, float *scores) {
    Lanes sums[queries][vectors] = {};
    for (int k = 0; k < d_k; k++)
        for (int q = 0; q < queries; q++)
            for (int v = 0; v < vectors; v++)
                sums[q][v] += load(keys + int64_t(k) * width + v * LANES) * query[q * stride + k];
    for (int q = 0; q < queries; q++)
        for (int v = 0; v < vectors; v++)
            store(scores + int64_t(q) * width + v * LANES, sums[q][v]);
}

// Equation 1 for some hypotheses of a sentence, which share its source; `scores` are `queries` padded rows.
template <int queries>
static void attend_together(const float *query, int64_t stride, const float *source, int length, int d_k, int d_v,
                            const float *mask, float *scores, float *mixed) {
    int width = padded_length(length), done = 0;
    for (; done + 2 * LANES <= width; done += 2 * LANES)
        score<queries, 2>(query, stride, source + done, width, d_k, scores + done);
    for (; done < width; done += LANES)
        score<queries, 1>(query, stride, source + done, width, d_k, scores + done);
    for (int q = 0; q < queries; q++) {
        float *own = scores + int64_t(q) * width;
        for (int t = 0; mask && t < length; t++)
            own[t] += mask[t];
        for (int t = length; t < width; t++)
            own[t] = -INFINITY;
        Lanes peaks = load(own), sums = {};
        for (int t = LANES; t < width; t += LANES)
            peaks = larger(load(own + t), peaks);
        float most = largest(peaks);
        for (int t = 0; t < width; t += LANES)
            store(own + t, exponential(load(own + t) - most));
        for (int t = length; t < width; t++)
            own[t] = 0;
        for (int t = 0; t < width; t += LANES)
            sums += load(own + t);
        Lanes total = Lanes{} + sum(sums);
        for (int t = 0; t < width; t += LANES)
            store(own + t, load(own + t) / total);
    }
    const float *values = source + int64_t(width) * d_k;
    int i = 0;
    for (; i + 2 * LANES <= d_v; i += 2 * LANES) {
        Lanes parts[queries][2] = {};
        for (int t = 0; t < length; t++)
            for (int q = 0; q < queries; q++)
                for (int v = 0; v < 2; v++)
                    parts[q][v] += load(values + int64_t(t) * d_v + i + v * LANES) * scores[q * int64_t(width) + t];
        for (int q = 0; q < queries; q++)
            for (int v = 0; v < 2; v++)
                store(mixed + q * stride + i + v * LANES, parts[q][v]);
    }
    for (; i < d_v; i++)
        for (int q = 0; q < queries; q++) {
            float part = 0;
            for (int t = 0; t < length; t++)
                part += values[int64_t(t) * d_v + i] * scores[q * int64_t(width) + t];
            mixed[q * stride + i] = part;
        }
}

static void attend_together(int queries, const float *query, int64_t stride, const float *source, int length, int d_k,
                            int d_v, const float *mask, float *scores, float *mixed) {
    switch (queries) {
    case 1: return attend_together<1>(query, stride, source, length, d_k, d_v, mask, scores, mixed);
    case 2: return attend_together<2>(query, stride, source, length, d_k, d_v, mask, scores, mixed);
    case 3: return attend_together<3>(query, stride, source, length, d_k, d_v, mask, scores, mixed);
    case 4: return attend_together<4>(query, stride, source, length, d_k, d_v, mask, scores, mixed);
    }
}

static void normalise(const Norm *norm, const float *x, float *y, int width, float epsilon) {
    float mean = 0, variance = 0;
    int i, whole = width / LANES * LANES;
    Lanes sums = {};
    for (i = 0; i < whole; i += LANES)
        sums += load(x + i);
    for (mean = sum(sums); i < width; i++)
        mean += x[i];
    mean /= width;
    sums = Lanes{};
    for (i = 0; i < whole; i += LANES)
        sums += (load(x + i) - mean) * (load(x + i) - mean);
    for (variance = sum(sums); i < width; i++)
        variance += (x[i] - mean) * (x[i] - mean);
    float factor = 1.0f / sqrtf(variance / width + epsilon);
    for (i = 0; i < whole; i += LANES)
        store(y + i, (load(x + i) - mean) * factor * load(norm->weight + i) + load(norm->bias + i));
    for (; i < width; i++)
        y[i] = (x[i] - mean) * factor * norm->weight[i] + norm->bias[i];
}

// The rows that this thread adds and normalises. Of few rows each thread has its own copy, and nobody waits.
struct Own {
    float *states, *normed;
    int first, end, is_shared;
};

static Own own_rows(const Scratch *scratch, int rows) {
    int threads = omp_get_num_threads(), thread = omp_get_thread_num();
    if (rows > FEW)
        return {scratch->states, scratch->normed, rows * thread / threads, rows * (thread + 1) / threads, 1};
    int64_t copy = int64_t(thread) * FEW * scratch->stride;
    return {scratch->states + copy, scratch->normed + copy, 0, rows, 0};
}

static void wait_for(const Own *own) {
    if (own->is_shared) {
#pragma omp barrier
    }
}

// "Add & Norm" around `update`, which may be nullptr, and what the next sub-layer, before which `next` stands, reads.
static const float *add_and_norm(const Stack *stack, const Scratch *scratch, const Own *own, const float *update,
                                 const Norm *done, const Norm *next) {
    int64_t stride = scratch->stride;
    for (int row = own->first; row < own->end; row++) {
        float *states = own->states + row * stride;
        if (update)
            for (int i = 0; i < stack->d_model; i++)
                states[i] += update[row * stride + i];
        if (update && !stack->is_pre_norm)
            normalise(done, states, states, stack->d_model, stack->epsilon);
        const Norm *before = stack->is_pre_norm ? next : nullptr;
        if (before)
            normalise(before, states, own->normed + row * stride, stack->d_model, stack->epsilon);
    }
    wait_for(own);
    return stack->is_pre_norm ? own->normed : own->states;
}

// Where the keys and values of a head and a token of the target are.
static inline float *entry_of(const Stack *stack, const Target *target, int layer, int64_t slot, int head, int t,
                              int beam) {
    int64_t row = ((layer * int64_t(target->slots) + slot) * stack->num_heads + head) * BLOCK + t % BLOCK;
    return target->cache[t / BLOCK] + (row * target->beams + beam) * (stack->d_k + stack->d_v);
}

static void attend_to_target(const Stack *stack, const Scratch *scratch, const Target *target, const Rows *rows,
                             int layer, float *scores, const float **entry) {
    int threads = omp_get_num_threads(), thread = omp_get_thread_num(), heads = stack->num_heads;
    int d_k = stack->d_k, d_v = stack->d_v, now = target->length;
    int64_t tasks = int64_t(rows->groups) * heads;
    for (int64_t task = tasks * thread / threads; task < tasks * (thread + 1) / threads; task++) {
        int group = task / heads, head = task % heads;
        for (int row = rows->first[group]; row < rows->first[group + 1]; row++) { // they have ancestors in common
            int beam = rows->id[row] % rows->live;
            int64_t slot = target->slot[rows->id[row] / rows->live];
            const int32_t *ancestors = target->ancestors + (slot * target->beams + beam) * target->longest;
            for (int t = 0; t < now; t++)
                entry[t] = entry_of(stack, target, layer, slot, head, t, ancestors[t]);
            const float *projected = scratch->wide + row * int64_t(scratch->stride);
            float *own = entry_of(stack, target, layer, slot, head, now, beam);
            memcpy(own, projected + heads * d_k + head * d_k, d_k * sizeof(float));
            memcpy(own + d_k, projected + 2 * heads * d_k + head * d_v, d_v * sizeof(float));
            entry[now] = own;
            attend(projected + head * d_k, entry, now + 1, 0, d_k, d_k, d_v, nullptr, scores,
                   scratch->mixed + row * int64_t(scratch->stride) + head * d_v);
        }
    }
}

static void attend_to_source(const Stack *stack, const Scratch *scratch, const Target *target, const Rows *rows,
                             int layer, float *scores) {
    int threads = omp_get_num_threads(), thread = omp_get_thread_num(), heads = stack->num_heads;
    int d_k = stack->d_k, d_v = stack->d_v, length = target->source_length, width = padded_length(length);
    int64_t tasks = int64_t(rows->groups) * heads;
    for (int64_t task = tasks * thread / threads; task < tasks * (thread + 1) / threads; task++) {
        int group = task / heads, head = task % heads, row = rows->first[group];
        int queries = rows->first[group + 1] - row;
        int64_t slot = target->slot[rows->id[row] / rows->live], own = row * int64_t(scratch->stride);
        const float *source = target->source + ((layer * int64_t(target->slots) + slot) * heads + head) *
                                                   (int64_t(width) * d_k + int64_t(length) * d_v);
        attend_together(queries, scratch->wide + own + head * d_k, scratch->stride, source, length, d_k, d_v,
                        target->mask ? target->mask + slot * length : nullptr, scores,
                        scratch->mixed + own + head * d_v);
        if (target->attention && layer == stack->num_layers - 1)
            for (int q = 0; q < queries; q++)
                memcpy(target->attention + (int64_t(rows->id[row + q]) * heads + head) * length,
                       scores + int64_t(q) * width, length * sizeof(float));
    }
}

static void attend_within_source(const Stack *stack, const Scratch *scratch, int length, const float *mask, int rows,
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
               mask ? mask + int64_t(sentence) * length : nullptr, scores, scratch->mixed + row * stride + head * d_v);
    }
}

// All layers, for this thread; `target` and `those` of its rows for a decoder, `length` and `mask` of the source for an
// encoder.
static const float *run_layers(const Stack *stack, const Scratch *scratch, const Target *target, const Rows *those,
                               int length, const float *mask, int rows) {
    int64_t stride = scratch->stride, thread = omp_get_thread_num();
    Own own = own_rows(scratch, rows);
    float *scores = scratch->scores + thread * TOGETHER * scratch->longest;
    const float **entry = scratch->entries + thread * scratch->longest;
    const Norm *last = stack->last.weight ? &stack->last : nullptr;
    const float *read = add_and_norm(stack, scratch, &own, nullptr, nullptr, &stack->layers[0].norms[0]);
    for (int i = 0; i < stack->num_layers; i++) {
        const Layer *layer = stack->layers + i;
        linear(scratch, &layer->query_key_value, read, stride, rows, scratch->wide, stride, false);
#pragma omp barrier
        if (stack->is_decoder)
            attend_to_target(stack, scratch, target, those, i, scores, entry);
        else
            attend_within_source(stack, scratch, length, mask, rows, scores, entry);
#pragma omp barrier
        linear(scratch, &layer->output, scratch->mixed, stride, rows, scratch->projected, stride, false);
#pragma omp barrier
        if (stack->is_decoder) {
            read = add_and_norm(stack, scratch, &own, scratch->projected, &layer->norms[0], &layer->norms[1]);
            linear(scratch, &layer->cross_query, read, stride, rows, scratch->wide, stride, false);
#pragma omp barrier
            attend_to_source(stack, scratch, target, those, i, scores);
#pragma omp barrier
            linear(scratch, &layer->cross_output, scratch->mixed, stride, rows, scratch->projected, stride, false);
#pragma omp barrier
        }
        const Norm *done = &layer->norms[stack->is_decoder];
        read = add_and_norm(stack, scratch, &own, scratch->projected, done, &layer->norms[2]);
        linear(scratch, &layer->linear_1, read, stride, rows, scratch->wide, stride, true);
#pragma omp barrier
        linear(scratch, &layer->linear_2, scratch->wide, stride, rows, scratch->projected, stride, false);
#pragma omp barrier
        const Norm *next = i + 1 < stack->num_layers ? &stack->layers[i + 1].norms[0] : last;
        read = add_and_norm(stack, scratch, &own, scratch->projected, &layer->norms[2], next);
    }
    if (!last)
        return own.states;
    if (!stack->is_pre_norm) {
        for (int row = own.first; row < own.end; row++)
            normalise(last, own.states + row * stride, own.normed + row * stride, stack->d_model, stack->epsilon);
        wait_for(&own);
    }
    return own.normed;
}
