# SPDX-License-Identifier: Apache-2.0
"""What both models share: their tables of embeddings, projection and loss, and their side of `generate()`."""

import inspect
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import nn
from transformers import GenerationConfig, GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils.deprecation import deprecate_kwarg
from transformers.utils.generic import can_return_tuple
from transformers.utils.output_capturing import capture_outputs

from .decoder import Decoder
from .loss import IGNORED, Seq2SeqLMLossOutput, cross_entropy_of_logits, smoothed_cross_entropy
from .packed_linear import Precision


def is_unmodified(part: nn.Module) -> bool:
    """Whether a part of a model is as this package made it: no adapters, no shards, no hooks, no replaced modules."""
    return has_own_modules(part) and all(type(parameter) is nn.Parameter for parameter in part.parameters())


def has_own_modules(part: nn.Module) -> bool:
    """Whether a part of a model, sharded or not, has no adapters, no hooks and no replaced modules."""
    own = __name__.rpartition(".")[0]
    for module in part.modules():
        where = type(module).__module__
        is_plain = where.startswith((f"{own}.", "torch.nn.modules.")) or where == "transformers.activations"
        hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
        # Those by which transformers records outputs, and leaves in place, change nothing.
        is_hooked = any(hook.__module__ != capture_outputs.__module__ for hook in hooks) or "forward" in vars(module)
        if not is_plain or is_hooked:
            return False
    return True


class EmbeddingMixin(PreTrainedModel):
    """The base of a model that has more than one table of embeddings, which may be one matrix."""

    @classmethod
    def maybe_distribute_model(cls, model: PreTrainedModel, distributed_config: Any, mesh_manager):
        """As in transformers, but for FSDP2 what is one matrix is one before it is sharded, not after.

        It would be sharded as three, which drift apart wherever vocab_size does not divide by the processes.

        Raises:
            ValueError: tied tables under FSDP2 and tensor parallelism at once, which would still drift.
        """
        if distributed_config is not None and distributed_config.dp_size > 1 and model.all_tied_weights_keys:
            if distributed_config.tp_size > 1:
                raise ValueError(
                    f"fsdp_size={distributed_config.fsdp_size} with tp_size={distributed_config.tp_size} would shard "
                    "tied embeddings as if they were several; set one of the two to 1, or use tie_word_embeddings=False"
                )
            model.tie_weights(recompute_mapping=False)
        return super().maybe_distribute_model(model, distributed_config, mesh_manager)


class BaseEncoderDecoder(EmbeddingMixin):
    """The base of a model whose encoder and decoder have a table of embeddings each, one matrix if tied."""

    encoder: Any  # a stack of either model, with `embed_tokens`
    decoder: Any

    def get_input_embeddings(self) -> nn.Module:
        return self.encoder.embed_tokens

    def set_input_embeddings(self, value: nn.Embedding) -> None:  # pyright: ignore[reportIncompatibleMethodOverride] -- it is an embedding that is replaced
        """Replace the source embedding, and the target embedding with it: they share one vocabulary."""
        self.encoder.embed_tokens = value
        if self.config.tie_word_embeddings:
            self.decoder.embed_tokens = value

    def _resize_token_embeddings(self, new_num_tokens, pad_to_multiple_of=None, mean_resizing=True) -> nn.Module:
        """As in transformers, and the target's table too, which it does not know of."""
        table: Any = super()._resize_token_embeddings(new_num_tokens, pad_to_multiple_of, mean_resizing)
        self.decoder._resize_token_embeddings(table.weight.shape[0], mean_resizing=mean_resizing)
        return table


class BaseForConditionalGeneration(EmbeddingMixin, GenerationMixin):
    """The base of a model that has the encoder-decoder as `model` and the projection as `lm_head`.

    Its classes name `GenerationMixin` among their own bases too, where transformers looks for it.
    """

    model: PreTrainedModel
    lm_head: nn.Linear
    decoder_class: Callable[[Any, Precision], Decoder]  # of `build_decoder`
    longest_target: int | None = None  # in tokens; `None`: there is no limit

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

    def get_input_embeddings(self) -> nn.Module:
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Embedding) -> None:  # pyright: ignore[reportIncompatibleMethodOverride] -- it is an embedding that is replaced
        self.model.set_input_embeddings(value)

    def _resize_token_embeddings(self, new_num_tokens, pad_to_multiple_of=None, mean_resizing=True) -> nn.Module:
        """As in transformers, whose part is left with the projection once both tables have the new size."""
        table: Any = self.model._resize_token_embeddings(new_num_tokens, pad_to_multiple_of, mean_resizing)
        return super()._resize_token_embeddings(table.weight.shape[0], mean_resizing=mean_resizing)

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
            labels: `(batch, target_length)`, the target with its end-of-sentence token; -100 is ignored, and
                nothing else: a label that is `pad_token_id` counts, as everywhere in transformers. They are not
                shifted: without `decoder_input_ids`, the decoder reads the labels shifted right.
            num_items_in_batch: target tokens of the whole update, for exact gradient accumulation.
            skip_logits: compute the loss in chunks of tokens, so that the logits never exist at once; `logits` is
                then `None`. Gradients are the same. (Where `lm_head` has an adapter or a hook, they do exist.)

        Returns:
            `logits` `(batch, target_length, vocab_size)`; with `labels`, `loss` (smoothed, mean over target
            tokens; 0 where no label counts) and `negative_log_likelihood` (unsmoothed).

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
            **kwargs,
        )

        logits = loss = likelihood = None
        is_tensor_parallel = (self.tp_size or 1) > 1
        # The chunks read the weight alone, which is not the whole projection where it has an adapter or a hook.
        in_chunks = skip_logits and (is_tensor_parallel or has_own_modules(self.lm_head))
        if not in_chunks:
            logits = self.lm_head(outputs.last_hidden_state)  # (batch, target_length, vocab_size)
        if labels is not None:
            options = (labels, self.config.label_smoothing, num_items_in_batch)
            if logits is not None:
                loss, likelihood = cross_entropy_of_logits(logits, *options)
            else:
                weight: Any = self.lm_head.weight
                if is_tensor_parallel:  # it leaves each process some of the rows
                    weight = weight.full_tensor()
                loss, likelihood = smoothed_cross_entropy(outputs.last_hidden_state, weight, *options)
        return Seq2SeqLMLossOutput(
            loss=loss,
            logits=None if skip_logits else logits,
            cache=outputs.cache,
            decoder_hidden_states=outputs.decoder_hidden_states,
            decoder_attentions=outputs.decoder_attentions,
            cross_attentions=outputs.cross_attentions,
            encoder_last_hidden_state=outputs.encoder_last_hidden_state,
            encoder_hidden_states=outputs.encoder_hidden_states,
            encoder_attentions=outputs.encoder_attentions,
            negative_log_likelihood=likelihood,
        )

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
                "replaced modules: merge them (PEFT: merge_and_unload), or decode without a prepared decoder"
            )
        return self.decoder_class(self, precision)

    def adjust_generation_fn(self, *args, **kwargs) -> None:
        """As in transformers, but `generate` stays transformers': with and without this package installed the same.

        With trust_remote_code, transformers would put the folder's custom_generate in its place. The paper's decoding
        is for those who ask for it.
        """
        super().adjust_generation_fn(*args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue] -- as below
        self.__dict__.pop("generate", None)

    def _extract_generation_mode_kwargs(self, custom_generate, kwargs, synced_gpus, assistant_model, streamer):
        """As in transformers, and refuses arguments that transformers drops when `custom_generate` is a function.

        Raises:
            ValueError: one of them is given beside such a function; several processes that share a model's weights,
                which need `synced_gpus`.
        """
        if callable(custom_generate):
            resolved = super()._extract_generation_mode_kwargs(  # pyright: ignore[reportAttributeAccessIssue] -- as below
                None, dict(kwargs), synced_gpus, assistant_model, streamer
            )
            remedies: dict[str, str] = dict.fromkeys(
                ("streamer", "assistant_model", "assistant_tokenizer"), "leave it out"
            )
            remedies["synced_gpus"] = "leave custom_generate out"
            if kwargs.get("stop_strings") is not None:
                remedies["tokenizer"] = "give a StopStringCriteria in stopping_criteria instead of stop_strings"
            for name, remedy in remedies.items():
                if resolved.get(name) not in (None, False):
                    raise ValueError(f"{name} does not reach a function given as custom_generate: {remedy}")
        return super()._extract_generation_mode_kwargs(  # pyright: ignore[reportAttributeAccessIssue] -- as below
            custom_generate, kwargs, synced_gpus, assistant_model, streamer
        )

    def _prepare_generated_length(self, generation_config, has_default_max_length, **kwargs):
        """transformers' rule, and section 6.1's when nothing else is asked: maximum length = source length + 50.

        The 50 is `generation_config.max_tokens_beyond_source`, which `GenerationConfig` stores without knowing it.
        Learned positions may end before. The source's length is the batch's, padding included; the paper's decoding
        (`beam_search`) has a limit for each sentence within it.
        """
        beyond = vars(generation_config).get("max_tokens_beyond_source")
        if has_default_max_length and generation_config.max_new_tokens is None and beyond is not None:
            longest = kwargs["inputs_tensor"].shape[1] + beyond
            if self.longest_target is not None:
                longest = min(longest, self.longest_target - kwargs["input_ids_length"])
            generation_config.max_new_tokens = longest
        else:
            generation_config.max_tokens_beyond_source = None  # for the paper's decoding: another limit is asked for
        return super()._prepare_generated_length(  # pyright: ignore[reportAttributeAccessIssue] -- transformers types `self` as a protocol of its own
            generation_config=generation_config, has_default_max_length=has_default_max_length, **kwargs
        )

    def prepare_decoder_input_ids_from_labels(self, labels: torch.Tensor) -> torch.Tensor:
        """The labels shifted right: `decoder_start_token_id` first, -100 as padding; `(batch, target_length)`."""
        shifted = labels.new_full(labels.shape, self.config.decoder_start_token_id)
        shifted[:, 1:] = labels[:, :-1]
        pad = self.config.pad_token_id
        # Without a token for padding any other does: nothing is learnt here, and nothing earlier sees it.
        return shifted.masked_fill(shifted == IGNORED, self.config.decoder_start_token_id if pad is None else pad)


# transformers asks for the signature of a model that carries its code at every step of `generate`, and would look it up
# anew through all decorators: 3% of a step of a small model.
BaseForConditionalGeneration.forward.__signature__ = inspect.signature(BaseForConditionalGeneration.forward)
