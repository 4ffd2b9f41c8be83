# SPDX-License-Identifier: Apache-2.0
"""The base classes of both models: embeddings, initialisation, projection and loss, and their side of `generate()`."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from transformers import GenerationConfig, GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils.generic import can_return_tuple
from transformers.utils.output_capturing import capture_outputs

from .configuration_base import check_attention
from .decoder import Decoder
from .loss import IGNORE_INDEX, Seq2SeqLMLossOutput, cross_entropy_of_logits, smoothed_cross_entropy
from .packed_linear import Precision
from .transformers_differences import (
    Seq2SeqModelOutput,
    check_tensor_parallel_plan,
    deprecate_kwarg,
    is_data_parallel,
)


@dataclass
class Seq2SeqEncoderOutput(BaseModelOutput):
    """`BaseModelOutput` with the source's mask, so that `generate()` and users who pass `encoder_outputs` keep it.

    Args:
        attention_mask: `(batch, source_length)`, 1 for real tokens; as given, or inferred from `pad_token_id`.
    """

    attention_mask: torch.Tensor | None = None


def is_unmodified(module: nn.Module) -> bool:
    """Whether a module is as this package made it: no adapters, no shards, no hooks, no replaced submodules."""
    return has_only_own_modules(module) and all(type(parameter) is nn.Parameter for parameter in module.parameters())


def has_only_own_modules(module: nn.Module) -> bool:
    """As `is_unmodified`, without regard to the types of its parameters: they may be sharded."""
    package = __name__.rpartition(".")[0]
    for submodule in module.modules():
        origin = type(submodule).__module__
        is_own = origin.startswith((f"{package}.", "torch.nn.modules.")) or origin == "transformers.activations"
        hooks = [*submodule._forward_hooks.values(), *submodule._forward_pre_hooks.values()]
        # transformers leaves its hooks for recording outputs in place; they change no result.
        is_hooked = any(hook.__module__ != capture_outputs.__module__ for hook in hooks)
        if not is_own or is_hooked or "forward" in vars(submodule):
            return False
    return True


class Seq2SeqPreTrainedModel(PreTrainedModel):
    """The base of all stacks and models: initialisation, and FSDP2 of tied weights."""

    base_model_prefix = "model"
    supports_gradient_checkpointing = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """As in tensor2tensor, because the paper states none: embeddings N(0, 1 / width), matrices Glorot uniform.

        Times sqrt(d_model) the embeddings have unit variance; as the tied projection they give logits of order 1.
        """
        if isinstance(module, nn.Linear):
            init.xavier_uniform_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, mean=0.0, std=module.embedding_dim**-0.5)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)

    def _check_and_adjust_attn_implementation(self, attn_implementation, *args, **kwargs) -> str:
        """As in transformers, but refuses flash attention, with the reason; see `check_attention`."""
        check_attention("attn_implementation", attn_implementation)
        return super()._check_and_adjust_attn_implementation(attn_implementation, *args, **kwargs)

    @classmethod
    def maybe_distribute_model(cls, model: PreTrainedModel, distributed_config: Any, mesh_manager):
        """As in transformers, but ties weights before FSDP2 shards them.

        transformers ties them afterwards. Tied embeddings would be sharded as three matrices, which drift apart where
        the number of processes does not divide vocab_size.

        Raises:
            ValueError: tied embeddings under FSDP2 and tensor parallelism at once, which would still drift; tensor
                parallelism of an RNN.
        """
        check_tensor_parallel_plan(model, distributed_config)
        if is_data_parallel(distributed_config) and model.all_tied_weights_keys:
            if distributed_config.tp_size > 1:
                raise ValueError(
                    f"fsdp_size={distributed_config.fsdp_size} with tp_size={distributed_config.tp_size} would shard "
                    "tied embeddings as if they were several; set one of the two to 1, or both tie_word_embeddings and "
                    "share_encoder_decoder_embeddings to False"
                )
            model.tie_weights(recompute_mapping=False)
        return super().maybe_distribute_model(model, distributed_config, mesh_manager)


class BaseEncoderDecoder(Seq2SeqPreTrainedModel):
    """The base of an encoder-decoder, whose two embeddings are one matrix if shared."""

    encoder: Any  # with `embed_tokens`, like the decoder
    decoder: Any
    _tied_weights_keys = {"decoder.embed_tokens.weight": "encoder.embed_tokens.weight"}
    _auto_class = "AutoModel"  # transformers then saves the code with the weights

    def get_expanded_tied_weights_keys(self, all_submodels: bool = False) -> dict[str, str]:
        """As in transformers, by the field that shares embeddings."""
        if all_submodels:
            return super().get_expanded_tied_weights_keys(all_submodels)
        return dict(self._tied_weights_keys) if self.config.shares_embeddings else {}

    def get_input_embeddings(self) -> nn.Module:
        return self.encoder.embed_tokens

    def set_input_embeddings(self, value: nn.Embedding) -> None:  # pyright: ignore[reportIncompatibleMethodOverride] -- transformers types it as any module
        """Replace the source embedding; if shared, the target embedding too."""
        self.encoder.embed_tokens = value
        if self.config.shares_embeddings:
            self.decoder.embed_tokens = value

    def _resize_token_embeddings(self, new_num_tokens, pad_to_multiple_of=None, mean_resizing=True) -> nn.Module:
        """As in transformers, which resizes the source embedding only; of one vocabulary also the target embedding."""
        embedding: Any = super()._resize_token_embeddings(new_num_tokens, pad_to_multiple_of, mean_resizing)
        self.config.vocab_size = embedding.weight.shape[0]
        if self.config.decoder_vocab_size is None:
            self.decoder._resize_token_embeddings(embedding.weight.shape[0], mean_resizing=mean_resizing)
        return embedding

    def decoder_inputs(self, encoder_outputs: BaseModelOutput) -> dict[str, Any]:
        """The encoder's output as the decoder's arguments."""
        return {"encoder_hidden_states": encoder_outputs.last_hidden_state}

    @can_return_tuple
    @deprecate_kwarg("past_key_values", "5.40.0", new_name="cache")
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        decoder_input_ids: torch.Tensor | None = None,
        decoder_attention_mask: torch.Tensor | None = None,
        encoder_outputs: BaseModelOutput | tuple[torch.Tensor, ...] | None = None,
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
        if encoder_outputs is None:
            encoded: BaseModelOutput = self.encoder(
                input_ids, attention_mask, inputs_embeds, return_dict=True, **kwargs
            )
        elif isinstance(encoder_outputs, BaseModelOutput):
            encoded = encoder_outputs
        else:
            encoded = BaseModelOutput(*encoder_outputs[:3])  # pyright: ignore[reportArgumentType] -- transformers' tuple, whose second and third are tuples themselves
        if attention_mask is None and isinstance(encoded, Seq2SeqEncoderOutput):
            attention_mask = encoded.attention_mask
        decoded = self.decoder(
            decoder_input_ids,
            decoder_attention_mask,
            **self.decoder_inputs(encoded),
            encoder_attention_mask=attention_mask,
            cache=cache,
            inputs_embeds=decoder_inputs_embeds,
            use_cache=use_cache,
            return_dict=True,
            **kwargs,
        )
        return Seq2SeqModelOutput(
            last_hidden_state=decoded.last_hidden_state,
            cache=decoded.cache,
            decoder_hidden_states=decoded.hidden_states,
            decoder_attentions=decoded.attentions,
            cross_attentions=decoded.cross_attentions,
            encoder_last_hidden_state=encoded.last_hidden_state,
            encoder_hidden_states=encoded.hidden_states,
            encoder_attentions=encoded.attentions,
        )


class Seq2SeqGenerationMixin(GenerationMixin):
    """`generate()` of both models: transformers' own, and the hook for the paper's decoding (section 6.1)."""

    max_target_positions: int | None = None  # in tokens; `None`: no limit

    @property
    def generation_config(self) -> GenerationConfig:
        """transformers' generation config, without the defaults that Seq2SeqTrainer leaves in it.

        After each prediction Seq2SeqTrainer fills every empty field with transformers' default. `generate` would take
        its `max_length` of 20 for the user's from the second batch on, and `save_pretrained` would write it. If every
        field has a value, Seq2SeqTrainer did it: the fields that became defaults since the last read are `None` again.
        """
        config, before = self._generation_config, self._generation_settings
        if config is None:
            return config
        defaults = {name: value for name, value in config._get_default_generation_params().items() if value is not None}
        settings = vars(config)
        if all(settings.get(name) is not None for name in defaults):
            for name, default in defaults.items():
                if before.get(name) is None and settings[name] == default:
                    settings[name] = None
        self._generation_settings = dict(settings)
        return config

    @generation_config.setter
    def generation_config(self, config: GenerationConfig) -> None:  # pyright: ignore[reportIncompatibleVariableOverride] -- transformers has a plain attribute
        self._generation_config = config
        self._generation_settings = {} if config is None else dict(vars(config))

    def adjust_generation_fn(self, *args, **kwargs) -> None:
        """As in transformers, but keeps its `generate`.

        With trust_remote_code transformers would replace it by the folder's custom_generate, the paper's decoding.
        Results would then depend on whether this package is installed.
        """
        super().adjust_generation_fn(*args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue] -- as below
        self.__dict__.pop("generate", None)

    def _extract_generation_mode_kwargs(self, custom_generate, kwargs, synced_gpus, assistant_model, streamer):
        """As in transformers, but refuses arguments that it drops when `custom_generate` is a function.

        Raises:
            ValueError: one of these arguments beside such a function; several processes that share a model's weights,
                which need `synced_gpus`.
        """
        extract = super()._extract_generation_mode_kwargs  # pyright: ignore[reportAttributeAccessIssue] -- as below
        if callable(custom_generate):
            resolved = extract(None, dict(kwargs), synced_gpus, assistant_model, streamer)
            unread: list[str] = ["streamer", "assistant_model", "assistant_tokenizer"]
            remedies = dict.fromkeys(unread, "leave it out") | {"synced_gpus": "leave custom_generate out"}
            if kwargs.get("stop_strings") is not None:
                remedies["tokenizer"] = "give a StopStringCriteria in stopping_criteria instead of stop_strings"
            for name, remedy in remedies.items():
                if resolved.get(name) not in (None, False):
                    raise ValueError(f"{name} does not reach a function given as custom_generate: {remedy}")
        return extract(custom_generate, kwargs, synced_gpus, assistant_model, streamer)

    def _prepare_generated_length(self, generation_config, has_default_max_length, **kwargs):
        """As in transformers; without a requested length, section 6.1's: maximum length = source length + 50.

        The 50 is `generation_config.max_tokens_beyond_source`, a field that transformers stores but does not know.
        Learned positions may be fewer. The source length is the batch's, padding included; the paper's decoding
        (`beam_search`) applies a maximum of its own to each sentence within it.
        """
        beyond = vars(generation_config).get("max_tokens_beyond_source")
        if has_default_max_length and generation_config.max_new_tokens is None and beyond is not None:
            max_new_tokens = kwargs["inputs_tensor"].shape[1] + beyond
            if self.max_target_positions is not None:
                max_new_tokens = min(max_new_tokens, self.max_target_positions - kwargs["input_ids_length"])
            generation_config.max_new_tokens = max_new_tokens
        else:
            generation_config.max_tokens_beyond_source = None  # tells the paper's decoding that a length is requested
        return super()._prepare_generated_length(  # pyright: ignore[reportAttributeAccessIssue] -- transformers types `self` as a protocol of its own
            generation_config=generation_config, has_default_max_length=has_default_max_length, **kwargs
        )


class BaseForConditionalGeneration(Seq2SeqPreTrainedModel, Seq2SeqGenerationMixin):
    """The base of a translation model: an encoder-decoder, `model`, and the projection to the vocabulary, `lm_head`.

    A model names `GenerationMixin` among its own bases too, where transformers looks for it.
    """

    model: PreTrainedModel
    lm_head: nn.Linear
    decoder_class: Callable[[Any, Precision], Decoder]  # what `build_decoder` makes
    host_inputs: frozenset[str] = frozenset()  # arguments that the host reads: better left on the CPU in training
    _tied_weights_keys = {
        "model.decoder.embed_tokens.weight": "model.encoder.embed_tokens.weight",
        "lm_head.weight": "model.encoder.embed_tokens.weight",
    }
    _auto_class = "AutoModelForSeq2SeqLM"

    def get_expanded_tied_weights_keys(self, all_submodels: bool = False) -> dict[str, str]:
        """As in transformers, by both fields that tie."""
        if all_submodels:
            return super().get_expanded_tied_weights_keys(all_submodels)
        source, target = "model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight"
        tied = {target: source} if self.config.shares_embeddings else {}
        if self.config.tie_word_embeddings:
            tied["lm_head.weight"] = tied.get(target, target)
        return tied

    def _resize_token_embeddings(self, new_num_tokens, pad_to_multiple_of=None, mean_resizing=True) -> nn.Module:
        """As in transformers, which then finds both embeddings resized and resizes the projection."""
        embedding: Any = self.model._resize_token_embeddings(new_num_tokens, pad_to_multiple_of, mean_resizing)
        if self.config.decoder_vocab_size is not None:
            return embedding
        return super()._resize_token_embeddings(embedding.weight.shape[0], mean_resizing=mean_resizing)

    def resize_decoder_token_embeddings(self, new_num_tokens: int) -> nn.Module:
        """Resize the target's own vocabulary: its embedding, which is returned, and the projection.

        `resize_token_embeddings` resizes the source's, and both where they are one.

        Raises:
            ValueError: the target has no vocabulary of its own.
        """
        if self.config.decoder_vocab_size is None:
            raise ValueError(
                "resize_decoder_token_embeddings resizes the target's own vocabulary, and decoder_vocab_size is None; "
                "call resize_token_embeddings"
            )
        decoder: Any = self.model.decoder
        embedding = decoder._resize_token_embeddings(new_num_tokens)
        resized = self._get_resized_lm_head(self.lm_head, new_num_tokens)
        self.lm_head = resized.requires_grad_(self.lm_head.weight.requires_grad)
        self.config.decoder_vocab_size = new_num_tokens
        self.tie_weights()
        return embedding

    @can_return_tuple
    @deprecate_kwarg("past_key_values", "5.40.0", new_name="cache")
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        decoder_input_ids: torch.Tensor | None = None,
        decoder_attention_mask: torch.Tensor | None = None,
        encoder_outputs: BaseModelOutput | tuple[torch.Tensor, ...] | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        decoder_inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        skip_logits: bool = False,
        **kwargs,
    ) -> Seq2SeqLMLossOutput:
        """Logits of the next target token, and the loss of section 5.4 when `labels` are given.

        Args:
            labels: `(batch, target_length)`, the target with its end-of-sentence token. Only -100 is ignored: a label
                that is `pad_token_id` counts, as in all of transformers. Labels are not shifted; without
                `decoder_input_ids`, the decoder reads them shifted right.
            num_items_in_batch: target tokens of the whole update, for exact gradient accumulation.
            skip_logits: compute the same loss and gradients in chunks of tokens, without all logits at once, and return
                `None` for them. An `lm_head` with an adapter or a hook computes all logits nevertheless.

        Returns:
            `logits` `(batch, target_length, vocab_size)`; with `labels`, `loss` (smoothed, mean over target
            tokens, 0 if every label is ignored) and `negative_log_likelihood` (unsmoothed).

        Raises:
            ValueError: `skip_logits` without `labels`.
            IndexError: a label below 0 other than -100, or one beyond the vocabulary (with `skip_logits`, torch's
                RuntimeError).
        """
        if skip_logits and labels is None:
            raise ValueError("skip_logits=True leaves nothing to return without labels; give labels, or leave it out")
        if labels is not None:
            use_cache = False if use_cache is None else use_cache
            if decoder_input_ids is None and decoder_inputs_embeds is None:
                decoder_input_ids = self.prepare_decoder_input_ids_from_labels(labels)
        outputs = self.model(
            input_ids,
            attention_mask,
            decoder_input_ids,
            decoder_attention_mask,
            encoder_outputs=encoder_outputs,
            cache=cache,
            inputs_embeds=inputs_embeds,
            decoder_inputs_embeds=decoder_inputs_embeds,
            use_cache=use_cache,
            return_dict=True,
            **kwargs,
        )

        logits = loss = nll = None
        is_tensor_parallel = (self.tp_size or 1) > 1
        # The chunked loss reads weight and bias, which are not the whole projection under an adapter or a hook.
        in_chunks = skip_logits and (is_tensor_parallel or has_only_own_modules(self.lm_head))
        if not in_chunks:
            logits = self.lm_head(outputs.last_hidden_state)  # (batch, target_length, vocab_size)
        if labels is not None:
            loss_arguments = (labels, self.config.label_smoothing, num_items_in_batch)
            if logits is not None:
                loss, nll = cross_entropy_of_logits(logits, *loss_arguments)
            else:
                projection: list[Any] = [self.lm_head.weight, self.lm_head.bias]
                if is_tensor_parallel:  # each process holds some of the rows
                    projection = [part if part is None else part.full_tensor() for part in projection]
                weight, bias = projection
                loss, nll = smoothed_cross_entropy(outputs.last_hidden_state, weight, *loss_arguments, bias)
        others = {name: value for name, value in outputs.items() if name != "last_hidden_state"}
        logits = None if skip_logits else logits
        return Seq2SeqLMLossOutput(loss=loss, logits=logits, negative_log_likelihood=nll, **others)

    def can_build_decoder(self) -> bool:
        """Whether its decoder is as this package made it; see `is_unmodified`."""
        return is_unmodified(cast(nn.Module, self.model.decoder)) and is_unmodified(self.lm_head)

    def build_decoder(self, precision: Precision = "float32") -> Decoder:
        """The decoder's weights laid out for `beam_search(…, decoder=…)`; later changes of them have no effect.

        Args:
            precision: "int8" quantizes them; otherwise they keep the model's precision.

        Raises:
            ValueError: a decoder with adapters, hooks or replaced modules; int8 elsewhere than on a CPU.
        """
        if not self.can_build_decoder():
            raise ValueError(
                "build_decoder needs the decoder as this package made it; this one has adapters, hooks, shards or "
                "replaced modules: merge them (PEFT: merge_and_unload), or decode without `decoder=`"
            )
        return self.decoder_class(self, precision)

    def prepare_decoder_input_ids_from_labels(self, labels: torch.Tensor) -> torch.Tensor:
        """The labels shifted right: `decoder_start_token_id` first, padding for -100; `(batch, target_length)`."""
        shifted = labels.new_full(labels.shape, self.config.decoder_start_token_id)
        shifted[:, 1:] = labels[:, :-1]
        pad = self.config.pad_token_id
        # Without a padding token any other will do: the model ignores this position, and no earlier one sees it.
        return shifted.masked_fill(shifted == IGNORE_INDEX, self.config.decoder_start_token_id if pad is None else pad)


# For a model that carries its code, transformers asks for this signature in every step of `generate`. Looking it up
# through all decorators takes 3% of a step of a small model; inspect returns a stored one at once.
BaseForConditionalGeneration.forward.__signature__ = inspect.signature(BaseForConditionalGeneration.forward)
