// SPDX-License-Identifier: Apache-2.0
// Sizes and offsets of the structures that structures.py mirrors, which Python compares when it loads the library.

#pragma once

#include <cstddef>

#include "cells.h"
#include "topk.h"

namespace vanilla_transformer {

// Numbers that the caller needs to lay out weights and memory.
struct Constants {
    int32_t panel_width, group, cache_block, max_queries_per_tile, max_replicated_rows;
};

// The tokens that the sentences of a batch may have. The logits are of these alone.
struct Shortlist {
    Linear projection;     // the outputs of the whole one for `tokens`
    const int64_t *tokens; // ascending, (projection.outputs)
    const float *mask;     // 0, or -infinity where a sentence may not have a token, (num_slots, projection.outputs)
};

// One step of decoding: a token of each hypothesis. With `topk` there may be more steps, whose tokens the call chooses.
// Then `tokens`, `alive`, `position` and the scores in `topk` are those of the last step when the call returns.
struct DecodeStep {
    const Stack *stack;
    const Scratch *scratch;
    DecoderState *state;
    const Linear *projection; // to the vocabulary
    const float *embedding;   // (vocab_size, d_model); nullptr: the weights of `projection`
    const float *position;    // of this token, (d_model)
    const int64_t *tokens;    // (batch_size, alive)
    int32_t *row_buffer;      // 2 * batch_size * num_beams + 1
    int32_t *reorder_buffer;  // (num_beams, max_length)
    float *logits;            // (batch_size * alive, logits_stride); undefined after a step with `topk`
    TopK *topk;               // nullptr: all logits are wanted, without the mask of `shortlist`
    const Shortlist *shortlist; // nullptr: every sentence may have every token
    float embedding_scale;
    int32_t vocab_size, logits_stride, alive, threads;
};

// One step of an RNN, or more of them, as DecodeStep.
struct RecurrentStep {
    const RecurrentDecoder *decoder;
    const Scratch *scratch;
    RecurrentState *state;
    const int64_t *tokens;  // (batch_size, alive)
    const int64_t *parents; // the row of `states` that each hypothesis continues, (batch_size, alive)
    int64_t *parent_buffer; // (batch_size, num_beams)
    int32_t *row_buffer;    // 2 * batch_size * num_beams + 1
    float *logits;          // as in DecodeStep
    TopK *topk;             // as in DecodeStep
    const Shortlist *shortlist; // as in DecodeStep
    int32_t logits_stride, alive, threads;
};

// A field's offset and size in bytes. Without a field: the size of the whole structure.
struct FieldLayout {
    const char *structure, *field;
    int32_t offset, size;
};

#define STRUCTURE(type) {#type, "", 0, sizeof(type)}
#define FIELD(type, field) {#type, #field, offsetof(type, field), sizeof(type::field)}

// clang-format off
static const FieldLayout kLayout[] = {
    STRUCTURE(Constants), FIELD(Constants, panel_width), FIELD(Constants, group),
        FIELD(Constants, cache_block), FIELD(Constants, max_queries_per_tile), FIELD(Constants, max_replicated_rows),
    STRUCTURE(Linear), FIELD(Linear, weight), FIELD(Linear, scale), FIELD(Linear, sums), FIELD(Linear, bias),
        FIELD(Linear, inputs), FIELD(Linear, outputs), FIELD(Linear, is_bfloat16),
    STRUCTURE(Norm), FIELD(Norm, weight), FIELD(Norm, bias),
    STRUCTURE(Layer), FIELD(Layer, query_key_value), FIELD(Layer, output), FIELD(Layer, cross_query),
        FIELD(Layer, cross_key_value), FIELD(Layer, cross_output), FIELD(Layer, linear_1), FIELD(Layer, linear_2),
        FIELD(Layer, norms),
    STRUCTURE(Stack), FIELD(Stack, layers), FIELD(Stack, num_layers), FIELD(Stack, d_model), FIELD(Stack, d_ff),
        FIELD(Stack, num_heads), FIELD(Stack, d_k), FIELD(Stack, d_v), FIELD(Stack, is_pre_norm),
        FIELD(Stack, is_decoder), FIELD(Stack, epsilon), FIELD(Stack, final_norm),
        FIELD(Stack, embedding_norm),
    STRUCTURE(RecurrentLayer), FIELD(RecurrentLayer, input), FIELD(RecurrentLayer, hidden),
        FIELD(RecurrentLayer, has_residual),
    STRUCTURE(RecurrentStack), FIELD(RecurrentStack, layers), FIELD(RecurrentStack, num_layers),
        FIELD(RecurrentStack, cell), FIELD(RecurrentStack, directions), FIELD(RecurrentStack, is_reversed),
        FIELD(RecurrentStack, input_size), FIELD(RecurrentStack, hidden_size),
    STRUCTURE(RecurrentDecoder), FIELD(RecurrentDecoder, stack), FIELD(RecurrentDecoder, keys),
        FIELD(RecurrentDecoder, query), FIELD(RecurrentDecoder, readout), FIELD(RecurrentDecoder, projection),
        FIELD(RecurrentDecoder, score), FIELD(RecurrentDecoder, embedding), FIELD(RecurrentDecoder, embedding_size),
        FIELD(RecurrentDecoder, encoder_width), FIELD(RecurrentDecoder, input_feeding),
        FIELD(RecurrentDecoder, vocab_size),
    STRUCTURE(RecurrentState), FIELD(RecurrentState, batch_size), FIELD(RecurrentState, source_length),
        FIELD(RecurrentState, num_rows), FIELD(RecurrentState, stride), FIELD(RecurrentState, current),
        FIELD(RecurrentState, states), FIELD(RecurrentState, slots), FIELD(RecurrentState, source),
        FIELD(RecurrentState, source_mask), FIELD(RecurrentState, attention),
    STRUCTURE(RecurrentStep), FIELD(RecurrentStep, decoder), FIELD(RecurrentStep, scratch),
        FIELD(RecurrentStep, state), FIELD(RecurrentStep, tokens), FIELD(RecurrentStep, parents),
        FIELD(RecurrentStep, parent_buffer), FIELD(RecurrentStep, row_buffer), FIELD(RecurrentStep, logits),
        FIELD(RecurrentStep, topk), FIELD(RecurrentStep, shortlist), FIELD(RecurrentStep, logits_stride), FIELD(RecurrentStep, alive),
        FIELD(RecurrentStep, threads),
    STRUCTURE(Scratch), FIELD(Scratch, states), FIELD(Scratch, normed), FIELD(Scratch, wide), FIELD(Scratch, context),
        FIELD(Scratch, update), FIELD(Scratch, scores), FIELD(Scratch, entries), FIELD(Scratch, quantized),
        FIELD(Scratch, row_scales), FIELD(Scratch, stride), FIELD(Scratch, max_positions),
    STRUCTURE(DecoderState), FIELD(DecoderState, batch_size), FIELD(DecoderState, num_beams),
        FIELD(DecoderState, length), FIELD(DecoderState, source_length), FIELD(DecoderState, num_slots),
        FIELD(DecoderState, max_length), FIELD(DecoderState, slots), FIELD(DecoderState, cache_blocks),
        FIELD(DecoderState, ancestors), FIELD(DecoderState, source), FIELD(DecoderState, source_mask),
        FIELD(DecoderState, attention),
    STRUCTURE(TopK), FIELD(TopK, k), FIELD(TopK, k_per_beam), FIELD(TopK, num_beams), FIELD(TopK, num_eos_tokens),
        FIELD(TopK, eos_token_ids), FIELD(TopK, beam_scores), FIELD(TopK, scores_per_beam),
        FIELD(TopK, tokens_per_beam), FIELD(TopK, scores), FIELD(TopK, beam_indices), FIELD(TopK, tokens),
        FIELD(TopK, steps),
    STRUCTURE(Steps), FIELD(Steps, max_steps), FIELD(Steps, completed), FIELD(Steps, parents), FIELD(Steps, tokens),
        FIELD(Steps, beam_scores), FIELD(Steps, prefixes),
    STRUCTURE(Shortlist), FIELD(Shortlist, projection), FIELD(Shortlist, tokens), FIELD(Shortlist, mask),
    STRUCTURE(DecodeStep), FIELD(DecodeStep, stack), FIELD(DecodeStep, scratch), FIELD(DecodeStep, state),
        FIELD(DecodeStep, projection), FIELD(DecodeStep, embedding), FIELD(DecodeStep, position),
        FIELD(DecodeStep, tokens), FIELD(DecodeStep, row_buffer), FIELD(DecodeStep, reorder_buffer),
        FIELD(DecodeStep, logits), FIELD(DecodeStep, topk),
        FIELD(DecodeStep, shortlist), FIELD(DecodeStep, embedding_scale), FIELD(DecodeStep, vocab_size),
        FIELD(DecodeStep, logits_stride), FIELD(DecodeStep, alive), FIELD(DecodeStep, threads),
    {nullptr, nullptr, 0, 0},
};
// clang-format on

#undef STRUCTURE
#undef FIELD

} // namespace vanilla_transformer
