# SPDX-License-Identifier: Apache-2.0
"""The native engine for RNNs: encoder, decoder and choice of tokens in rnn.h."""

import copy
from ctypes import POINTER, byref, pointer
from typing import Any

import torch
from torch import nn

from vanilla_transformer.fused_decoder import additive_mask
from vanilla_transformer.inference.native import structures
from vanilla_transformer.inference.native.forks import compute_after_fork
from vanilla_transformer.inference.native.memory import BufferPool
from vanilla_transformer.inference.native.packed_stack import PackedStack, ScratchMemory, address
from vanilla_transformer.inference.native.transformer import BaseNativeDecoder, NativeDecoderState
from vanilla_transformer.modeling_rnn_seq2seq import RNNSeq2SeqDecoder, RNNSeq2SeqEncoderOutput
from vanilla_transformer.packed_linear import Precision

CELLS = {"tanh": 0, "gru": 1, "lstm": 2}  # as the kernels number them
GATES = {"tanh": 1, "gru": 3, "lstm": 4}
INPUT_FEEDING = {"none": 0, "context": 1, "attentional": 2}


class PackedRecurrentStack(PackedStack):
    """The recurrent layers of an encoder or decoder, packed as a `PackedStack`; `stack` is the module that has them."""

    def _pack_layers(self, stack: Any, is_decoder: bool) -> structures.RecurrentStack:
        config, layers = stack.config, stack.stack.layers
        self.layers = (structures.RecurrentLayer * len(layers))(*map(self._recurrent_layer, layers))
        directions, width, input_size = layers[0].directions, config.hidden_size, layers[0].recurrence.input_size
        # A decoder's row has the context in whole panels, then the readout's input and output.
        widest = max(directions * GATES[config.cell] * width, input_size, self.padded(config.encoder_width) + width)
        self.stride = self.row_stride(max(widest, config.embedding_size))
        return structures.RecurrentStack(
            layers=self.layers,
            num_layers=len(layers),
            cell=CELLS[config.cell],
            directions=directions,
            is_reversed=not is_decoder and config.reverse_source,
            input_size=input_size,
            hidden_size=width,
        )

    def _recurrent_layer(self, layer: Any) -> structures.RecurrentLayer:
        weights = layer.recurrence.all_weights  # each direction's W, U, b, b'
        inputs = self.pack(torch.cat([own[0] for own in weights]), torch.cat([own[2] for own in weights]))
        hidden = (structures.Linear * 2)(*(self.pack(own[1], own[3]) for own in weights))
        return structures.RecurrentLayer(inputs, hidden, layer.has_residual)


class NativeRecurrentDecoder(BaseNativeDecoder):
    """An `RNNSeq2SeqForConditionalGeneration` as `Decoder`, for every precision on a CPU.

    PyTorch computes the bridge, once for each sentence, in float32. Arguments and errors are those of `NativeDecoder`.
    """

    @torch.no_grad()
    def __init__(self, model: Any, precision: Precision = "float32"):
        compute_after_fork()
        encoder, decoder, config = model.model.encoder, model.model.decoder, model.config
        self.model, self.precision, self.config = model, precision, config
        self.encoder = PackedRecurrentStack(encoder, precision, is_decoder=False)
        self.decoder = packed = PackedRecurrentStack(decoder, precision, is_decoder=True)
        self.bridge = copy.deepcopy(decoder.bridge).float().eval()
        self.source_embedding = encoder.embed_tokens.weight.detach().float()
        self.target_embedding = decoder.embed_tokens.weight.detach().float().contiguous()
        attention, readout = decoder.attention, decoder.readout
        self.score = attention.v.weight.detach().float().clone() if config.attention == "additive" else None
        linears = {"keys": getattr(attention, "k_proj", None), "query": getattr(attention, "q_proj", None)}
        linears |= {"readout": None if readout.is_state else readout.linear, "projection": model.lm_head}
        self.structure = structures.RecurrentDecoder(
            stack=packed.structure,
            **{name: packed.pack(part.weight, part.bias) for name, part in linears.items() if part is not None},
            score=address(self.score),
            embedding=address(self.target_embedding),
            embedding_size=config.embedding_size,
            encoder_width=config.encoder_width,
            input_feeding=INPUT_FEEDING[config.input_feeding],
            vocab_size=len(self.target_embedding),
        )
        self.projection, self.buffers = self.structure.projection, BufferPool()

    @torch.no_grad()
    def encode(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> RNNSeq2SeqEncoderOutput:
        compute_after_fork()
        (sentences, length), stack = input_ids.shape, self.encoder.structure
        tokens, types_of = input_ids.unique(return_inverse=True)
        embedded = nn.functional.embedding(tokens, self.source_embedding)
        mask = has_read = None
        if not bool(attention_mask.all()):
            mask = attention_mask != 0
            # As the module, a sentence without tokens reads one position, and its state stays 0.
            has_read = mask.any(dim=1)
            mask[:, 0] |= ~has_read
        scratch = ScratchMemory(self.encoder, self.buffers, sentences * max(length, stack.directions), 1)
        encoded = torch.empty(sentences, length, self.config.encoder_width)
        finals = torch.empty(1 + (self.config.cell == "lstm"), sentences, stack.num_layers, self.config.encoder_width)
        self.encoder.library.recurrent_encode(
            byref(stack),
            byref(scratch.structure),
            sentences,
            length,
            address(mask),
            address(types_of),
            address(embedded),
            len(tokens),
            address(encoded),
            address(finals[0]),
            address(finals[1] if len(finals) > 1 else None),
            torch.get_num_threads(),
        )
        if has_read is not None:
            finals *= has_read[:, None, None]
        names = ("final_hidden", "final_cell_state")
        return RNNSeq2SeqEncoderOutput(
            last_hidden_state=encoded, attention_mask=attention_mask, **dict(zip(names, finals, strict=False))
        )

    def begin(self, *arguments: Any, **options: Any) -> "NativeRecurrentState":
        return NativeRecurrentState(self, *arguments, **options)


class NativeRecurrentState(NativeDecoderState):
    """A batch in the midst of being decoded, as `SupportsTopK` and `SupportsSelect`.

    A sentence's source stays in its slot. A step reads the state of each hypothesis from the row of its parent, so that
    `reorder` and `select` only change the numbers of rows.
    """

    @torch.inference_mode()
    def __init__(
        self,
        decoder: NativeRecurrentDecoder,
        encoder_outputs: Any,
        mask: torch.Tensor | None,
        max_length: int,
        beams: int,
        output_attentions: bool = False,
        allowed: torch.Tensor | None = None,
    ):
        compute_after_fork()
        source = RNNSeq2SeqDecoder.check_source(encoder_outputs)
        assert source.last_hidden_state is not None
        encoded = source.last_hidden_state.float().contiguous()
        (sentences, source_length, _), config = encoded.shape, decoder.config
        if output_attentions and config.attention == "none":
            raise ValueError(
                "attention='none': the decoder does not look at the source, and a coverage penalty needs one that does "
                "('additive' or 'multiplicative')"
            )
        self.decoder, self.stack, self.threads = decoder, decoder.decoder, torch.get_num_threads()
        rows, stack, buffers = sentences * beams, self.stack, decoder.buffers
        self.scratch = ScratchMemory(stack, buffers, max(rows, sentences * source_length), source_length)
        self.row_buffer = torch.empty(2 * rows + 1, dtype=torch.int32)
        self.logits = buffers.take(self, rows, stack.padded(decoder.projection.outputs))
        self.parent_buffer = torch.empty(rows, dtype=torch.long)
        self._take_step_memory(rows)
        self.mask = additive_mask(source.attention_mask if mask is None else mask, torch.float32)
        self.slots = torch.arange(sentences)
        self.parents = self.slots[:, None]  # (sentences, alive)
        self.source = None if config.attention == "none" else self._project_source(encoded)
        self.states = self._first_states(source, rows)
        self.weights = torch.zeros(rows, source_length) if output_attentions else None
        self.attention: torch.Tensor | None = None
        self.structure = structures.RecurrentState(
            batch_size=sentences,
            source_length=source_length,
            num_rows=rows,
            stride=self.states.shape[-1],
            states=address(self.states),
            slots=address(self.slots),
            source=address(self.source),
            source_mask=address(self.mask),
            attention=address(self.weights),
        )
        self.shortlist = None if allowed is None else decoder.pack_shortlist(allowed)
        self.step = structures.RecurrentStep(
            decoder=pointer(decoder.structure),
            scratch=pointer(self.scratch.structure),
            state=pointer(self.structure),
            parent_buffer=address(self.parent_buffer),
            row_buffer=address(self.row_buffer),
            logits=address(self.logits),
            shortlist=None if self.shortlist is None else pointer(self.shortlist.structure),
            logits_stride=self.logits.shape[1],
            threads=self.threads,
        )

    def _project_source(self, encoded: torch.Tensor) -> torch.Tensor:
        """The attention's keys and values."""
        sentences, source_length, width = encoded.shape
        stack, buffers = self.stack, self.decoder.buffers
        size = stack.padded(source_length) * stack.structure.hidden_size + source_length * stack.padded(width)
        source = buffers.take(self, sentences, size)
        stack.library.recurrent_project_source(
            byref(self.decoder.structure),
            byref(self.scratch.structure),
            address(encoded),
            sentences,
            source_length,
            address(source),
            self.threads,
        )
        return source

    def _first_states(self, source: RNNSeq2SeqEncoderOutput, rows: int) -> torch.Tensor:
        """Memory for the states of two steps, with those before the first token: `(2, parts, rows, width)`."""
        config, (sentences, layers) = self.decoder.config, (len(self.slots), self.stack.structure.num_layers)
        final = {"hidden": source.final_hidden, "cell_state": source.final_cell_state}
        first = self.decoder.bridge({name: part.float() for name, part in final.items() if part is not None})
        width = self.stack.padded(max(config.hidden_size, config.embedding_size))
        states = self.decoder.buffers.take(self, 2, layers * len(first) + 1, rows, width)
        for i, part in enumerate(first.values()):  # (sentences, layers, hidden_size)
            states[0, i * layers : (i + 1) * layers, :sentences, : config.hidden_size] = part.transpose(0, 1)
        states[0, -1, :sentences] = 0  # no attentional vector before the first token
        return states

    def _read(self, tokens: torch.Tensor, topk: structures.TopK | None) -> None:
        """Call recurrent_step for a token of each hypothesis, `(sentences, alive)`, and those that it chooses."""
        step = self.step
        tokens, parents = tokens.contiguous(), self.parents.contiguous()
        assert tokens.shape == parents.shape
        step.tokens, step.parents, step.alive = address(tokens), address(parents), tokens.shape[1]
        step.topk = POINTER(structures.TopK)() if topk is None else pointer(topk)
        unknown = self.stack.library.recurrent_step(byref(step))
        if unknown >= 0:
            token = int(tokens.flatten()[unknown])
            raise IndexError(f"token {token} is not in a vocabulary of {step.decoder.contents.vocab_size}")
        self.parents = torch.arange(len(tokens) * step.alive).view(-1, step.alive)
        if self.weights is not None:
            self.attention = self.weights[: self.parents.numel()].view(*self.parents.shape, -1).clone()

    def reorder(self, beam_indices: torch.Tensor) -> None:
        self.parents = self.parents.gather(1, beam_indices)

    def select(self, batch_indices: torch.Tensor) -> None:
        self.parents = self.parents[batch_indices]
        super().select(batch_indices)
