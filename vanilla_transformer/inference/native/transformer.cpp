// SPDX-License-Identifier: Apache-2.0
// Section 3.1 of the paper for inference on a CPU: a whole stack of layers within one team of threads.
//
// What PyTorch loses for a few rows is between its operations: dispatch, allocation, a fork and a join for each. Here
// a step of decoding is one call. transformer.py lays out the weights and owns all memory; compiler.py compiles.
// Matrices are row-major; `stride` is the distance of two rows.

#include "layers.h"
#include "search.h"

#define AT_ONCE 256 // rows, about, that pass through all layers, so that what is between the layers stays in a cache
#define DIVIDED 48  // rows from which it pays to read the weights twice, if that spares some rows
#define WAITS 2.0f  // how far, in log-probability, a hypothesis is behind the best of its sentence that waits for it

// Sentences `from` up to `end` are part `part` of so many.
struct Part {
    int from, end;
};

static int parts_of(int sentences, int rows_of_each) {
    int parts = int((int64_t(sentences) * rows_of_each + AT_ONCE - 1) / AT_ONCE);
    return parts < sentences ? parts : sentences;
}

static Part part_of(int sentences, int parts, int part) {
    return {int(int64_t(sentences) * part / parts), int(int64_t(sentences) * (part + 1) / parts)};
}

// The hypotheses of some sentences; where some wait for the others, first the others, then those that can still add to
// the ranking.
static Rows rows_of(Part part, int live, const Ranking *ranking, bool some_wait, bool is_second, int32_t *places,
                    int room) {
    Rows rows = {0, 0, live, places, places + room};
    for (int sentence = part.from; sentence < part.end; sentence++) {
        float least = NAN; // not known yet
        int of_sentence = 0;
        for (int id = sentence * live; id < (sentence + 1) * live; id++) {
            bool waits = some_wait && ranking->totals[id] < ranking->totals[sentence * live] - WAITS;
            for (int64_t i = int64_t(id) * ranking->each; waits && !is_second && i < (id + 1) * ranking->each; i++)
                ranking->best[i] = -INFINITY, ranking->index[i] = 0;
            if (waits && is_second && std::isnan(least))
                least = least_that_goes_on(ranking, sentence, live);
            if (waits != is_second || (waits && ranking->totals[id] <= least))
                continue;
            if (of_sentence++ % TOGETHER == 0)
                rows.first[rows.groups++] = rows.count;
            rows.id[rows.count++] = id;
        }
    }
    rows.first[rows.groups] = rows.count;
    return rows;
}

extern "C" {

int32_t panel_width(void) { return PANEL; }

// Encode: `embedded` sources `(sentences * length, d_model)` → `encoded` of the same shape, which may be the same
// memory.
void encode(const Stack *stack, const Scratch *scratch, int32_t sentences, int32_t length, const float *mask,
            const float *embedded, float *encoded, int32_t threads) {
    int parts = parts_of(sentences, length);
    for (int i = 0; i < parts; i++) {
        Part part = part_of(sentences, parts, i);
        int rows = (part.end - part.from) * length;
        int64_t first = int64_t(part.from) * length, bytes = stack->d_model * sizeof(float);
        const float *own_mask = mask ? mask + first : nullptr;
#pragma omp parallel num_threads(threads)
        {
            Own own = own_rows(scratch, rows);
            for (int64_t row = own.first; row < own.end; row++)
                memcpy(own.states + row * scratch->stride, embedded + (first + row) * stack->d_model, bytes);
            const float *states = run_layers(stack, scratch, nullptr, nullptr, length, own_mask, rows);
            if (own.is_shared || omp_get_thread_num() == 0)
                for (int64_t row = own.first; row < own.end; row++)
                    memcpy(encoded + (first + row) * stack->d_model, states + row * scratch->stride, bytes);
        }
    }
}

// Keys and values of the sources: `encoded` `(sentences * length, d_model)` → `source`, as `Target` has it.
void project_source(const Stack *stack, const Scratch *scratch, const float *encoded, int32_t sentences, int32_t length,
                    float *source, int32_t threads) {
    int heads = stack->num_heads, d_k = stack->d_k, d_v = stack->d_v, width = padded_length(length);
    int parts = parts_of(sentences, length);
#pragma omp parallel num_threads(threads)
    for (int i = 0; i < parts * stack->num_layers; i++) {
        int layer = i % stack->num_layers;
        Part part = part_of(sentences, parts, i / stack->num_layers);
        int rows = (part.end - part.from) * length;
        linear(scratch, &stack->layers[layer].cross_key_value, encoded + int64_t(part.from) * length * stack->d_model,
               stack->d_model, rows, scratch->wide, scratch->stride, false);
#pragma omp barrier
#pragma omp for
        for (int row = 0; row < rows; row++)
            for (int head = 0; head < heads; head++) {
                const float *from = scratch->wide + row * int64_t(scratch->stride);
                int64_t sentence = part.from + row / length,
                        block = (layer * int64_t(sentences) + sentence) * heads + head;
                int t = row % length;
                float *keys = source + block * (int64_t(width) * d_k + int64_t(length) * d_v);
                for (int k = 0; k < d_k; k++)
                    keys[int64_t(k) * width + t] = from[head * d_k + k];
                memcpy(keys + int64_t(width) * d_k + t * d_v, from + heads * d_k + head * d_v, d_v * sizeof(float));
                for (int k = 0; t == length - 1 && k < d_k; k++) // what is beyond the end counts for nothing
                    memset(keys + int64_t(k) * width + length, 0, (width - length) * sizeof(float));
            }
    }
}

// One token of each hypothesis: `tokens` `(sentences * live)` → `logits` `(sentences * live, logits_stride)`, or with a
// `ranking` what that asks for, and then `logits` holds those of the last rows. `places` has room for two numbers of
// each hypothesis, and one more. Returns which token the vocabulary does not have, or -1.
int32_t decode(const Stack *stack, const Scratch *scratch, const Target *target, const Linear *projection,
               const float *embedding, int32_t vocab_size, float scale, const float *position, const int64_t *tokens,
               int32_t live, int32_t *places, float *logits, int32_t logits_stride, const Ranking *ranking,
               int32_t threads) {
    int hypotheses = target->sentences * live;
    for (int i = 0; i < hypotheses; i++)
        if (tokens[i] < 0 || tokens[i] >= vocab_size)
            return i;
    int parts = parts_of(target->sentences, live);
    for (int i = 0; i < 2 * parts; i++) {
        Part part = part_of(target->sentences, parts, i / 2);
        bool some_wait = ranking && ranking->totals && (part.end - part.from) * live >= DIVIDED;
        Rows rows = rows_of(part, live, ranking, some_wait, i % 2, places, hypotheses);
        if (rows.count == 0)
            continue;
        float *own_logits = ranking ? logits : logits + int64_t(part.from) * live * logits_stride;
#pragma omp parallel num_threads(threads)
        {
            Own own = own_rows(scratch, rows.count);
            for (int64_t row = own.first; row < own.end; row++)
                for (int j = 0; j < stack->d_model; j++)
                    own.states[row * scratch->stride + j] =
                        embedding[tokens[rows.id[row]] * stack->d_model + j] * scale + position[j];
            const float *states = run_layers(stack, scratch, target, &rows, 0, nullptr, rows.count);
            linear(scratch, projection, states, scratch->stride, rows.count, own_logits, logits_stride, false);
            if (ranking) {
#pragma omp barrier
                int thread = omp_get_thread_num(), team = omp_get_num_threads(), each = ranking->each;
                for (int64_t row = rows.count * thread / team; row < rows.count * (thread + 1) / team; row++)
                    best_of(own_logits + row * logits_stride, projection->outputs, each, ranking->totals != nullptr,
                            ranking->best + int64_t(rows.id[row]) * each,
                            ranking->index + int64_t(rows.id[row]) * each);
            }
        }
    }
    for (int i = 0; ranking && i < target->sentences; i++)
        best_of_sentence(ranking, i, live);
    for (int i = 0; i < hypotheses; i++) {
        int64_t own = target->slot[i / live] * target->beams + i % live;
        target->ancestors[own * target->longest + target->length] = i % live;
    }
    return -1;
}

// From now on hypothesis i of a sentence continues what was its hypothesis `parents[sentence * live + i]`.
void follow(const Target *target, const int64_t *parents, int32_t live, int32_t *scratch) {
    int64_t length = target->length, longest = target->longest;
    for (int i = 0; i < target->sentences; i++) {
        int32_t *own = target->ancestors + target->slot[i] * target->beams * longest;
        for (int beam = 0; beam < target->beams; beam++)
            memcpy(scratch + beam * length, own + beam * longest, length * sizeof(int32_t));
        for (int beam = 0; beam < live; beam++)
            memcpy(own + beam * longest, scratch + parents[i * live + beam] * length, length * sizeof(int32_t));
    }
}

} // extern "C"
