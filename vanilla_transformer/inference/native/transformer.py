# SPDX-License-Identifier: Apache-2.0
"""The native engine: the Transformer's encoder, decoder and choice of tokens in transformer.cpp."""

from ctypes import CDLL, POINTER, addressof, byref, c_void_p, pointer
from typing import Any

import torch
from torch import nn

from vanilla_transformer.embeddings import positions_of_real_tokens
from vanilla_transformer.fused_decoder import additive_mask
from vanilla_transformer.inference.native import structures
from vanilla_transformer.inference.native.forks import compute_after_fork
from vanilla_transformer.inference.native.memory import BufferPool
from vanilla_transformer.inference.native.packed_stack import PackedStack, ScratchMemory, address
from vanilla_transformer.inference.native.shortlist import PackedShortlist
from vanilla_transformer.packed_linear import Precision
from vanilla_transformer.seq2seq_base import Seq2SeqEncoderOutput

MAX_STEPS = 32  # of a call


class ScaledEmbedding:
    """The input of a stack: scaled embeddings plus positions, without dropout; the kernels normalize them.

    Args:
        projection: a map that has the embeddings as weights, in float32: they are read from there, and the stack's own
            take no memory. `None`: there is none.
    """

    def __init__(self, stack: Any, library: CDLL, projection: structures.Linear | None):
        self.library, self.projection, self.scale = library, projection, stack.input_embedding.scale
        self.weight = None if projection else stack.embed_tokens.weight.detach().float()
        self.vocab_size, d_model = stack.embed_tokens.weight.shape
        self._encode_positions = stack.input_embedding.positions
        self._positions = torch.empty(0, d_model)

    def __call__(self, ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        """`(sentences, length)` twice → `(sentences, length, d_model)`."""
        embedded = self._lookup(ids) if self.weight is None else nn.functional.embedding(ids, self.weight)
        positions = nn.functional.embedding(position_ids, self.positions(ids.shape[1]))
        return torch.add(positions, embedded, alpha=self.scale)

    def _lookup(self, ids: torch.Tensor) -> torch.Tensor:
        ids, rows = ids.contiguous(), torch.empty(*ids.shape, self._positions.shape[1])
        unknown = self.library.unpack_rows(self.projection, address(ids), ids.numel(), address(rows))
        if unknown >= 0:
            raise IndexError(f"token {int(ids.flatten()[unknown])} is not in a vocabulary of {self.vocab_size}")
        return rows

    def positions(self, length: int) -> torch.Tensor:
        """At least the first `length` positions, `(length, d_model)`; kept for later calls."""
        positions = self._positions
        if len(positions) < length:
            positions = self._encode_positions(torch.arange(length), length).detach().float().contiguous()
            self._positions = positions
        return positions


class BaseNativeDecoder:
    """The part of a native decoder that both architectures have."""

    engine = "native"
    model: Any
    precision: Precision
    decoder: PackedStack
    projection: structures.Linear
    buffers: BufferPool

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.model, self.precision)

    @property
    def parallel_batches(self) -> int:
        return torch.get_num_threads()

    def pack_shortlist(self, allowed: torch.Tensor) -> PackedShortlist:
        """Pack the outputs that a batch may have.

        Args:
            allowed: whether a sentence may have a token, `(sentences, vocab_size)`.
        """
        dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}[self.precision]
        layout = self.decoder.group, dtype, self.decoder.constants.panel_width
        return PackedShortlist(self.projection, self.buffers, *layout, allowed)


class NativeDecoder(BaseNativeDecoder):
    """A `VanillaTransformerForConditionalGeneration` as `Decoder`, for every precision on a CPU.

    Args:
        model: one for which `native_unsupported_reason` is `None`. Later changes of its weights have no effect. The
            decoder holds the model only for pickles and copies, which lay out its weights of that time again.

    Raises:
        ValueError: the library cannot be compiled or loaded, here or where the decoder is unpickled.
    """

    @torch.no_grad()
    def __init__(self, model: Any, precision: Precision = "float32"):
        compute_after_fork()
        encoder, decoder = model.model.encoder, model.model.decoder
        self.model, self.precision = model, precision
        self.encoder = PackedStack(encoder, precision, is_decoder=False)
        self.decoder = PackedStack(decoder, precision, is_decoder=True)
        self.projection = self.decoder.pack(model.lm_head.weight, model.lm_head.bias)
        self.source_embedding, self.target_embedding = map(self._embedding, (encoder, decoder))
        self.buffers = BufferPool()

    def _embedding(self, stack: Any) -> ScaledEmbedding:
        is_packed = self.precision == "float32" and stack.embed_tokens.weight is self.model.lm_head.weight
        return ScaledEmbedding(stack, self.decoder.library, self.projection if is_packed else None)

    @torch.no_grad()
    def encode(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Seq2SeqEncoderOutput:
        compute_after_fork()
        sentences, length = input_ids.shape
        embedded = self.source_embedding(input_ids, positions_of_real_tokens(attention_mask)).contiguous()
        scratch = ScratchMemory(self.encoder, self.buffers, sentences * length, length)
        mask = additive_mask(attention_mask, torch.float32)
        encoded = torch.empty_like(embedded)
        self.encoder.library.encode(
            byref(self.encoder.structure),
            byref(scratch.structure),
            sentences,
            length,
            address(mask),
            address(embedded),
            address(encoded),
            torch.get_num_threads(),
        )
        return Seq2SeqEncoderOutput(encoded, attention_mask=attention_mask)

    def begin(self, *arguments: Any, **options: Any) -> "NativeDecoderState":
        return NativeDecoderState(self, *arguments, **options)


class NativeDecoderState:
    """A batch in the midst of being decoded, as `SupportsTopK` and `SupportsSelect`.

    With `allowed` `(sentences, vocab_size)` a sentence has these tokens alone: the others have no probability, and
    the engine does not compute tokens that no sentence may have.

    A sentence's memory stays in its slot, and a cache entry where it was written. `reorder` and `select` only change
    the indices that refer to them.
    """

    @torch.inference_mode()
    def __init__(
        self,
        decoder: NativeDecoder,
        encoder_outputs: Any,
        mask: torch.Tensor | None,
        max_length: int,
        beams: int,
        output_attentions: bool = False,
        allowed: torch.Tensor | None = None,
    ):
        compute_after_fork()
        encoded = encoder_outputs.last_hidden_state
        self.decoder, self.stack, self.threads = decoder, decoder.decoder, torch.get_num_threads()
        sentences, source_length, _ = encoded.shape
        rows, stack, config = sentences * beams, self.stack, self.stack.structure
        self.positions = decoder.target_embedding.positions(max_length)
        self.scratch = ScratchMemory(stack, decoder.buffers, rows, max(max_length, source_length) + 1)
        self.logits = decoder.buffers.take(self, rows, stack.padded(decoder.projection.outputs))
        self.row_buffer = torch.empty(2 * rows + 1, dtype=torch.int32)
        self._take_step_memory(rows)
        self.source = self._project_source(encoded.float().contiguous())
        self.mask, self.slots = additive_mask(mask, torch.float32), torch.arange(sentences)
        self.ancestors = torch.empty(sentences, beams, max_length, dtype=torch.int32)
        self.reorder_buffer = torch.empty(beams, max_length, dtype=torch.int32)
        self.cache_blocks: list[torch.Tensor] = []
        self.cache_addresses = (c_void_p * (-(-max_length // stack.constants.cache_block)))()
        # Zeros, for a hypothesis that is far behind may not be read, and coverage sums its weights, too.
        self.weights = torch.zeros(rows, config.num_heads, source_length) if output_attentions else None
        self.attention: torch.Tensor | None = None
        self.structure = structures.DecoderState(
            batch_size=sentences,
            num_beams=beams,
            source_length=source_length,
            num_slots=sentences,
            max_length=max_length,
            slots=address(self.slots),
            cache_blocks=addressof(self.cache_addresses),
            ancestors=address(self.ancestors),
            source=address(self.source),
            source_mask=address(self.mask),
            attention=address(self.weights),
        )
        self.shortlist = None if allowed is None else decoder.pack_shortlist(allowed)
        embedding = decoder.target_embedding
        self.step = structures.DecodeStep(
            stack=pointer(config),
            scratch=pointer(self.scratch.structure),
            state=pointer(self.structure),
            projection=pointer(decoder.projection),
            embedding=address(embedding.weight),
            row_buffer=address(self.row_buffer),
            reorder_buffer=address(self.reorder_buffer),
            logits=address(self.logits),
            shortlist=None if self.shortlist is None else pointer(self.shortlist.structure),
            embedding_scale=embedding.scale,
            vocab_size=embedding.vocab_size,
            logits_stride=self.logits.shape[1],
            threads=self.threads,
        )

    def _take_step_memory(self, rows: int) -> None:
        """For `topk_steps`, which may read up to `MAX_STEPS` tokens of `rows` hypotheses."""
        self.scores_per_beam, self.tokens_per_beam = torch.empty(rows, 0), torch.empty(rows, 0, dtype=torch.long)
        self.chosen = torch.empty(2, MAX_STEPS * rows, dtype=torch.long)  # parents and tokens
        self.chosen_scores, self.prefixes = torch.empty(rows), torch.empty(rows * MAX_STEPS, dtype=torch.long)
        self.steps = structures.Steps(
            parents=address(self.chosen[0]),
            tokens=address(self.chosen[1]),
            beam_scores=address(self.chosen_scores),
            prefixes=address(self.prefixes),
        )

    def _project_source(self, encoded: torch.Tensor) -> torch.Tensor:
        """Cross-attention's keys and values."""
        sentences, source_length, _ = encoded.shape
        stack, buffers, config = self.stack, self.decoder.buffers, self.stack.structure
        width = config.num_heads * (config.d_k + config.d_v)
        source = buffers.take(self, config.num_layers, sentences, stack.padded(source_length), width)
        scratch = ScratchMemory(stack, buffers, sentences * source_length, 1)
        stack.library.project_source(
            byref(config),
            byref(scratch.structure),
            address(encoded),
            sentences,
            source_length,
            address(source),
            self.threads,
        )
        return source

    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        self._read(tokens, None)
        if self.shortlist is None:
            return self.logits[: tokens.numel(), : self.decoder.projection.outputs]
        logits = self.logits[: tokens.numel(), : len(self.shortlist.tokens)]
        return self.shortlist.scatter(logits, self.slots.repeat_interleave(tokens.shape[1]))

    def topk_steps(
        self,
        tokens: torch.Tensor,
        beam_scores: torch.Tensor | None,
        num_beams: int,
        eos_token_ids: torch.Tensor,
        max_steps: int = 1,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
        sentences, alive = tokens.shape
        vocab_size = self.decoder.projection.outputs if self.shortlist is None else len(self.shortlist.tokens)
        wanted = 1 if beam_scores is None else num_beams * (1 + len(eos_token_ids))
        k = min(wanted, alive * vocab_size)
        if k < wanted:  # the next step may have more candidates, for which this call has no room
            max_steps = 1
        if k > self.scores_per_beam.shape[1]:
            self.scores_per_beam = torch.empty(self.logits.shape[0], k)
            self.tokens_per_beam = torch.empty(self.logits.shape[0], k, dtype=torch.long)
        scores = torch.empty(sentences, k)
        beam_indices, next_tokens = torch.empty(2, sentences, k, dtype=torch.long)
        # Locals, so that copies outlive the call that reads them.
        beam_scores = None if beam_scores is None else beam_scores.contiguous()
        eos_token_ids = eos_token_ids.contiguous()
        outputs = (self.scores_per_beam, self.tokens_per_beam, scores, beam_indices, next_tokens)
        pointers = map(address, (eos_token_ids, beam_scores, *outputs))
        steps, beams = self.steps, min(num_beams, k)
        assert max_steps == 1 or sentences * beams <= len(self.chosen_scores)
        steps.max_steps, steps.completed = min(max_steps, MAX_STEPS), 0
        topk = structures.TopK(k, min(k, vocab_size), beams, len(eos_token_ids), *pointers, pointer(steps))
        self._read(tokens, topk)
        if not steps.completed:
            return scores, beam_indices, next_tokens, None
        size = 1 + steps.completed
        prefixes = self.prefixes[: sentences * beams * size].view(sentences, beams, size)
        return scores, beam_indices, next_tokens, prefixes.clone()

    def _read(self, tokens: torch.Tensor, topk: structures.TopK | None) -> None:
        """Call decode_step for a token of each hypothesis, `(sentences, alive)`, and those that it chooses."""
        state, step, steps = self.structure, self.step, self.steps
        assert state.length < state.max_length
        end = self.stack.constants.cache_block * len(self.cache_blocks)
        if state.length == end:
            end += self._add_cache_block()
        steps.max_steps = min(steps.max_steps, end - state.length, state.max_length - state.length)
        tokens = tokens.contiguous()
        step.tokens, step.alive = address(tokens), tokens.shape[1]
        step.position = address(self.positions[state.length])
        step.topk = POINTER(structures.TopK)() if topk is None else pointer(topk)
        unknown = self.stack.library.decode_step(byref(step))
        if unknown >= 0:
            token = int(tokens.flatten()[unknown])
            raise IndexError(f"token {token} is not in a vocabulary of {self.decoder.projection.outputs}")
        if self.weights is not None:
            mean = self.weights[: len(tokens) * step.alive].mean(dim=1)  # of the heads
            self.attention = mean.view(-1, step.alive, mean.shape[1])  # (sentences, alive, source_length)

    def _add_cache_block(self) -> int:
        """Returns the number of target tokens that it has room for."""
        config, state = self.stack.structure, self.structure
        width = config.num_heads * (config.d_k + config.d_v)
        shape = (config.num_layers, state.num_slots, self.stack.constants.cache_block, state.num_beams, width)
        self.cache_blocks.append(self.decoder.buffers.take(self, *shape))
        self.cache_addresses[len(self.cache_blocks) - 1] = self.cache_blocks[-1].data_ptr()
        return self.stack.constants.cache_block

    def reorder(self, beam_indices: torch.Tensor) -> None:
        beam_indices = beam_indices.contiguous()
        self.stack.library.reorder(
            byref(self.structure), address(beam_indices), beam_indices.shape[1], address(self.reorder_buffer)
        )

    def select(self, batch_indices: torch.Tensor) -> None:
        self.slots = self.slots[batch_indices]
        self.structure.slots, self.structure.batch_size = self.slots.data_ptr(), len(batch_indices)
