# SPDX-License-Identifier: Apache-2.0
"""The recurrent encoder-decoder with attention, which the Transformer replaced (Sutskever et al. 2014 and others)."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import GenerationMixin
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults

from .attention import AdditiveAttention, MultiplicativeAttention
from .configuration_rnn_seq2seq import RNNSeq2SeqConfig
from .dropout import Dropout
from .embeddings import embed_inputs, infer_source_mask
from .linear import Linear
from .recurrence import RecurrentCache, RecurrentStack, RecurrentState, masked_update
from .recurrent_decoder import RecurrentDecoder
from .seq2seq_base import (
    BaseEncoderDecoder,
    BaseForConditionalGeneration,
    Seq2SeqEncoderOutput,
    Seq2SeqPreTrainedModel,
)
from .transformers_differences import CACHE, BaseModelOutputWithPastAndCrossAttentions, deprecate_kwarg

ATTENTIONS = {"additive": AdditiveAttention, "multiplicative": MultiplicativeAttention}


@dataclass
class RNNSeq2SeqEncoderOutput(Seq2SeqEncoderOutput):
    """The source as the decoder needs it; batch first, so that `generate()` can repeat it for beams.

    Args:
        final_hidden: the state of each layer after its last token, `(batch, num_layers, encoder_width)`: in a
            bidirectional encoder the forward direction's at the source's end, then the backward one's at its start.
        final_cell_state: the same for the cell states of LSTMs.
    """

    final_hidden: torch.Tensor | None = None
    final_cell_state: torch.Tensor | None = None


class Bridge(nn.Module):
    """The decoder's first state, from the encoder's last ones.

    With one direction and as many layers on both sides, each layer starts from the state of its counterpart (Sutskever
    2014, Luong 2015). Otherwise s_0 = tanh(W f), where f is the last state of its counterpart counted from the top, or
    of the lowest layer where there is none. A departure: Bahdanau (2015), appendix A.2.2, reads the backward
    direction's state alone; here f has both. Another departure, JoeyNMT's: with `bridge` "top" f is
    the hidden state of the top layer, for every layer and for the cell states too; with "top_linear" there is no tanh.
    """

    def __init__(self, config: RNNSeq2SeqConfig):
        super().__init__()
        assert config.num_decoder_layers is not None  # the config has filled it in
        deeper = config.num_layers - config.num_decoder_layers
        self.reads_top = config.bridge != "counterparts"
        self.activation = nn.Identity() if config.bridge == "top_linear" else nn.Tanh()
        self.counterparts = [
            config.num_layers - 1 if self.reads_top else max(0, deeper + layer)
            for layer in range(config.num_decoder_layers)
        ]
        alike = not config.bidirectional and config.num_decoder_layers == config.num_layers
        self.is_copy = alike and not self.reads_top
        parts = 2 if config.cell == "lstm" else 1
        projections = 0 if self.is_copy else parts * len(self.counterparts)
        self.projections = nn.ModuleList(
            [nn.Linear(config.encoder_width, config.hidden_size) for _ in range(projections)]
        )

    def forward(self, final: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """`(batch, num_layers, encoder_width)` each → `(batch, num_decoder_layers, hidden_size)` each."""
        if self.is_copy:
            return final
        if self.reads_top:
            final = dict.fromkeys(final, final["hidden"])
        projections = iter(self.projections)
        return {
            name: torch.stack(
                [self.activation(next(projections)(part[:, layer])) for layer in self.counterparts], dim=1
            )
            for name, part in final.items()
        }


class Readout(nn.Module):
    """The projection's input: the attentional vector tanh(W [c; s]) (Luong et al. 2015, equation 5).

    A departure: Bahdanau et al. (2015) have a maxout layer over c, the previous state and the last word in its place.
    Without attention it is tanh(W s), or s itself where it is as wide as the embeddings (Sutskever et al. 2014).
    """

    def __init__(self, config: RNNSeq2SeqConfig):
        super().__init__()
        context = 0 if config.attention == "none" else config.encoder_width
        self.is_state = not context and config.hidden_size == config.embedding_size
        if not self.is_state:
            # A departure: the paper has no bias here.
            self.linear = nn.Linear(context + config.hidden_size, config.embedding_size, bias=config.readout_bias)

    def forward(self, state: torch.Tensor, context: torch.Tensor | None) -> torch.Tensor:
        """`(batch, length, hidden_size)`, `(batch, length, encoder_width)` → `(batch, length, embedding_size)`."""
        if context is not None:
            state = torch.cat([context, state], dim=-1)
        return state if self.is_state else torch.tanh(self.linear(state))


class RNNSeq2SeqPreTrainedModel(Seq2SeqPreTrainedModel):
    """The base of encoder, decoder and whole model: initialisation, and class attributes that transformers reads."""

    config_class = RNNSeq2SeqConfig
    config: RNNSeq2SeqConfig  # pyright: ignore[reportIncompatibleVariableOverride] -- transformers' idiom
    _no_split_modules = ["RecurrentLayer"]
    _is_stateful = True  # transformers then refuses assisted generation, which would have to undo steps

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """As the Transformer's; recurrent layers: Glorot uniform for each gate, orthogonal recurrence.

        A departure: the papers draw uniform or normal numbers of a fixed width. Forget gates start open, with bias 1
        (Jozefowicz et al. 2015).
        """
        super()._init_weights(module)
        if isinstance(module, nn.RNNBase):
            for name, parameter in module.named_parameters():
                fresh = torch.zeros_like(parameter)
                if "weight" in name:
                    for gate in fresh.split(module.hidden_size):  # (hidden_size, input or hidden size)
                        (nn.init.orthogonal_ if "weight_hh" in name else nn.init.xavier_uniform_)(gate)
                elif "bias_ih" in name and module.mode == "LSTM":
                    fresh[module.hidden_size : 2 * module.hidden_size] = 1.0  # after the input gate
                init.copy_(parameter, fresh)  # skips weights that were loaded


class RNNSeq2SeqEncoder(RNNSeq2SeqPreTrainedModel):
    """A stack of recurrent layers over the embedded source, in one direction or both."""

    _fsdp_plan = {"stack.layers.*": "free_full_weight"}  # embeddings may be tied, and are sharded with the whole model

    def __init__(self, config: RNNSeq2SeqConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.embedding_size)
        self.stack = RecurrentStack(config, config.embedding_size, config.num_layers, config.bidirectional)
        self.dropout = Dropout(config.dropout)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs,
    ) -> RNNSeq2SeqEncoderOutput:
        """Encode the source.

        Args:
            input_ids: `(batch, source_length)`.
            attention_mask: `(batch, source_length)`, 1 for real tokens. `None`: inferred from `pad_token_id` when
                `input_ids` are given, else every position is real. It may stay on the CPU: the host has to know the
                lengths, and then does not wait for the device.
            inputs_embeds: `(batch, source_length, embedding_size)` instead of `input_ids`.
            kwargs: `output_hidden_states` returns the embeddings and the output of every layer too.

        Raises:
            ValueError: both or neither of `input_ids` and `inputs_embeds`.
        """
        embedded = embed_inputs(self.embed_tokens, input_ids, inputs_embeds)  # (batch, source_length, embedding_size)
        if attention_mask is None:
            attention_mask = infer_source_mask(input_ids, embedded, self.config.pad_token_id)

        all_layers = bool(kwargs.get("output_hidden_states", self.config.output_hidden_states))
        layers, final = self.stack(embedded, {}, attention_mask.bool(), self.config.reverse_source, all_layers)
        return RNNSeq2SeqEncoderOutput(
            last_hidden_state=self.dropout(layers[-1]),  # (batch, source_length, encoder_width)
            hidden_states=(embedded, *layers) if all_layers else None,
            attention_mask=attention_mask.to(embedded.device, non_blocking=True),
            final_hidden=final["hidden"],
            final_cell_state=final.get("cell_state"),
        )


class RNNSeq2SeqDecoder(RNNSeq2SeqPreTrainedModel):
    """A stack of recurrent layers over the embedded target, with or without attention over the source."""

    # No `_fsdp_plan`: layers that are called for each token would be gathered for each, and processes with targets of
    # different lengths would wait for each other. The layers are sharded with the whole model and gathered once.

    def __init__(self, config: RNNSeq2SeqConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.decoder_vocab_size or config.vocab_size, config.embedding_size)
        fed = {"none": 0, "context": config.encoder_width, "attentional": config.embedding_size}[config.input_feeding]
        assert config.num_decoder_layers is not None  # the config has filled it in
        self.bridge = Bridge(config)
        self.stack = RecurrentStack(config, config.embedding_size + fed, config.num_decoder_layers, bidirectional=False)
        self.attention = None if config.attention == "none" else ATTENTIONS[config.attention](config)
        self.readout = Readout(config)
        self.dropout = Dropout(config.dropout)
        self.post_init()

    @can_return_tuple
    @merge_with_config_defaults
    @deprecate_kwarg("past_key_values", "5.40.0", new_name="cache")
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        encoder_outputs: RNNSeq2SeqEncoderOutput | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        """Decode the target; position i sees the target up to i, and the source as `attention` says.

        Args:
            input_ids: `(batch, target_length)`; with a `cache`, the tokens that are not in it yet.
            attention_mask: `(batch, cached + target_length)`, 1 for real tokens; `None`: all are real.
            encoder_outputs: the encoder's `RNNSeq2SeqEncoderOutput`.
            encoder_attention_mask: `(batch, source_length)`; `None`: that of `encoder_outputs`.
            cache: a `RecurrentCache`, the state after earlier tokens.
            inputs_embeds: `(batch, target_length, embedding_size)` instead of `input_ids`.
            use_cache: make a cache when none is given, and return it.
            kwargs: `output_attentions` returns the weights `(batch, 1, target_length, source_length)` too,
                `output_hidden_states` the embeddings and the output of every layer.

        Raises:
            ValueError: both or neither of `input_ids` and `inputs_embeds`; no `encoder_outputs`, or of another kind;
                a cache of another kind.
        """
        embedded = embed_inputs(self.embed_tokens, input_ids, inputs_embeds, prefix="decoder_")
        encoder_outputs = self.check_source(encoder_outputs)
        if cache is not None and not isinstance(cache, RecurrentCache):
            raise ValueError(f"the cache of an RNN is a RecurrentCache, its state; {type(cache).__name__} was given")
        if use_cache and cache is None:
            cache = RecurrentCache()
        state = RecurrentState() if cache is None else cache.state
        all_layers = bool(kwargs.get("output_hidden_states", self.config.output_hidden_states))
        all_weights = kwargs.get("output_attentions", self.config.output_attentions)
        target_length = embedded.shape[1]
        mask = None if attention_mask is None else attention_mask[:, -target_length:].bool()  # (batch, target_length)
        source_mask = encoder_outputs.attention_mask if encoder_attention_mask is None else encoder_attention_mask
        if source_mask is not None:
            source_mask = source_mask.to(embedded.device, non_blocking=True)  # as the encoder's, it may be on the CPU

        source = None  # keys, values and mask for the attention
        if self.attention is not None:
            values = encoder_outputs.last_hidden_state
            if state.source_keys is None:
                state.source_keys = self.attention.k_proj(values)  # (batch, source_length, hidden_size)
            source = state.source_keys, values, None if source_mask is None else source_mask.bool()
        decode = self._whole_target if self.config.input_feeding == "none" else self._step_by_step
        last_hidden_state, layers, weights, state.tensors = decode(
            embedded, mask, state.tensors or self.first_state(encoder_outputs), source, all_layers
        )
        state.length += target_length
        return BaseModelOutputWithPastAndCrossAttentions(
            last_hidden_state=self.dropout(last_hidden_state),  # (batch, target_length, embedding_size)
            cache=cache,
            hidden_states=(embedded, *layers) if all_layers else None,
            cross_attentions=(weights,) if all_weights and weights is not None else None,
        )

    @staticmethod
    def check_source(encoder_outputs: Any) -> RNNSeq2SeqEncoderOutput:
        """`encoder_outputs`, if the encoder can have returned them.

        Raises:
            ValueError: it cannot.
        """
        if not isinstance(encoder_outputs, RNNSeq2SeqEncoderOutput) or encoder_outputs.last_hidden_state is None:
            raise ValueError(
                "the decoder starts from the encoder's last state, and attends to its output: give encoder_outputs as "
                f"the encoder returns them (RNNSeq2SeqEncoderOutput), not {type(encoder_outputs).__name__}"
            )
        return encoder_outputs

    def first_state(self, encoder_outputs: RNNSeq2SeqEncoderOutput) -> dict[str, torch.Tensor]:
        """`RecurrentState.tensors` before the first token, from the encoder's last state."""
        final = {"hidden": encoder_outputs.final_hidden, "cell_state": encoder_outputs.final_cell_state}
        state = self.bridge({name: part for name, part in final.items() if part is not None})
        if self.config.input_feeding == "attentional":  # the first token has no attentional vector before it
            state["attentional"] = state["hidden"].new_zeros(state["hidden"].shape[0], self.config.embedding_size)
        return state

    def _whole_target(
        self, embedded: torch.Tensor, mask: torch.Tensor | None, state: dict, source: tuple | None, all_layers: bool
    ):
        """Without input feeding: the recurrence over the whole target, then the attention of all its positions."""
        layers, state = self.stack(embedded, state, mask, all_layers=all_layers)
        context = weights = None
        if self.attention is not None and source is not None:
            context, weights = self.attention(layers[-1], *source)  # (batch, target_length, encoder_width)
        return self.readout(layers[-1], context), layers, weights, state

    def _step_by_step(
        self, embedded: torch.Tensor, mask: torch.Tensor | None, state: dict, source: tuple | None, all_layers: bool
    ):
        """With input feeding: one token at a time, because each step reads the attention's earlier result."""
        assert self.attention is not None and source is not None  # noqa: PT018 -- the config refuses input feeding without attention
        feeds_context = self.config.input_feeding == "context"
        context = weights = None
        steps = []
        for t in range(embedded.shape[1]):
            if feeds_context:  # Bahdanau et al. (2015), appendix A.2.2: c_i is found from s_{i-1}, and read with s_i
                context, weights = self.attention(state["hidden"][:, -1:], *source)
                fed = context
            else:
                fed = state["attentional"][:, None]
            inputs = torch.cat([embedded[:, t : t + 1], fed], dim=-1)  # (batch, 1, embedding_size + fed)
            layers, new = self.stack(inputs, state, all_layers=all_layers)
            if not feeds_context:  # Luong et al. (2015): from s_i
                context, weights = self.attention(layers[-1], *source)
            attentional = self.readout(layers[-1], context)  # (batch, 1, embedding_size)
            if not feeds_context:
                new["attentional"] = attentional[:, 0]
            if mask is not None:  # padding leaves the state as it was
                new = {name: masked_update(mask[:, t], tensor, state[name]) for name, tensor in new.items()}
            state = new
            steps.append((attentional, weights, *layers))
        attentional, weights, *layers = (torch.cat(parts, dim=-2) for parts in zip(*steps, strict=True))
        return attentional, layers, weights, state


class RNNSeq2SeqModel(BaseEncoderDecoder, RNNSeq2SeqPreTrainedModel):
    """Encoder and decoder, whose embeddings are one matrix if tied."""

    def __init__(self, config: RNNSeq2SeqConfig):
        super().__init__(config)
        self.encoder = RNNSeq2SeqEncoder(config)
        self.decoder = RNNSeq2SeqDecoder(config)
        self.post_init()

    def decoder_inputs(self, encoder_outputs: BaseModelOutput) -> dict[str, BaseModelOutput]:
        return {"encoder_outputs": encoder_outputs}


class RNNSeq2SeqForConditionalGeneration(BaseForConditionalGeneration, RNNSeq2SeqPreTrainedModel, GenerationMixin):
    """The model with the projection before the softmax, for translation."""

    decoder_class = RecurrentDecoder
    host_inputs = frozenset({"attention_mask"})

    def __init__(self, config: RNNSeq2SeqConfig):
        super().__init__(config)
        self.model = RNNSeq2SeqModel(config)
        vocab_size = config.decoder_vocab_size or config.vocab_size
        self.lm_head = Linear(config.embedding_size, vocab_size, bias=False)
        self.post_init()

    def _prepare_cache_for_generation(self, generation_config, model_kwargs, *args) -> None:
        """As in transformers, but the cache is a `RecurrentCache`; its fixed size makes it "static" too.

        Raises:
            ValueError: another cache_implementation, which would need keys and values to offload or to quantize.
        """
        kind = generation_config.cache_implementation
        if kind not in (None, "dynamic", "static"):
            raise ValueError(f"cache_implementation={kind!r}: an RNN has a state, no keys and values; use 'dynamic'")
        if model_kwargs.get(CACHE) is None and generation_config.use_cache is not False:
            model_kwargs[CACHE] = RecurrentCache()
        else:
            super()._prepare_cache_for_generation(generation_config, model_kwargs, *args)  # pyright: ignore[reportAttributeAccessIssue] -- transformers types `self` as a protocol of its own


__all__ = ["RNNSeq2SeqForConditionalGeneration", "RNNSeq2SeqModel", "RNNSeq2SeqPreTrainedModel"]
