# SPDX-License-Identifier: Apache-2.0
"""The recurrent encoder-decoder with attention, which the Transformer replaced (Sutskever et al. 2014 and others)."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.modeling_outputs import (
    BaseModelOutput,
    BaseModelOutputWithPastAndCrossAttentions,
    Seq2SeqModelOutput,
)
from transformers.utils.deprecation import deprecate_kwarg
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults

from .attention import AdditiveAttention, MultiplicativeAttention
from .configuration_rnn_seq2seq import RNNSeq2SeqConfig
from .dropout import Dropout
from .embeddings import embedded_tokens
from .linear import Linear
from .recurrence import RecurrentCache, RecurrentStack, read_positions
from .recurrent_decoder import RecurrentDecoder
from .seq2seq_base import BaseEncoderDecoder, BaseForConditionalGeneration

ATTENTIONS = {"additive": AdditiveAttention, "multiplicative": MultiplicativeAttention}


@dataclass
class RNNSeq2SeqEncoderOutput(BaseModelOutput):
    """`BaseModelOutput` with all that the decoder needs; batch first, so that `generate()` expands it for beams.

    Args:
        attention_mask: `(batch, source_length)`, 1 for real tokens; as given, or inferred from `pad_token_id`.
        final_hidden: the state of each layer after its last token, `(batch, num_layers, encoder_width)`: in a
            bidirectional encoder the forward direction's at the source's end, then the backward one's at its start.
        final_cell_state: likewise the cell states of LSTMs.
    """

    attention_mask: torch.Tensor | None = None
    final_hidden: torch.Tensor | None = None
    final_cell_state: torch.Tensor | None = None


class Bridge(nn.Module):
    """The decoder's first state, from the encoder's last ones.

    With one direction and as many layers on both sides, layer by layer the same state (Sutskever 2014, Luong 2015).
    Otherwise s_0 = tanh(W f) with f the last state of the encoder's layer beside it, counted from the top; the lowest
    stands for all that are missing (Bahdanau 2015, appendix A.2.2, reads the backward direction's state alone; here f
    has both).
    """

    def __init__(self, config: RNNSeq2SeqConfig):
        super().__init__()
        assert config.num_decoder_layers is not None  # the config has filled it in
        deeper = config.num_layers - config.num_decoder_layers
        self.sources = [max(0, deeper + layer) for layer in range(config.num_decoder_layers)]
        self.is_copy = not config.bidirectional and config.num_decoder_layers == config.num_layers
        parts = 2 if config.cell == "lstm" else 1
        projections = 0 if self.is_copy else parts * len(self.sources)
        self.projections = nn.ModuleList(
            [nn.Linear(config.encoder_width, config.hidden_size) for _ in range(projections)]
        )

    def forward(self, hidden: torch.Tensor, memory: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """`(batch, num_layers, encoder_width)` → `(batch, num_decoder_layers, hidden_size)`, for each part."""
        if self.is_copy:
            return hidden, memory
        layers = len(self.sources)
        first = self._projected(hidden, self.projections[:layers])
        return first, None if memory is None else self._projected(memory, self.projections[layers:])

    def _projected(self, final: torch.Tensor, projections) -> torch.Tensor:
        states = [torch.tanh(one(final[:, source])) for one, source in zip(projections, self.sources, strict=True)]
        return torch.stack(states, dim=1)  # (batch, num_decoder_layers, hidden_size)


class Readout(nn.Module):
    """What the softmax reads: the attentional vector tanh(W [c; s]) (Luong et al. 2015, equation 5).

    Bahdanau et al. (2015) have a maxout layer over c, the previous state and the last word in its place. Without
    attention it is tanh(W s), or the state itself where it is as wide as the embeddings (Sutskever et al. 2014).
    """

    def __init__(self, config: RNNSeq2SeqConfig):
        super().__init__()
        context = 0 if config.attention == "none" else config.encoder_width
        self.is_state = not context and config.hidden_size == config.embedding_size
        if not self.is_state:
            self.linear = nn.Linear(context + config.hidden_size, config.embedding_size, bias=False)

    def forward(self, state: torch.Tensor, context: torch.Tensor | None) -> torch.Tensor:
        """`(batch, length, hidden_size)`, `(batch, length, encoder_width)` → `(batch, length, embedding_size)`."""
        if context is not None:
            state = torch.cat([context, state], dim=-1)
        return state if self.is_state else torch.tanh(self.linear(state))


class RNNSeq2SeqPreTrainedModel(PreTrainedModel):
    """What encoder, decoder and the whole model share: initialisation and what transformers must know of them."""

    config_class = RNNSeq2SeqConfig
    config: RNNSeq2SeqConfig  # pyright: ignore[reportIncompatibleVariableOverride] -- transformers' idiom
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["RecurrentLayer"]
    _is_stateful = True  # a state cannot be taken back, as assisted generation would

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Not the papers' (uniform or normal of a fixed width), one for all cells: Glorot, and orthogonal recurrence.

        The forget gates start open, with bias 1 (Jozefowicz et al. 2015).
        """
        if isinstance(module, nn.Linear):
            init.xavier_uniform_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            # As the tied projection: logits of order one, for a readout whose entries are of order one.
            init.normal_(module.weight, mean=0.0, std=self.config.embedding_size**-0.5)
        elif isinstance(module, nn.RNNBase):
            for name, parameter in module.named_parameters():
                fresh = torch.zeros_like(parameter)
                if "weight" in name:
                    for gate in fresh.split(module.hidden_size):  # (hidden_size, input or hidden size)
                        (nn.init.orthogonal_ if "weight_hh" in name else nn.init.xavier_uniform_)(gate)
                elif "bias_ih" in name and module.mode == "LSTM":
                    fresh[module.hidden_size : 2 * module.hidden_size] = 1.0  # after the input gate
                init.copy_(parameter, fresh)  # which leaves alone what has been loaded

    @property
    def dummy_inputs(self) -> dict[str, torch.Tensor]:
        input_ids = torch.tensor([[3, 4, 2], [4, 2, self.config.pad_token_id]], device=self.device)
        return {"input_ids": input_ids, "decoder_input_ids": input_ids}


class RNNSeq2SeqEncoder(RNNSeq2SeqPreTrainedModel):
    """A stack of recurrent layers over the embedded source, in one direction or both."""

    _fsdp_plan = {"stack.layers.*": "free_full_weight"}  # the tables may be one matrix, and stay with the whole model

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
        output_hidden_states: bool | None = None,
        **kwargs,
    ) -> RNNSeq2SeqEncoderOutput:
        """Encode the source.

        Args:
            input_ids: `(batch, source_length)`.
            attention_mask: `(batch, source_length)`, 1 for real tokens. `None`: inferred from `pad_token_id` when
                `input_ids` are given, else every position is real.
            inputs_embeds: `(batch, source_length, embedding_size)` instead of `input_ids`.
            output_hidden_states: return the embeddings and the output of every layer too.

        Raises:
            ValueError: both or neither of `input_ids` and `inputs_embeds`.
        """
        embedded = embedded_tokens(
            self.embed_tokens, input_ids, inputs_embeds
        )  # (batch, source_length, embedding_size)
        if attention_mask is None and input_ids is not None and self.config.pad_token_id is not None:
            attention_mask = input_ids.ne(self.config.pad_token_id).long()  # (batch, source_length)
        if attention_mask is None:
            attention_mask = torch.ones(embedded.shape[:2], dtype=torch.long, device=embedded.device)

        wants_layers = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        layers, hidden, memory = self.stack(
            embedded, mask=attention_mask.bool(), reverse=self.config.reverse_source, every_layer=bool(wants_layers)
        )
        return RNNSeq2SeqEncoderOutput(
            last_hidden_state=self.dropout(layers[-1]),  # (batch, source_length, encoder_width)
            hidden_states=(embedded, *layers) if wants_layers else None,
            attention_mask=attention_mask,
            final_hidden=hidden,
            final_cell_state=memory,
        )


class RNNSeq2SeqDecoder(RNNSeq2SeqPreTrainedModel):
    """A stack of recurrent layers over the embedded target, with or without attention over the source."""

    # No `_fsdp_plan`: layers that are called for each token would be gathered for each, and where one process has
    # longer targets than another they would wait for each other. They stay with the whole model, gathered once.

    def __init__(self, config: RNNSeq2SeqConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.embedding_size)
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
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        """Decode the target; position i sees the target up to i, and the source as `attention` says.

        Args:
            input_ids: `(batch, target_length)`; with a `cache`, the tokens that are not in it yet.
            attention_mask: `(batch, cached + target_length)`, 1 for real tokens; `None`: all are real.
            encoder_outputs: what the encoder returns.
            encoder_attention_mask: `(batch, source_length)`; `None`: that of `encoder_outputs`.
            cache: a `RecurrentCache`, the state after earlier tokens.
            inputs_embeds: `(batch, target_length, embedding_size)` instead of `input_ids`.
            use_cache: make a cache when none is given, and return it.
            output_attentions: return the attention weights too, `(batch, 1, target_length, source_length)`.
            output_hidden_states: return the embeddings and the output of every layer too.

        Raises:
            ValueError: both or neither of `input_ids` and `inputs_embeds`; no `encoder_outputs`, or of another kind;
                a cache of another kind.
        """
        embedded = embedded_tokens(self.embed_tokens, input_ids, inputs_embeds, prefix="decoder_")
        encoder_outputs = self.check_source(encoder_outputs)
        if cache is not None and not isinstance(cache, RecurrentCache):
            raise ValueError(f"the cache of an RNN is a RecurrentCache, its state; {type(cache).__name__} was given")
        if use_cache and cache is None:
            cache = RecurrentCache()
        target_length = embedded.shape[1]
        mask = None if attention_mask is None else attention_mask[:, -target_length:].bool()  # (batch, target_length)
        if encoder_attention_mask is None:
            encoder_attention_mask = encoder_outputs.attention_mask

        state = dict(cache.state.tensors) if cache is not None else {}
        if not state:
            assert encoder_outputs.final_hidden is not None
            state = self.first_state(encoder_outputs.final_hidden, encoder_outputs.final_cell_state)
        assert encoder_outputs.last_hidden_state is not None
        source = self._source(encoder_outputs.last_hidden_state, encoder_attention_mask, cache)
        wants_layers = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        decode = self._whole_target if self.config.input_feeding == "none" else self._step_by_step
        last_hidden_state, layers, weights, state = decode(embedded, mask, state, source, bool(wants_layers))
        if cache is not None:
            cache.state.tensors = state
            cache.state.length += target_length
        wants_weights = self.config.output_attentions if output_attentions is None else output_attentions
        return BaseModelOutputWithPastAndCrossAttentions(
            last_hidden_state=self.dropout(last_hidden_state),  # (batch, target_length, embedding_size)
            cache=cache,
            hidden_states=(embedded, *layers) if wants_layers else None,
            cross_attentions=(weights,) if wants_weights and weights is not None else None,
        )

    @staticmethod
    def check_source(encoder_outputs: Any) -> RNNSeq2SeqEncoderOutput:
        """`encoder_outputs`, if they are what the encoder returns.

        Raises:
            ValueError: they are not.
        """
        if not isinstance(encoder_outputs, RNNSeq2SeqEncoderOutput) or encoder_outputs.last_hidden_state is None:
            raise ValueError(
                "the decoder starts from the encoder's last state, and attends to its output: give encoder_outputs as "
                f"the encoder returns them (RNNSeq2SeqEncoderOutput), not {type(encoder_outputs).__name__}"
            )
        return encoder_outputs

    def first_state(self, hidden: torch.Tensor, memory: torch.Tensor | None) -> dict[str, torch.Tensor]:
        """The state before the first token; everything in it has the batch first."""
        hidden, memory = self.bridge(hidden, memory)
        state = {"hidden": hidden}  # (batch, num_decoder_layers, hidden_size)
        if memory is not None:
            state["memory"] = memory
        if self.config.input_feeding == "attentional":  # before the first there is none
            state["attentional"] = hidden.new_zeros(hidden.shape[0], self.config.embedding_size)
        return state

    def _source(
        self, values: torch.Tensor, mask: torch.Tensor | None, cache: RecurrentCache | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None] | None:
        """Keys, values and mask for the attention; the keys are computed once for a source."""
        if self.attention is None:
            return None
        keys = cache.state.source_keys if cache is not None else None
        if keys is None:
            keys = self.attention.keys(values)  # (batch, source_length, hidden_size)
        if cache is not None:
            cache.state.source_keys = keys
        return keys, values, None if mask is None else mask.bool()

    def _whole_target(
        self, embedded: torch.Tensor, mask: torch.Tensor | None, state: dict, source: tuple | None, every_layer: bool
    ):
        """Without input feeding: all steps of the recurrence in one call, then all of the attention."""
        hidden, memory = state["hidden"], state.get("memory")
        layers, hidden, memory = self.stack(embedded, hidden, memory, mask, every_layer=every_layer)
        context = weights = None
        if self.attention is not None and source is not None:
            context, weights = self.attention(layers[-1], *source)  # (batch, target_length, encoder_width)
        state = {"hidden": hidden} if memory is None else {"hidden": hidden, "memory": memory}
        return self.readout(layers[-1], context), layers, weights, state

    def _step_by_step(
        self, embedded: torch.Tensor, mask: torch.Tensor | None, state: dict, source: tuple | None, every_layer: bool
    ):
        """With input feeding: each step needs what the attention of the one before has found."""
        assert self.attention is not None and source is not None  # noqa: PT018 -- the config admits no input feeding without
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
            hidden, memory = state["hidden"], state.get("memory")
            layers, hidden, memory = self.stack(inputs, hidden, memory, every_layer=every_layer)
            if not feeds_context:  # Luong et al. (2015): from s_i
                context, weights = self.attention(layers[-1], *source)
            attentional = self.readout(layers[-1], context)  # (batch, 1, embedding_size)
            new = {"hidden": hidden}
            if memory is not None:
                new["memory"] = memory
            if not feeds_context:
                new["attentional"] = attentional[:, 0]
            if mask is not None:  # padding leaves the state as it was
                new = {name: read_positions(mask[:, t], tensor, state[name]) for name, tensor in new.items()}
            state = new
            steps.append((attentional, weights, *layers))
        attentional, weights, *layers = (torch.cat(parts, dim=-2) for parts in zip(*steps, strict=True))
        return attentional, layers, weights, state


class RNNSeq2SeqModel(BaseEncoderDecoder, RNNSeq2SeqPreTrainedModel):
    """Encoder and decoder, whose embeddings are one matrix if tied."""

    _tied_weights_keys = {"decoder.embed_tokens.weight": "encoder.embed_tokens.weight"}
    _auto_class = "AutoModel"  # so that transformers saves the code with the weights

    def __init__(self, config: RNNSeq2SeqConfig):
        super().__init__(config)
        self.encoder = RNNSeq2SeqEncoder(config)
        self.decoder = RNNSeq2SeqDecoder(config)
        self.post_init()

    @can_return_tuple
    @deprecate_kwarg("past_key_values", "5.40.0", new_name="cache")
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        decoder_input_ids: torch.Tensor | None = None,
        decoder_attention_mask: torch.Tensor | None = None,
        encoder_outputs: RNNSeq2SeqEncoderOutput | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        decoder_inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs,
    ) -> Seq2SeqModelOutput:
        """Encode and decode; arguments and shapes are those of the encoder and of the decoder.

        Args:
            encoder_outputs: the encoder's output, when the source is already encoded. Its own mask is used when
                `attention_mask` is not given.
        """
        encoded: RNNSeq2SeqEncoderOutput = (
            self.encoder(input_ids, attention_mask, inputs_embeds, return_dict=True, **kwargs)
            if encoder_outputs is None
            else encoder_outputs
        )
        decoder_outputs = self.decoder(
            decoder_input_ids,
            decoder_attention_mask,
            encoded,
            attention_mask,
            cache=cache,
            inputs_embeds=decoder_inputs_embeds,
            use_cache=use_cache,
            return_dict=True,
            **kwargs,
        )
        return Seq2SeqModelOutput(
            last_hidden_state=decoder_outputs.last_hidden_state,
            cache=decoder_outputs.cache,
            decoder_hidden_states=decoder_outputs.hidden_states,
            cross_attentions=decoder_outputs.cross_attentions,
            encoder_last_hidden_state=encoded.last_hidden_state,
            encoder_hidden_states=encoded.hidden_states,
        )


class RNNSeq2SeqForConditionalGeneration(BaseForConditionalGeneration, RNNSeq2SeqPreTrainedModel, GenerationMixin):
    """The model with the projection before the softmax, for translation."""

    _tied_weights_keys = {
        "model.decoder.embed_tokens.weight": "model.encoder.embed_tokens.weight",
        "lm_head.weight": "model.encoder.embed_tokens.weight",
    }
    _auto_class = "AutoModelForSeq2SeqLM"
    decoder_class = RecurrentDecoder

    def __init__(self, config: RNNSeq2SeqConfig):
        super().__init__(config)
        self.model = RNNSeq2SeqModel(config)
        self.lm_head = Linear(config.embedding_size, config.vocab_size, bias=False)
        self.post_init()

    def _prepare_cache_for_generation(self, generation_config, model_kwargs, *args) -> None:
        """A recurrent state, whose size is fixed: that is all that "static" asks for.

        Raises:
            ValueError: another cache_implementation; there are no keys and values to offload or to quantize.
        """
        kind = generation_config.cache_implementation
        if kind not in (None, "dynamic", "static"):
            raise ValueError(f"cache_implementation={kind!r}: an RNN has a state, no keys and values; use 'dynamic'")
        cache: Any = model_kwargs.get("cache")
        if isinstance(cache, Cache):
            cache._is_user_defined = True  # pyright: ignore[reportAttributeAccessIssue] -- as transformers marks them
        elif cache is None and generation_config.use_cache is not False:
            model_kwargs["cache"] = RecurrentCache()


__all__ = ["RNNSeq2SeqForConditionalGeneration", "RNNSeq2SeqModel", "RNNSeq2SeqPreTrainedModel"]
