// SPDX-License-Identifier: Apache-2.0
// The cells of torch.nn.RNN, GRU and LSTM, and the attention of Bahdanau and Luong.

#pragma once

#include "layers.h"

namespace vanilla_transformer {

enum Cell : int32_t { kTanh, kGru, kLstm };
enum InputFeeding : int32_t { kNothing, kContext, kAttentional };

struct RecurrentLayer {
    Linear input;     // W x + b for all directions; the gates are in torch's order
    Linear hidden[2]; // U h + b', one for each direction
    int32_t has_residual;
};

struct RecurrentStack {
    const RecurrentLayer *layers;
    int32_t num_layers, cell, directions, is_reversed, input_size, hidden_size;
};

struct RecurrentDecoder {
    RecurrentStack stack;
    Linear keys, query, readout, projection; // without a weight: no attention, multiplicative, the state is read out
    const float *score;                      // additive attention's v, (hidden_size)
    const float *embedding;                  // (vocab_size, embedding_size)
    int32_t embedding_size, encoder_width, input_feeding, vocab_size;
};

// Sentences that are being decoded. A sentence's source stays in its slot. A step reads the states of `current`, and
// writes to the others. Parts: each layer's hidden states, each layer's cell states, the attentional vectors.
struct RecurrentState {
    int32_t batch_size, source_length, num_rows, stride, current;
    float *states;        // (2, parts, num_rows, stride)
    const int64_t *slots; // each sentence's, (batch_size)
    const float *source;  // each slot's keys (hidden_size, padded_length), values (source_length, value_width)
    const float *source_mask; // added to scores, (slots, source_length), or nullptr
    float *attention;         // (batch_size * alive, source_length), or nullptr
};

// The number of gates of a cell, each as wide as the state.
static inline int count_gates(int cell) { return cell == kGru ? 3 : cell == kLstm ? 4 : 1; }

// Whole tiles, so that the mean of the values has no remainder.
static inline int value_width(int encoder_width) { return (encoder_width + NR - 1) / NR * NR; }

// One step of torch's cell from W x + b (`input`) and U h + b' (`recurrent`). `next` may be `hidden`, `next_cell` may
// be `cell_state`. All are padded to whole vectors.
static void step_cell(int cell, int width, const float *input, const float *recurrent, const float *hidden,
                      const float *cell_state, float *next, float *next_cell) {
    for (int i = 0; i < width; i += kLanes) {
        auto sum = [&](int gate) { return load(input + gate * width + i) + load(recurrent + gate * width + i); };
        if (cell == kGru) {
            VecF32 reset = sigmoid(sum(0)), update = sigmoid(sum(1));
            VecF32 fresh = tanh(load(input + 2 * width + i) + reset * load(recurrent + 2 * width + i));
            store(next + i, fresh + update * (load(hidden + i) - fresh));
        } else if (cell == kLstm) {
            VecF32 kept = sigmoid(sum(1)) * load(cell_state + i) + sigmoid(sum(0)) * tanh(sum(2));
            store(next_cell + i, kept);
            store(next + i, sigmoid(sum(3)) * tanh(kept));
        } else
            store(next + i, tanh(sum(0)));
    }
}

// Bahdanau et al. (2015): the scores v^T tanh(q + k) of one query for all positions, (padded_length).
static void additive_scores(const float *query, const float *keys, const float *score, int length, int width,
                            float *scores) {
    int padded = padded_length(length);
    for (int t = 0; t < padded; t += kLanes) {
        VecF32 sums[2] = {}; // a sum waits for the one before it
        for (int k = 0; k < width; k++)
            sums[k % 2] += tanh(load(keys + int64_t(k) * padded + t) + query[k]) * score[k];
        store(scores + t, sums[0] + sums[1]);
    }
}

// Every thread: the context of each row, from `query` to `scratch->context`. Barriers at both ends.
static void attend_to_source(const RecurrentDecoder *decoder, const Scratch *scratch, const RecurrentState *state,
                             const Rows *rows, const float *query) {
    int threads = omp_get_num_threads(), thread = omp_get_thread_num();
    int length = state->source_length, padded = padded_length(length);
    int d_k = decoder->stack.hidden_size, d_v = value_width(decoder->encoder_width);
    int64_t stride = scratch->stride, groups = rows->num_groups;
    float *scores = scratch->scores + int64_t(thread) * kMaxQueriesPerTile * scratch->max_positions;
#pragma omp barrier
    if (decoder->query.weight) {
        linear(scratch, &decoder->query, query, stride, rows->count, scratch->update, stride, false);
        query = scratch->update;
#pragma omp barrier
    }
    for (int64_t group = groups * thread / threads; group < groups * (thread + 1) / threads; group++) {
        int64_t row = rows->group_start[group], slot = state->slots[rows->hypothesis[row] / rows->alive];
        int queries = rows->group_start[group + 1] - row;
        const float *source = state->source + slot * (int64_t(padded) * d_k + int64_t(length) * d_v);
        const float *mask = state->source_mask ? state->source_mask + slot * length : nullptr;
        float *context = scratch->context + row * stride;
        if (decoder->query.weight)
            for (int q = 0; q < queries; q++) {
                float *own = scores + int64_t(q) * padded;
                additive_scores(query + (row + q) * stride, source, decoder->score, length, d_k, own);
                average_values<1>(source + int64_t(padded) * d_k, stride, length, d_v, mask, 0, own,
                                  context + q * stride);
            }
        else
            attend_tile(queries, query + row * stride, stride, source, length, d_k, d_v, mask, scores, context);
        for (int q = 0; state->attention && q < queries; q++)
            memcpy(state->attention + int64_t(rows->hypothesis[row + q]) * length, scores + int64_t(q) * padded,
                   length * sizeof(float));
    }
#pragma omp barrier
}

} // namespace vanilla_transformer
