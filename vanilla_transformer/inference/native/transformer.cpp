// SPDX-License-Identifier: Apache-2.0
// Section 3.1 of the paper for inference on a CPU: a whole stack of layers within one team of threads.
//
// PyTorch loses its time on few rows between operations: dispatch, allocation, and a fork and a join of threads for
// each. Here one call is a step of decoding, or several of them while no hypothesis ends. packed_stack.py lays out the
// weights, transformer.py owns all memory, and compiler.py compiles. Matrices are row-major, and `stride` is the distance
// of two rows.
//
// Threading contract
//
// * The `extern "C"` functions below are the interface. Any thread may call them, without Python's lock and several at
//   once: the library has no state and allocates nothing.
// * Calls may share Stack, Linear, Norm and all weights, which nobody writes. Each call in progress needs its own
//   Scratch, DecodeStep, TopK, Steps and outputs. Calls on one DecoderState (decode_step, reorder) must follow one another.
// * encode, project_source and decode_step open OpenMP teams of `threads` threads, for which Scratch must have room,
//   and join them before they return. reorder computes on the caller's thread.
// * Functions marked "Every thread" run within a team. All its threads call them in the same order with the same
//   arguments, and each computes its share. All other functions know nothing of threads.
// * A shared result may be read behind the next barrier. linear and the three attention functions end without one, so
//   their caller has it: `#pragma omp barrier`, or the end of the team. Barriers within a function:
//     linear        between converting the rows and the product, for int8 or bfloat16 and more than kMaxReplicatedRows
//                   rows;
//     add_and_norm  at the end, for more than kMaxReplicatedRows rows. Each thread computes fewer rows in its own copy;
//     run_layers    between all sub-layers, and at the end as add_and_norm.

#include "layout.h"

namespace vanilla_transformer {

constexpr int kRowsPerPass = 256;    // rows, about, that pass through all layers while a cache holds their states
constexpr int kMinRowsToDefer = 48;  // rows from which skipping some is worth reading the weights twice
constexpr float kDeferMargin = 2.0f; // a hypothesis this far (log-probability) behind the best is read only if needed

// Sentences `from` to `end` - 1.
struct SentenceRange {
    int from, end;
};

static int count_passes(int sentences, int rows_per_sentence) {
    int passes = int((int64_t(sentences) * rows_per_sentence + kRowsPerPass - 1) / kRowsPerPass);
    return passes < sentences ? passes : sentences;
}

static SentenceRange pass_range(int sentences, int passes, int pass) {
    return {int(int64_t(sentences) * pass / passes), int(int64_t(sentences) * (pass + 1) / passes)};
}

// The hypotheses of a range to read. With `may_defer`, the first round skips those that are far behind the best of
// their sentence; the second has those of them that can still be among the top k. `buffer` has room for `size` rows.
// Neither round has a hypothesis of score -inf: it may continue one that was not read, whose state is undefined.
static Rows select_rows(SentenceRange range, int alive, const TopK *topk, bool may_defer, bool is_second,
                        int32_t *buffer, int size) {
    Rows rows = {0, 0, alive, buffer, buffer + size};
    for (int sentence = range.from; sentence < range.end; sentence++) {
        float threshold = NAN; // not computed yet
        int of_sentence = 0;
        for (int id = sentence * alive; id < (sentence + 1) * alive; id++) {
            bool is_dead = topk && topk->beam_scores && topk->beam_scores[id] == -INFINITY;
            bool is_behind = may_defer && topk->beam_scores[id] < topk->beam_scores[sentence * alive] - kDeferMargin;
            bool is_deferred = is_dead || is_behind;
            if (is_deferred && !is_second)
                for (int64_t i = int64_t(id) * topk->k_per_beam; i < (id + 1) * topk->k_per_beam; i++)
                    topk->scores_per_beam[i] = -INFINITY, topk->tokens_per_beam[i] = 0;
            if (is_deferred && is_second && std::isnan(threshold))
                threshold = deferred_threshold(topk, sentence, alive);
            if (is_deferred != is_second || (is_deferred && topk->beam_scores[id] <= threshold))
                continue;
            if (of_sentence++ % kMaxQueriesPerTile == 0)
                rows.group_start[rows.num_groups++] = rows.count;
            rows.hypothesis[rows.count++] = id;
        }
    }
    rows.group_start[rows.num_groups] = rows.count;
    return rows;
}

template <typename Weight> static void copy_outputs(const Linear *from, const int64_t *outputs, const Linear *to) {
    constexpr int width = kStepInputs<Weight>;
    int64_t steps = count_steps<Weight>(from->inputs);
    auto first = [=](const Linear *map, int64_t output) { // the output's first weight
        return static_cast<const Weight *>(map->weight) + (output / NR * steps * NR + output % NR) * width;
    };
    for (int i = 0; i < to->outputs; i++) {
        if (from->scale)
            const_cast<float *>(to->scale)[i] = from->scale[outputs[i]];
        if (from->sums)
            const_cast<int32_t *>(to->sums)[i] = from->sums[outputs[i]];
        const_cast<float *>(to->bias)[i] = from->bias[outputs[i]];
        const Weight *read = first(from, outputs[i]);
        auto *write = const_cast<Weight *>(first(to, i));
        for (int64_t step = 0; step < steps; step++)
            memcpy(write + step * NR * width, read + step * NR * width, width * sizeof(Weight));
    }
}

// Writes the best tokens of a hypothesis to `topk`. `slot` is its sentence's. `logits` has a value for each token of
// `shortlist`, or of the vocabulary if that is nullptr; the mask is added in place.
static void rank_tokens(const TopK *topk, const Shortlist *shortlist, int vocab_size, int64_t hypothesis, int64_t slot,
                        float *logits) {
    int64_t *best = topk->tokens_per_beam + hypothesis * topk->k_per_beam;
    float *scores = topk->scores_per_beam + hypothesis * topk->k_per_beam;
    int outputs = shortlist ? shortlist->projection.outputs : vocab_size;
    for (int i = 0; shortlist && i < outputs; i++)
        logits[i] += shortlist->mask[slot * outputs + i]; // NaN stays NaN
    blockwise_topk(logits, outputs, topk->k_per_beam, topk->beam_scores != nullptr, scores, best);
    for (int i = 0; shortlist && i < topk->k_per_beam; i++)
        best[i] = std::isnan(scores[0]) ? 0 : shortlist->tokens[best[i]]; // NaN leaves `best` undefined
}

// Reads a token of each hypothesis. Returns the index of a token that the vocabulary does not have, or -1.
static int read_step(const DecodeStep *step) {
    const Stack *stack = step->stack;
    const Scratch *scratch = step->scratch;
    const DecoderState *state = step->state;
    const TopK *topk = step->topk;
    const Shortlist *shortlist = step->shortlist;
    const Linear *projection = shortlist ? &shortlist->projection : step->projection;
    const float *embedding = step->embedding, *position = step->position, scale = step->embedding_scale;
    const int64_t *tokens = step->tokens;
    int alive = step->alive, logits_stride = step->logits_stride, hypotheses = state->batch_size * alive;
    for (int i = 0; i < hypotheses; i++)
        if (tokens[i] < 0 || tokens[i] >= step->vocab_size)
            return i;
    int passes = count_passes(state->batch_size, alive);
    for (int i = 0; i < 2 * passes; i++) { // two rounds each
        SentenceRange range = pass_range(state->batch_size, passes, i / 2);
        bool may_defer = topk && topk->beam_scores && (range.end - range.from) * alive >= kMinRowsToDefer;
        Rows rows = select_rows(range, alive, topk, may_defer, i % 2, step->row_buffer, hypotheses);
        if (rows.count == 0)
            continue;
        float *logits = topk ? step->logits : step->logits + int64_t(range.from) * alive * logits_stride;
#pragma omp parallel num_threads(step->threads)
        {
            ThreadRows own = thread_rows(scratch, rows.count);
            for (int64_t row = own.first; row < own.end; row++) {
                float *embedded = own.states + row * scratch->stride;
                int64_t token = tokens[rows.hypothesis[row]];
                if (embedding)
                    memcpy(embedded, embedding + token * stack->d_model, stack->d_model * sizeof(float));
                else
                    unpack_row(step->projection, token, embedded);
                for (int j = 0; j < stack->d_model; j++)
                    embedded[j] = embedded[j] * scale + position[j];
            }
            const float *states = run_layers(stack, scratch, state, &rows, 0, nullptr, rows.count);
            linear(scratch, projection, states, scratch->stride, rows.count, logits, logits_stride, false);
            if (topk) {
#pragma omp barrier
                int thread = omp_get_thread_num(), team = omp_get_num_threads();
                for (int64_t row = rows.count * thread / team; row < rows.count * (thread + 1) / team; row++)
                    rank_tokens(topk, shortlist, projection->outputs, rows.hypothesis[row],
                                state->slots[rows.hypothesis[row] / alive], logits + row * logits_stride);
            }
        }
    }
    for (int i = 0; topk && i < state->batch_size; i++)
        merge_beams(topk, i, alive);
    for (int i = 0; i < hypotheses; i++) {
        int64_t own = state->slots[i / alive] * state->num_beams + i % alive;
        state->ancestors[own * state->max_length + state->length] = i % alive;
    }
    return -1;
}

extern "C" {

// The layout of all mirrored structures, up to an entry without a name.
const FieldLayout *structure_layout(void) { return kLayout; }

Constants constants(void) { return {NR, kGroup, kCacheBlock, kMaxQueriesPerTile, kMaxReplicatedRows}; }

// `embedded` (sentences * length, d_model) → `encoded` of the same shape, which may be the same memory.
void encode(const Stack *stack, const Scratch *scratch, int32_t sentences, int32_t length, const float *mask,
            const float *embedded, float *encoded, int32_t threads) {
    int passes = count_passes(sentences, length);
    for (int i = 0; i < passes; i++) {
        SentenceRange range = pass_range(sentences, passes, i);
        int rows = (range.end - range.from) * length;
        int64_t first = int64_t(range.from) * length, bytes = stack->d_model * sizeof(float);
        const float *range_mask = mask ? mask + first : nullptr;
#pragma omp parallel num_threads(threads)
        {
            ThreadRows own = thread_rows(scratch, rows);
            for (int64_t row = own.first; row < own.end; row++)
                memcpy(own.states + row * scratch->stride, embedded + (first + row) * stack->d_model, bytes);
            const float *states = run_layers(stack, scratch, nullptr, nullptr, length, range_mask, rows);
            if (own.is_shared || omp_get_thread_num() == 0)
                for (int64_t row = own.first; row < own.end; row++)
                    memcpy(encoded + (first + row) * stack->d_model, states + row * scratch->stride, bytes);
        }
    }
}

// Cross-attention's keys and values: `encoded` (sentences * length, d_model) → `source`, as DecoderState has it.
void project_source(const Stack *stack, const Scratch *scratch, const float *encoded, int32_t sentences, int32_t length,
                    float *source, int32_t threads) {
    int heads = stack->num_heads, d_k = stack->d_k, d_v = stack->d_v, width = padded_length(length);
    int passes = count_passes(sentences, length);
#pragma omp parallel num_threads(threads)
    for (int i = 0; i < passes * stack->num_layers; i++) {
        int layer = i % stack->num_layers;
        SentenceRange range = pass_range(sentences, passes, i / stack->num_layers);
        int rows = (range.end - range.from) * length;
        linear(scratch, &stack->layers[layer].cross_key_value, encoded + int64_t(range.from) * length * stack->d_model,
               stack->d_model, rows, scratch->wide, scratch->stride, false);
#pragma omp barrier
#pragma omp for
        for (int row = 0; row < rows; row++)
            for (int head = 0; head < heads; head++) {
                const float *from = scratch->wide + row * int64_t(scratch->stride);
                int64_t sentence = range.from + row / length,
                        block = (layer * int64_t(sentences) + sentence) * heads + head;
                int t = row % length;
                float *keys = source + block * (int64_t(width) * d_k + int64_t(length) * d_v);
                for (int k = 0; k < d_k; k++)
                    keys[int64_t(k) * width + t] = from[head * d_k + k];
                memcpy(keys + int64_t(width) * d_k + t * d_v, from + heads * d_k + head * d_v, d_v * sizeof(float));
                for (int k = 0; t == length - 1 && k < d_k; k++) // padding
                    memset(keys + int64_t(k) * width + length, 0, (width - length) * sizeof(float));
            }
    }
}

// The weights of some outputs of a float map, (count, inputs). Returns the index of an output that it does not have, or
// -1.
int64_t unpack_rows(const Linear *map, const int64_t *outputs, int64_t count, float *rows) {
    for (int64_t i = 0; i < count; i++) {
        if (outputs[i] < 0 || outputs[i] >= map->outputs)
            return i;
        unpack_row(map, outputs[i], rows + i * map->inputs);
    }
    return -1;
}

// Copies the weights, scales, sums and biases of some outputs to those of `to`, which has as many.
void select_outputs(const Linear *from, const int64_t *outputs, const Linear *to) {
    if (from->scale)
        copy_outputs<int8_t>(from, outputs, to);
    else if (from->is_bfloat16)
        copy_outputs<BFloat16>(from, outputs, to);
    else
        copy_outputs<float>(from, outputs, to);
}

// Hypothesis i of a sentence continues its former hypothesis beam_indices[sentence * alive + i]. `buffer` has room for
// (num_beams, length).
void reorder(const DecoderState *state, const int64_t *beam_indices, int32_t alive, int32_t *buffer) {
    int64_t length = state->length, max_length = state->max_length;
    for (int i = 0; i < state->batch_size; i++) {
        int32_t *own = state->ancestors + state->slots[i] * state->num_beams * max_length;
        for (int beam = 0; beam < state->num_beams; beam++)
            memcpy(buffer + beam * length, own + beam * max_length, length * sizeof(int32_t));
        for (int beam = 0; beam < alive; beam++)
            memcpy(own + beam * max_length, buffer + beam_indices[i * alive + beam] * length, length * sizeof(int32_t));
    }
}

// Reads a token of each hypothesis, and goes on as `begin_next_step` allows. Returns the index of a token that the vocabulary
// does not have, or -1.
int32_t decode_step(DecodeStep *step) {
    DecoderState *state = step->state;
    TopK *topk = step->topk;
    while (true) {
        int unknown = read_step(step);
        if (unknown >= 0)
            return unknown;
        state->length++;
        if (!topk || !begin_next_step(topk, state->batch_size))
            break;
        int64_t first = int64_t(topk->steps->completed - 1) * state->batch_size * topk->num_beams;
        reorder(state, topk->steps->parents + first, topk->num_beams, step->reorder_buffer);
        step->tokens = topk->steps->tokens + first, step->alive = topk->num_beams;
        step->position += step->stack->d_model;
    }
    if (topk && topk->steps->completed)
        backtrack(topk, state->batch_size);
    return -1;
}

} // extern "C"

} // namespace vanilla_transformer

#include "rnn.h" // which selects rows and ranks tokens, too
