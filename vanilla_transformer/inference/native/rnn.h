// SPDX-License-Identifier: Apache-2.0
// The recurrent encoder-decoder for inference on a CPU: a whole source, or a token of each hypothesis, within one team
// of threads. rnn.py lays out the weights and owns all memory; transformer.cpp compiles this into its library. Its
// threading contract holds here, too: calls on one RecurrentState must follow one another.

#pragma once

#include "layout.h"

namespace vanilla_transformer {

// Every thread: one layer over whole sequences, in place in `scratch->states`, (sentences * length, stride). A token's
// W x + b is the row of `scratch->wide` that `input_rows` (sentences * length) names; nullptr: the token's own row.
static void scan_layer(const RecurrentStack *stack, const Scratch *scratch, int index, int sentences, int length,
                       const uint8_t *mask, const int64_t *input_rows, float *final_hidden, float *final_cell) {
    const RecurrentLayer *layer = stack->layers + index;
    int threads = omp_get_num_threads(), thread = omp_get_thread_num(), width = stack->hidden_size;
    int rows = sentences * stack->directions, gates = count_gates(stack->cell) * width; // a row: a direction's sentence
    int first = rows * thread / threads, end = rows * (thread + 1) / threads;
    int64_t stride = scratch->stride, bytes = width * sizeof(float);
    float *hidden = scratch->normed, *cell_states = scratch->context, *recurrent = scratch->update;
    for (int64_t row = first; row < end; row++) {
        memset(hidden + row * stride, 0, stride * sizeof(float));
        memset(cell_states + row * stride, 0, stride * sizeof(float));
    }
    for (int step = 0; step < length; step++) {
        for (int direction = 0; direction < stack->directions; direction++) {
            int64_t from = direction * sentences * stride;
#pragma omp barrier
            linear(scratch, &layer->hidden[direction], hidden + from, stride, sentences, recurrent + from, stride,
                   false);
        }
#pragma omp barrier
        for (int64_t row = first; row < end; row++) {
            int direction = row / sentences, sentence = row % sentences;
            int64_t token = sentence * length + (direction || stack->is_reversed ? length - 1 - step : step);
            float *own = hidden + row * stride, *own_cell = cell_states + row * stride;
            float *output = scratch->states + token * stride + direction * width;
            bool is_real = !mask || mask[token];
            if (is_real)
                step_cell(stack->cell, width,
                          scratch->wide + (input_rows ? input_rows[token] : token) * stride + direction * gates,
                          recurrent + row * stride, own, own_cell, own, own_cell);
            for (int i = 0; i < width; i++)
                output[i] = (is_real ? own[i] : 0) + (layer->has_residual ? output[i] : 0);
        }
    }
    for (int64_t row = first; row < end; row++) {
        int64_t sentence = row % sentences, to = sentence * stack->num_layers + index;
        to = (to * stack->directions + row / sentences) * width;
        memcpy(final_hidden + to, hidden + row * stride, bytes);
        if (final_cell)
            memcpy(final_cell + to, cell_states + row * stride, bytes);
    }
#pragma omp barrier
}

// Every thread: a token of each row, from the states of `current` to the others.
static void read_tokens(const RecurrentStep *step, const Rows *rows) {
    const RecurrentDecoder *decoder = step->decoder;
    const RecurrentStack *stack = &decoder->stack;
    const Scratch *scratch = step->scratch;
    const RecurrentState *state = step->state;
    const TopK *topk = step->topk;
    int layers = stack->num_layers, width = stack->hidden_size, fed_from = decoder->embedding_size;
    int attentional = (stack->cell == kLstm ? 2 : 1) * layers, parts = attentional + 1;
    int count = rows->count, encoder_width = decoder->encoder_width;
    int team = omp_get_num_threads(), thread = omp_get_thread_num();
    int first = count * thread / team, end = count * (thread + 1) / team;
    int64_t stride = scratch->stride;
    float *states = scratch->states, *wide = scratch->wide, *update = scratch->update;
    auto part_of = [&](int generation, int part, int64_t index) {
        return state->states + ((int64_t(generation) * parts + part) * state->num_rows + index) * state->stride;
    };
    auto before = [&](int part, int row) -> const float * {
        return part_of(state->current, part, step->parents[rows->hypothesis[row]]);
    };
    auto after = [&](int part, int row) { return part_of(1 - state->current, part, rows->hypothesis[row]); };
    auto gather_hidden = [&](int layer) {
        for (int row = first; row < end; row++)
            memcpy(scratch->normed + row * stride, before(layer, row), width * sizeof(float));
    };
    for (int row = first; row < end; row++) {
        float *input = states + row * stride;
        memcpy(input, decoder->embedding + step->tokens[rows->hypothesis[row]] * fed_from, fed_from * sizeof(float));
        if (decoder->input_feeding == kAttentional)
            memcpy(input + fed_from, before(attentional, row), fed_from * sizeof(float));
    }
    if (decoder->input_feeding == kContext) { // computed from the state before this token
        gather_hidden(layers - 1);
        attend_to_source(decoder, scratch, state, rows, scratch->normed);
        for (int row = first; row < end; row++)
            memcpy(states + row * stride + fed_from, scratch->context + row * stride, encoder_width * sizeof(float));
    }
    for (int i = 0; i < layers; i++) {
        const RecurrentLayer *layer = stack->layers + i;
        bool is_lstm = stack->cell == kLstm;
        gather_hidden(i);
#pragma omp barrier
        linear(scratch, &layer->input, states, stride, count, wide, stride, false);
#pragma omp barrier
        linear(scratch, layer->hidden, scratch->normed, stride, count, update, stride, false);
#pragma omp barrier
        for (int row = first; row < end; row++) {
            float *hidden = after(i, row), *output = states + row * stride;
            step_cell(stack->cell, width, wide + row * stride, update + row * stride, scratch->normed + row * stride,
                      is_lstm ? before(layers + i, row) : nullptr, hidden, is_lstm ? after(layers + i, row) : nullptr);
            for (int j = 0; j < width; j++)
                output[j] = hidden[j] + (layer->has_residual ? output[j] : 0);
        }
    }
    if (decoder->keys.weight && decoder->input_feeding != kContext)
        attend_to_source(decoder, scratch, state, rows, states);
    const float *read = states;
    if (decoder->readout.weight) {
        int context = decoder->keys.weight ? encoder_width : 0;
        for (int row = first; row < end; row++) {
            memcpy(wide + row * stride, scratch->context + row * stride, context * sizeof(float));
            memcpy(wide + row * stride + context, states + row * stride, width * sizeof(float));
        }
#pragma omp barrier
        linear(scratch, &decoder->readout, wide, stride, count, update, stride, false);
#pragma omp barrier
        for (int row = first; row < end; row++) {
            float *output = update + row * stride;
            for (int j = 0; j < decoder->readout.outputs; j += kLanes)
                store(output + j, tanh(load(output + j)));
            if (decoder->input_feeding == kAttentional)
                memcpy(after(attentional, row), output, decoder->readout.outputs * sizeof(float));
        }
        read = update;
    }
#pragma omp barrier
    const Linear *projection = step->shortlist ? &step->shortlist->projection : &decoder->projection;
    linear(scratch, projection, read, stride, count, step->logits, step->logits_stride, false);
    if (topk) {
#pragma omp barrier
        for (int64_t row = first; row < end; row++)
            rank_tokens(topk, step->shortlist, projection->outputs, rows->hypothesis[row],
                        state->slots[rows->hypothesis[row] / rows->alive], step->logits + row * step->logits_stride);
    }
}

// Reads a token of each hypothesis. Returns the index of a token that the vocabulary does not have, or -1.
static int read_step(const RecurrentStep *step) {
    RecurrentState *state = step->state;
    const TopK *topk = step->topk;
    int alive = step->alive, hypotheses = state->batch_size * alive;
    for (int i = 0; i < hypotheses; i++)
        if (step->tokens[i] < 0 || step->tokens[i] >= step->decoder->vocab_size)
            return i;
    bool may_defer = topk && topk->beam_scores && hypotheses >= kMinRowsToDefer;
    for (int round = 0; round < 2; round++) {
        Rows rows = select_rows({0, state->batch_size}, alive, topk, may_defer, round, step->row_buffer, hypotheses);
        if (rows.count == 0)
            continue;
#pragma omp parallel num_threads(step->threads)
        read_tokens(step, &rows);
    }
    for (int i = 0; topk && i < state->batch_size; i++)
        merge_beams(topk, i, alive);
    state->current = 1 - state->current;
    return -1;
}

extern "C" {

// Encodes whole sources. `embedded` (types, input_size) has each distinct token once, and `types_of` (sentences *
// length) the row of each token. `mask` (sentences * length) is 0 for padding, or nullptr. Writes `encoded` (sentences *
// length, directions * hidden_size), and each layer's state after the last token that it reads, (sentences, num_layers,
// directions * hidden_size). Only an LSTM has a `final_cell`.
void recurrent_encode(const RecurrentStack *stack, const Scratch *scratch, int32_t sentences, int32_t length,
                      const uint8_t *mask, const int64_t *types_of, const float *embedded, int32_t types,
                      float *encoded, float *final_hidden, float *final_cell, int32_t threads) {
    int64_t rows = int64_t(sentences) * length, stride = scratch->stride, width = stack->directions * stack->hidden_size;
#pragma omp parallel num_threads(threads)
    {
        int64_t team = omp_get_num_threads(), thread = omp_get_thread_num();
        int64_t first = rows * thread / team, end = rows * (thread + 1) / team;
        for (int64_t row = first; row < end; row++)
            memcpy(scratch->states + row * stride, embedded + types_of[row] * stack->input_size,
                   stack->input_size * sizeof(float));
        for (int i = 0; i < stack->num_layers; i++) {
            const Linear *input = &stack->layers[i].input;
            if (i == 0) // each distinct token once
                linear(scratch, input, embedded, stack->input_size, types, scratch->wide, stride, false);
            else
                linear(scratch, input, scratch->states, stride, int(rows), scratch->wide, stride, false);
            scan_layer(stack, scratch, i, sentences, length, mask, i ? nullptr : types_of, final_hidden, final_cell);
        }
        for (int64_t row = first; row < end; row++)
            memcpy(encoded + row * width, scratch->states + row * stride, width * sizeof(float));
    }
}

// Writes the attention's keys and values of `encoded` (sentences * length, encoder_width) to `source`, laid out as in
// RecurrentState.
void recurrent_project_source(const RecurrentDecoder *decoder, const Scratch *scratch, const float *encoded,
                              int32_t sentences, int32_t length, float *source, int32_t threads) {
    int padded = padded_length(length), d_k = decoder->stack.hidden_size, width = decoder->encoder_width;
    int d_v = value_width(width), rows = sentences * length;
#pragma omp parallel num_threads(threads)
    {
        linear(scratch, &decoder->keys, encoded, width, rows, scratch->wide, scratch->stride, false);
#pragma omp barrier
#pragma omp for
        for (int row = 0; row < rows; row++) {
            int t = row % length;
            const float *from = scratch->wide + row * int64_t(scratch->stride);
            float *keys = source + row / length * (int64_t(padded) * d_k + int64_t(length) * d_v);
            float *values = keys + int64_t(padded) * d_k + int64_t(t) * d_v;
            for (int k = 0; k < d_k; k++)
                keys[int64_t(k) * padded + t] = from[k];
            for (int k = 0; t == length - 1 && k < d_k; k++) // padding
                memset(keys + int64_t(k) * padded + length, 0, (padded - length) * sizeof(float));
            memcpy(values, encoded + int64_t(row) * width, width * sizeof(float));
            memset(values + width, 0, (d_v - width) * sizeof(float));
        }
    }
}

// Reads a token of each hypothesis, and goes on, as decode_step does.
int32_t recurrent_step(RecurrentStep *step) {
    const RecurrentState *state = step->state;
    TopK *topk = step->topk;
    while (true) {
        int unknown = read_step(step), alive = step->alive;
        if (unknown >= 0)
            return unknown;
        if (!topk || !begin_next_step(topk, state->batch_size))
            break;
        int beams = topk->num_beams, hypotheses = state->batch_size * beams;
        int64_t first = int64_t(topk->steps->completed - 1) * hypotheses;
        for (int i = 0; i < hypotheses; i++)
            step->parent_buffer[i] = int64_t(i / beams) * alive + topk->steps->parents[first + i];
        step->tokens = topk->steps->tokens + first, step->parents = step->parent_buffer, step->alive = beams;
    }
    if (topk && topk->steps->completed)
        backtrack(topk, state->batch_size);
    return -1;
}

} // extern "C"

} // namespace vanilla_transformer
