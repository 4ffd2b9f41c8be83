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
from vanilla_transformer.inference.native.memory import Arena, BufferPool
from vanilla_transformer.inference.native.shortlist import PackedShortlist
from vanilla_transformer.packed_linear import Precision, fused_projections, int8_scales
from vanilla_transformer.seq2seq_base import Seq2SeqEncoderOutput


class PackedStack:
    """The layers of an encoder or decoder, with weights in panels of outputs that the kernels compute together.

    Args:
        stack: with plain modules; later changes of its weights have no effect.
        precision: "bfloat16": weights and the inputs of products in bfloat16, summed in float32. "int8": weights in
            [-127, 127] with a scale for each output; the kernels quantize inputs to 256 levels with a scale and a zero
            point for each row, by the same integers on every CPU, and no sum overflows.
    """

    def __init__(self, stack: Any, precision: Precision, is_decoder: bool):
        self.library, self.precision = structures.load_library(), precision
        self.constants = self.library.constants()
        # Inputs of a step of the kernels.
        self.group = {"float32": 1, "bfloat16": 2, "int8": self.constants.group}[precision]
        self.arena = Arena()
        self.structure = self._pack_layers(stack, is_decoder)

    def _pack_layers(self, stack: Any, is_decoder: bool) -> Any:
        """Sets `layers` and `stride`, and returns the structure that the kernels read."""
        config = stack.config
        self.layers = (structures.Layer * len(stack.layers))(
            *(self._layer(layer, is_decoder) for layer in stack.layers)
        )
        widest = max(config.num_heads * (2 * config.d_k + config.d_v), config.d_ff, config.d_model)
        self.stride = self.row_stride(widest)
        return structures.Stack(
            layers=self.layers,
            num_layers=len(self.layers),
            **{name: getattr(config, name) for name in ("d_model", "d_ff", "num_heads", "d_k", "d_v")},
            is_pre_norm=config.norm_position == "pre",
            is_decoder=is_decoder,
            epsilon=config.layer_norm_eps,
            final_norm=self._norm(stack.norm),
            embedding_norm=self._norm(stack.input_embedding.norm),
        )

    def _layer(self, layer: Any, is_decoder: bool) -> structures.Layer:
        attention, network = layer.self_attention, layer.feed_forward
        linears = {
            "query_key_value": fused_projections(attention, ("q_proj", "k_proj", "v_proj")),
            "output": (attention.out_proj.weight, attention.out_proj.bias),
            "linear_1": (network.linear_1.weight, network.linear_1.bias),
            "linear_2": (network.linear_2.weight, network.linear_2.bias),
        }
        norms = [layer.self_attention_norm, layer.self_attention_norm, layer.feed_forward_norm]
        if is_decoder:
            attention = layer.cross_attention
            linears["cross_query"] = fused_projections(attention, ("q_proj",))
            linears["cross_key_value"] = fused_projections(attention, ("k_proj", "v_proj"))
            linears["cross_output"] = (attention.out_proj.weight, attention.out_proj.bias)
            norms[1] = layer.cross_attention_norm
        packed = {name: self.pack(*parameters) for name, parameters in linears.items()}
        return structures.Layer(**packed, norms=(structures.Norm * 3)(*map(self._norm, norms)))

    def pack(self, weight: torch.Tensor, bias: torch.Tensor | None) -> structures.Linear:
        """`weight` `(outputs, inputs)`, `bias` `(outputs)`."""
        outputs, inputs = weight.shape
        rows, panel_width = self.padded(outputs), self.constants.panel_width
        padded = nn.functional.pad(weight.detach().float(), (0, 0, 0, rows - outputs))  # (rows, inputs)
        scale = sums = None
        if self.precision == "int8":
            scale = int8_scales(padded)  # (rows)
            padded = (padded / scale[:, None]).round().to(torch.int8)
            sums = padded.sum(dim=1, dtype=torch.int32)  # (rows)
        elif self.precision == "bfloat16":
            padded = padded.bfloat16()
        padded = nn.functional.pad(padded, (0, -inputs % self.group))
        panels = padded.view(rows // panel_width, panel_width, -1, self.group).transpose(1, 2)
        full_bias = torch.zeros(rows)
        if bias is not None:
            full_bias[:outputs] = bias.detach()
        addresses = (
            None if tensor is None else self.arena.place(tensor) for tensor in (panels, scale, sums, full_bias)
        )
        return structures.Linear(*addresses, inputs, outputs, self.precision == "bfloat16")

    def _norm(self, norm: nn.Module) -> structures.Norm:
        if not isinstance(norm, nn.LayerNorm):  # an Identity
            return structures.Norm()
        return structures.Norm(*(self.arena.place(tensor.detach().float()) for tensor in (norm.weight, norm.bias)))

    def padded(self, width: int) -> int:
        """The next multiple of a panel's width, and so of a vector's."""
        return -(-width // self.constants.panel_width) * self.constants.panel_width

    def row_stride(self, widest: int) -> int:
        """The distance of two rows of `ScratchMemory`.

        With one more panel it is no power of two: rows would evict one another from the cache.
        """
        return self.padded(widest) + self.constants.panel_width


class ScratchMemory:
    """Intermediate results of one call.

    Args:
        rows: of states, at most.
        max_positions: that a row attends to.
    """

    def __init__(self, stack: PackedStack, buffers: BufferPool, rows: int, max_positions: int):
        threads, constants = torch.get_num_threads(), stack.constants
        max_positions = stack.padded(max_positions)
        rows = max(rows, threads * constants.max_replicated_rows)
        quantized = (0, 0) if stack.precision == "float32" else (rows, stack.stride)
        self.tensors = (
            *buffers.take(self, 5, rows, stack.stride),
            torch.empty(threads, constants.max_queries_per_tile, max_positions),  # scores
            torch.empty(threads, max_positions, dtype=torch.long),  # addresses
            buffers.take(self, *quantized, dtype=torch.int16),  # the widest
            torch.empty(rows, 2),  # scales and zero points
        )
        addresses = (tensor.data_ptr() for tensor in self.tensors)
        self.structure = structures.Scratch(*addresses, stride=stack.stride, max_positions=max_positions)


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


def address(tensor: torch.Tensor | None) -> c_void_p:
    return c_void_p(None if tensor is None else tensor.data_ptr())


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
        self.scores_per_beam, self.tokens_per_beam = torch.empty(rows, 0), torch.empty(rows, 0, dtype=torch.long)
        self.row_buffer = torch.empty(2 * rows + 1, dtype=torch.int32)
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
            logits=address(self.logits),
            shortlist=None if self.shortlist is None else pointer(self.shortlist.structure),
            embedding_scale=embedding.scale,
            vocab_size=embedding.vocab_size,
            logits_stride=self.logits.shape[1],
            threads=self.threads,
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

    def topk_step(
        self, tokens: torch.Tensor, beam_scores: torch.Tensor | None, num_beams: int, eos_token_ids: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        sentences, alive = tokens.shape
        vocab_size = self.decoder.projection.outputs if self.shortlist is None else len(self.shortlist.tokens)
        k = min(num_beams * (1 + len(eos_token_ids)), alive * vocab_size)
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
        topk = structures.TopK(k, min(k, vocab_size), min(num_beams, k), len(eos_token_ids), *pointers)
        self._read(tokens, topk)
        return scores, beam_indices, next_tokens

    def _read(self, tokens: torch.Tensor, topk: structures.TopK | None) -> None:
        """Call decode_step for one token of each hypothesis: `(sentences, alive)`."""
        state, step = self.structure, self.step
        assert state.length < state.max_length
        if state.length == self.stack.constants.cache_block * len(self.cache_blocks):
            self._add_cache_block()
        tokens = tokens.contiguous()
        step.tokens, step.alive = address(tokens), tokens.shape[1]
        step.position = address(self.positions[state.length])
        step.topk = POINTER(structures.TopK)() if topk is None else pointer(topk)
        unknown = self.stack.library.decode_step(byref(step))
        if unknown >= 0:
            token = int(tokens.flatten()[unknown])
            raise IndexError(f"token {token} is not in a vocabulary of {self.decoder.projection.outputs}")
        state.length += 1
        if self.weights is not None:
            mean = self.weights[: tokens.numel()].mean(dim=1)  # of the heads
            self.attention = mean.view(*tokens.shape, -1)  # (sentences, alive, source_length)

    def _add_cache_block(self) -> None:
        config, state = self.stack.structure, self.structure
        width = config.num_heads * (config.d_k + config.d_v)
        shape = (config.num_layers, state.num_slots, self.stack.constants.cache_block, state.num_beams, width)
        self.cache_blocks.append(self.decoder.buffers.take(self, *shape))
        self.cache_addresses[len(self.cache_blocks) - 1] = self.cache_blocks[-1].data_ptr()

    def reorder(self, beam_indices: torch.Tensor) -> None:
        beam_indices = beam_indices.contiguous()
        self.stack.library.reorder(
            byref(self.structure), address(beam_indices), beam_indices.shape[1], address(self.reorder_buffer)
        )

    def select(self, batch_indices: torch.Tensor) -> None:
        self.slots = self.slots[batch_indices]
        self.structure.slots, self.structure.batch_size = self.slots.data_ptr(), len(batch_indices)
