# SPDX-License-Identifier: Apache-2.0
"""The Transformer's inference in transformer.cpp: its weights, its memory, and the calls."""

import ctypes
from ctypes import POINTER, Structure, c_float, c_int32, c_void_p
from typing import Any, Literal

import torch
from torch import nn

from vanilla_transformer.embeddings import positions_of_real_tokens
from vanilla_transformer.inference.native.compiler import library
from vanilla_transformer.inference.native.forks import compute_after_fork
from vanilla_transformer.inference.native.memory import Arena, Buffers
from vanilla_transformer.seq2seq_base import Seq2SeqEncoderOutput

NativePrecision = Literal["float32", "int8"]
BLOCK, TOGETHER, FEW = 32, 4, 4  # as in layers.h and linear.h
WHOLE = 16  # numbers: a multiple of every vector
INT8_LEVELS = 127


class _Linear(Structure):
    _fields_ = [
        ("weight", c_void_p),
        ("scale", c_void_p),
        ("bias", c_void_p),
        ("inputs", c_int32),
        ("outputs", c_int32),
    ]


class _Norm(Structure):
    _fields_ = [("weight", c_void_p), ("bias", c_void_p)]


class _Layer(Structure):
    _fields_ = [
        *((name, _Linear) for name in ("query_key_value", "output")),
        *((name, _Linear) for name in ("cross_query", "cross_key_value", "cross_output")),
        *((name, _Linear) for name in ("linear_1", "linear_2")),
        ("norms", _Norm * 3),
    ]


class _Stack(Structure):
    _fields_ = [
        ("layers", POINTER(_Layer)),
        *((name, c_int32) for name in ("num_layers", "d_model", "d_ff", "num_heads", "d_k", "d_v")),
        *((name, c_int32) for name in ("is_pre_norm", "is_decoder")),
        ("epsilon", c_float),
        ("last", _Norm),
    ]


class _Scratch(Structure):
    _fields_ = [
        *((name, c_void_p) for name in ("states", "normed", "wide", "mixed", "projected", "scores", "entries")),
        *((name, c_void_p) for name in ("quantized", "steps")),
        *((name, c_int32) for name in ("stride", "longest")),
    ]


class _Target(Structure):
    _fields_ = [
        *((name, c_int32) for name in ("sentences", "beams", "length")),
        *((name, c_int32) for name in ("source_length", "slots", "longest")),
        *((name, c_void_p) for name in ("slot", "cache", "ancestors", "source", "mask", "attention")),
    ]


class _Ranking(Structure):
    _fields_ = [
        *((name, c_int32) for name in ("count", "each", "beams", "num_ends")),
        *((name, c_void_p) for name in ("ends", "totals", "best", "index", "scores", "parents", "found")),
    ]


class Stack:
    """The layers of an encoder or decoder, in panels of outputs that the machine computes at once.

    Args:
        stack: with plain modules; later changes of its weights have no effect.
        precision: "int8": a scale for each output, and the weights as whole numbers up to 127; what they are
            multiplied with has about 13 bits, and a scale for each row.
    """

    def __init__(self, stack: nn.Module, precision: NativePrecision, is_decoder: bool):
        config: Any = stack.config
        self.library, self.precision = library(), precision
        self.panel: int = self.library.panel_width()
        self.arena = Arena()
        layers: Any = stack.layers
        self.layers = (_Layer * len(layers))(*(self._layer(layer, is_decoder) for layer in layers))
        widths = (config.num_heads * (2 * config.d_k + config.d_v), config.d_ff, config.d_model)
        self.stride = self.padded(max(widths)) + self.panel  # no power of two: rows would meet in a cache
        self.structure = _Stack(
            layers=self.layers,
            num_layers=len(layers),
            **{name: getattr(config, name) for name in ("d_model", "d_ff", "num_heads", "d_k", "d_v")},
            is_pre_norm=config.norm_position == "pre",
            is_decoder=is_decoder,
            epsilon=config.layer_norm_eps,
            last=self._norm(stack.norm) if isinstance(stack.norm, nn.LayerNorm) else _Norm(),
        )

    def _layer(self, layer: Any, is_decoder: bool) -> _Layer:
        own, network = layer.self_attention, layer.feed_forward
        parts = {
            "query_key_value": self.linear(*self._projections(own, "qkv")),
            "output": self.linear(own.out_proj.weight, own.out_proj.bias),
            "linear_1": self.linear(network.linear_1.weight, network.linear_1.bias),
            "linear_2": self.linear(network.linear_2.weight, network.linear_2.bias),
        }
        norms = [layer.self_attention_norm, layer.self_attention_norm, layer.feed_forward_norm]
        if is_decoder:
            cross = layer.cross_attention
            parts["cross_query"] = self.linear(*self._projections(cross, "q"))
            parts["cross_key_value"] = self.linear(*self._projections(cross, "kv"))
            parts["cross_output"] = self.linear(cross.out_proj.weight, cross.out_proj.bias)
            norms[1] = layer.cross_attention_norm
        return _Layer(**parts, norms=(_Norm * 3)(*map(self._norm, norms)))

    @staticmethod
    def _projections(attention: Any, which: str) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Some of an attention's projections as one, with 1 / sqrt(d_k) inside that of the queries."""
        maps = [(getattr(attention, f"{one}_proj"), attention.scaling if one == "q" else 1.0) for one in which]
        weight = torch.cat([one.weight * factor for one, factor in maps])
        biases = [one.bias * factor for one, factor in maps if one.bias is not None]
        return weight, torch.cat(biases) if biases else None

    def linear(self, weight: torch.Tensor, bias: torch.Tensor | None) -> _Linear:
        """`weight` `(outputs, inputs)`, `bias` `(outputs)`."""
        outputs, inputs = weight.shape
        rows = self.padded(outputs)
        padded = nn.functional.pad(weight.detach().float(), (0, 0, 0, rows - outputs))  # (rows, inputs)
        scale = None
        if self.precision == "int8":
            scale = (padded.abs().amax(dim=1) / INT8_LEVELS).clamp(min=1e-12)  # (rows)
            padded = nn.functional.pad((padded / scale[:, None]).round().to(torch.int8), (0, inputs % 2))
            panels = padded.view(-1, self.panel, (inputs + 1) // 2, 2).transpose(1, 2)  # (panels, pairs, panel, 2)
        else:
            panels = padded.view(-1, self.panel, inputs).transpose(1, 2)  # (panels, inputs, panel)
        full_bias = torch.zeros(rows)
        if bias is not None:
            full_bias[:outputs] = bias.detach()
        addresses = (None if one is None else self.arena.place(one) for one in (panels, scale, full_bias))
        return _Linear(*addresses, inputs, outputs)

    def _norm(self, norm: nn.LayerNorm) -> _Norm:
        return _Norm(*(self.arena.place(one.detach().float()) for one in (norm.weight, norm.bias)))

    def padded(self, width: int) -> int:
        return -(-width // self.panel) * self.panel


class Scratch:
    """Memory of a call with so many rows, that attend to so many positions."""

    def __init__(self, stack: Stack, buffers: Buffers, rows: int, longest: int):
        threads = torch.get_num_threads()
        longest = -(-longest // WHOLE) * WHOLE
        rows = max(rows, threads * FEW)
        self.rows = buffers.take(self, 5, rows, stack.stride)
        quantized = (rows, stack.stride) if stack.precision == "int8" else (0, 0)
        self.quantized, self.steps = buffers.take(self, *quantized, dtype=torch.int16), torch.empty(rows)
        self.scores = torch.empty(threads, TOGETHER, longest)
        self.entries = torch.empty(threads, longest, dtype=torch.long)
        self.structure = _Scratch(
            *(one.data_ptr() for one in (*self.rows, self.scores, self.entries, self.quantized, self.steps)),
            stride=stack.stride,
            longest=longest,
        )


class NativeDecoder:
    """A whole `VanillaTransformerForConditionalGeneration` for `beam_search(…, decoder=…)`; it encodes, too.

    Args:
        model: one for which `native_unsupported_reason` is `None`; later changes of its weights have no effect.
            The decoder holds the model, which pickles and copies need.

    Raises:
        ValueError: the compiler refused, here or where it is unpickled.
    """

    @torch.no_grad()
    def __init__(self, model: Any, precision: NativePrecision = "float32"):
        compute_after_fork()
        self.model, self.precision = model, precision  # to be laid out elsewhere; neither is read here
        self.decoder = Stack(model.model.decoder, precision, is_decoder=True)
        self.encoder = Stack(model.model.encoder, precision, is_decoder=False)
        self.projection = self.decoder.linear(model.lm_head.weight, model.lm_head.bias)
        self.vocab_size = model.lm_head.weight.shape[0]
        self.buffers = Buffers()
        self.inputs = [Embedding(one) for one in (model.model.encoder, model.model.decoder)]

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles and copies hold the model; opening them lays out its current weights again."""
        return NativeDecoder, (self.model, self.precision)

    @torch.no_grad()
    def encode(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Seq2SeqEncoderOutput:
        """`(sentences, source_length)` twice → what the model's encoder returns, for `generate(encoder_outputs=…)`."""
        compute_after_fork()
        stack = self.encoder
        sentences, length = input_ids.shape
        embedded = self.inputs[0](input_ids, positions_of_real_tokens(attention_mask)).contiguous()
        scratch = Scratch(stack, self.buffers, sentences * length, length)
        mask = never_attended(attention_mask)
        encoded = torch.empty_like(embedded)
        stack.library.encode(
            ctypes.byref(stack.structure),
            ctypes.byref(scratch.structure),
            sentences,
            length,
            address(mask),
            address(embedded),
            address(encoded),
            torch.get_num_threads(),
        )
        return Seq2SeqEncoderOutput(encoded, attention_mask=attention_mask)

    def begin(
        self,
        encoder_outputs: Any,
        attention_mask: torch.Tensor | None,
        max_length: int,
        beams: int,
        output_attentions: bool = False,
    ) -> "NativeDecoderState":
        """As `FusedDecoder.begin`."""
        compute_after_fork()
        return NativeDecoderState(
            self, encoder_outputs.last_hidden_state, attention_mask, max_length, beams, output_attentions
        )


class Embedding:
    """The input of a stack: scaled embeddings and positions, without dropout."""

    def __init__(self, stack: Any):
        self.table, self.scale = stack.embed_tokens.weight.detach().float(), stack.input_embedding.scale
        self._positions = stack.input_embedding.positions
        self._known = self.table.new_empty(0, self.table.shape[1])

    def __call__(self, ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        """`(sentences, length)` twice → `(sentences, length, d_model)`."""
        embedded = nn.functional.embedding(ids, self.table)
        positions = nn.functional.embedding(position_ids, self.positions(ids.shape[1]))
        return torch.add(positions, embedded, alpha=self.scale)

    def positions(self, longest: int) -> torch.Tensor:
        """Of the first so many tokens at least, `(longest, d_model)`; those once computed are kept."""
        known = self._known
        if len(known) < longest:
            known = self._known = self._positions(torch.arange(longest), longest).detach().float().contiguous()
        return known


def never_attended(mask: torch.Tensor | None) -> torch.Tensor | None:
    """What is added to scores; finite, as the eager backend has it: a source may be only padding."""
    if mask is None or bool(mask.all()):
        return None
    return torch.zeros(mask.shape).masked_fill_(mask == 0, torch.finfo(torch.float32).min)


def address(tensor: torch.Tensor | None) -> c_void_p:
    return c_void_p(None if tensor is None else tensor.data_ptr())


class NativeDecoderState:
    """Sentences in the midst of being decoded, as `generation.DecoderState`.

    A sentence's memory stays in its slot, and an entry of the cache where it was written: what moves are small
    numbers, which say whose they are.
    """

    @torch.inference_mode()
    def __init__(
        self,
        decoder: NativeDecoder,
        encoded: torch.Tensor,
        mask: torch.Tensor | None,
        longest: int,
        beams: int,
        output_attentions: bool,
    ):
        stack = decoder.decoder
        self.decoder, self.stack, self.threads = decoder, stack, torch.get_num_threads()
        sentences, source_length, _ = encoded.shape
        config = stack.structure
        self.width = config.num_heads * (config.d_k + config.d_v)  # of keys and values
        encoded = encoded.float().contiguous()
        padded_length = -(-source_length // WHOLE) * WHOLE
        self.source = self.decoder.buffers.take(self, config.num_layers, sentences, padded_length, self.width)
        scratch = Scratch(stack, decoder.buffers, sentences * source_length, 1)
        stack.library.project_source(
            ctypes.byref(config),
            ctypes.byref(scratch.structure),
            address(encoded),
            sentences,
            source_length,
            address(self.source),
            self.threads,
        )
        self.positions = decoder.inputs[1].positions(longest)
        rows = sentences * beams
        self.scratch = Scratch(stack, decoder.buffers, rows, max(longest, source_length) + 1)
        self.logits = self.decoder.buffers.take(self, rows, stack.padded(decoder.vocab_size))
        self.best_scores, self.best_tokens = torch.empty(rows, 0), torch.empty(rows, 0, dtype=torch.long)
        self.ancestors = torch.empty(sentences, beams, longest, dtype=torch.int32)
        self.moved = torch.empty(beams, longest, dtype=torch.int32)
        self.places = torch.empty(2 * rows + 1, dtype=torch.int32)
        self.slots = torch.arange(sentences)
        self.mask = never_attended(mask)
        self.blocks: list[torch.Tensor] = []
        self.pointers = (c_void_p * (-(-longest // BLOCK)))()
        self.weights = torch.empty(rows, config.num_heads, source_length) if output_attentions else None
        self.attention: torch.Tensor | None = None
        self.target = _Target(
            sentences=sentences,
            beams=beams,
            length=0,
            source_length=source_length,
            slots=sentences,
            longest=longest,
            slot=self.slots.data_ptr(),
            cache=ctypes.addressof(self.pointers),
            ancestors=self.ancestors.data_ptr(),
            source=self.source.data_ptr(),
            mask=address(self.mask),
            attention=address(self.weights),
        )

    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        """Read a token of each hypothesis: `(sentences, beams)` → logits `(sentences * beams, vocab_size)`."""
        self._step(tokens, None)
        return self.logits[: tokens.numel(), : self.decoder.vocab_size]

    def topk_step(
        self, tokens: torch.Tensor, totals: torch.Tensor | None, beams: int, ends: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """As `generation.SupportsTopK`."""
        sentences, live = tokens.shape
        count = min(beams * (1 + len(ends)), live * self.decoder.vocab_size)
        each = min(count, self.decoder.vocab_size)
        if count > self.best_scores.shape[1]:
            self.best_scores = torch.empty(self.logits.shape[0], count)
            self.best_tokens = torch.empty(self.logits.shape[0], count, dtype=torch.long)
        scores = torch.empty(sentences, count)
        parents, found = torch.empty(2, sentences, count, dtype=torch.long)
        totals, ends = None if totals is None else totals.contiguous(), ends.contiguous()
        tensors = (ends, totals, self.best_scores, self.best_tokens, scores, parents, found)
        self._step(tokens, _Ranking(count, each, min(beams, count), len(ends), *map(address, tensors)))
        return scores, parents, found

    def _step(self, tokens: torch.Tensor, ranking: _Ranking | None) -> None:
        target, decoder, config = self.target, self.decoder, self.stack.structure
        assert target.length < target.longest
        if target.length == BLOCK * len(self.blocks):
            shape = (config.num_layers, target.slots, BLOCK, target.beams, self.width)
            self.blocks.append(self.decoder.buffers.take(self, *shape))
            self.pointers[len(self.blocks) - 1] = self.blocks[-1].data_ptr()
        tokens = tokens.contiguous()
        wrong = self.stack.library.decode(
            ctypes.byref(config),
            ctypes.byref(self.scratch.structure),
            ctypes.byref(target),
            ctypes.byref(decoder.projection),
            address(decoder.inputs[1].table),
            len(decoder.inputs[1].table),
            c_float(decoder.inputs[1].scale),
            address(self.positions[target.length]),
            address(tokens),
            tokens.shape[1],
            address(self.places),
            address(self.logits),
            self.logits.shape[1],
            None if ranking is None else ctypes.byref(ranking),
            self.threads,
        )
        if wrong >= 0:
            raise IndexError(f"token {int(tokens.flatten()[wrong])} is not in a vocabulary of {decoder.vocab_size}")
        target.length += 1
        if self.weights is not None:
            weights = self.weights[: tokens.numel()].mean(dim=1)  # of the heads
            self.attention = weights.view(*tokens.shape, -1)  # (sentences, beams, source_length)

    def reorder(self, beam_indices: torch.Tensor) -> None:
        """Hypothesis i of a sentence continues its former hypothesis `beam_indices[:, i]`; `(sentences, beams)`."""
        beam_indices = beam_indices.contiguous()
        self.stack.library.follow(
            ctypes.byref(self.target), address(beam_indices), beam_indices.shape[1], address(self.moved)
        )

    def select(self, batch_indices: torch.Tensor) -> None:
        """Go on with these sentences in this order; `(sentences)`."""
        self.slots = self.slots[batch_indices]
        self.target.slot, self.target.sentences = self.slots.data_ptr(), len(batch_indices)
