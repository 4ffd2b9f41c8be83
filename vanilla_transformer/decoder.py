# SPDX-License-Identifier: Apache-2.0
"""What every decoding engine offers: the `Decoder` protocol; and the model's own forward pass as such a decoder."""

from collections.abc import Callable, Iterable
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn
from transformers.utils.generic import ModelOutput

from .transformers_differences import CACHE


class DecoderState(Protocol):
    """A batch of sentences in the midst of being decoded, each with any number of hypotheses (`beams`).

    `attention` `(sentences, beams, source_length)` holds the cross-attention of the last token, if `Decoder.begin` was
    asked for it.
    """

    attention: torch.Tensor | None

    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        """Read a token of each hypothesis: `(sentences, beams)` → logits `(sentences * beams, vocab_size)`."""
        ...

    def reorder(self, beam_indices: torch.Tensor) -> None:
        """Hypothesis i of a sentence continues its former hypothesis `beam_indices[:, i]`.

        `beam_indices` is `(sentences, beams)`; there may be more or fewer beams than before.
        """
        ...


@runtime_checkable
class SupportsSelect(DecoderState, Protocol):
    """A state whose sentences can leave the batch as soon as they are finished.

    Any other state keeps all sentences, and is given all `beams` hypotheses of each from the first step on.
    """

    def select(self, batch_indices: torch.Tensor) -> None:
        """Keep these sentences, in this order: `(sentences)`."""
        ...


@runtime_checkable
class SupportsTopK(DecoderState, Protocol):
    """A state that finds the best next tokens itself, where that is faster than returning all logits."""

    def topk_steps(
        self,
        tokens: torch.Tensor,
        beam_scores: torch.Tensor | None,
        num_beams: int,
        eos_token_ids: torch.Tensor,
        max_steps: int = 1,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Read a token of each hypothesis, `(sentences, alive)`, and return the best continuations.

        Returns the `num_beams` best continuations by non-EOS tokens, and every continuation by an EOS token that scores
        higher than the last of them. A greedy search gets the best alone.

        Args:
            beam_scores: log-probabilities of the hypotheses so far, `(sentences, alive)`; `None`: greedy, the
                logits of one hypothesis for each sentence decide.
            eos_token_ids: `(eos_tokens)`.
            max_steps: the state may read up to so many tokens of each hypothesis. It goes on with the best `num_beams`
                continuations of each sentence as long as none of them ends, and may stop earlier.

        Returns:
            Total log-probabilities (or logits), the hypothesis that each continues, and the next token, best first:
            `(sentences, num_beams * (1 + eos_tokens))` each, fewer for a small vocabulary. Entries after those named
            above are undefined. Scores are NaN where a logit is NaN. After several steps these belong to the last one,
            and the fourth result has the hypotheses before it, `(sentences, num_beams, 1 + tokens)`: the former
            hypothesis that each continues, and the tokens since. After one step it is `None`.
        """
        ...


@runtime_checkable
class SupportsPrefill(DecoderState, Protocol):
    """A state that reads a whole prompt in one step, rather than token by token."""

    def prefill(self, prompt: torch.Tensor) -> None:
        """Begin every target with `prompt`, `(sentences, prompt_length)`, without its last token.

        The first call reads them with the last token; `attention` is then the sum over the prompt.
        """
        ...


class Decoder(Protocol):
    """A decoding engine with a model's weights: all that a search, `translate_lines` and `Translator` know of it.

    Attributes:
        engine: "native" or "torch".
        parallel_batches: the number of batches it decodes at once, each on its own thread.

    Its states may also be `SupportsSelect`, `SupportsTopK` or `SupportsPrefill`.
    """

    @property
    def engine(self) -> str: ...

    @property
    def parallel_batches(self) -> int: ...

    def encode(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> ModelOutput:
        """`(sentences, source_length)` twice → the encoder's output, for `begin` or `generate(encoder_outputs=…)`."""
        ...

    def begin(
        self,
        encoder_outputs: Any,
        attention_mask: torch.Tensor | None,
        max_length: int,
        beams: int,
        output_attentions: bool = False,
    ) -> DecoderState:
        """Start decoding a batch, with one empty hypothesis for each sentence.

        Args:
            encoder_outputs: with `last_hidden_state` `(sentences, source_length, d_model)`.
            attention_mask: `(sentences, source_length)`, 1 for real tokens; `None`: all are real.
            max_length: the longest that any target may become, in tokens.
            beams: the largest number of hypotheses for each sentence.
            output_attentions: whether the state computes `attention`.

        Raises:
            ValueError: targets longer than learned positions; encoder outputs of another model; `output_attentions`
                of a model without attention.
        """
        ...


@runtime_checkable
class BuildsDecoder(Protocol):
    """A model that can lay out its weights for decoding."""

    def can_build_decoder(self) -> bool: ...

    def build_decoder(self, precision: str = "float32") -> Decoder: ...


class TorchDecoder:
    """The base of the decoders that compute by PyTorch's operations.

    `begin` makes a `state_class` of the decoder and the arguments of `Decoder.begin`.

    Args:
        encoder: the model's own, or a quantized copy.
    """

    engine, parallel_batches = "torch", 1
    state_class: Callable[..., DecoderState]

    def __init__(self, encoder: nn.Module):
        self.encoder = encoder

    @torch.no_grad()
    def encode(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> ModelOutput:
        return self.encoder(input_ids, attention_mask=attention_mask, return_dict=True)

    def begin(self, *arguments: Any, **options: Any) -> DecoderState:
        return self.state_class(self, *arguments, **options)


class ModelDecoderState:
    """All beams of all sentences in one batch, as transformers has them; none leaves it."""

    def __init__(
        self,
        decoder: "ModelDecoder",
        encoder_outputs: Any,
        attention_mask: torch.Tensor | None,
        max_length: int,
        beams: int,
        output_attentions: bool = False,
    ):
        self.model, self.generation_config, self.beams = decoder.model, decoder.generation_config, beams
        source = {"encoder_outputs": map_tensors(encoder_outputs, lambda rows: rows.repeat_interleave(beams, dim=0))}
        if attention_mask is not None:
            source["attention_mask"] = attention_mask.repeat_interleave(beams, dim=0)
        self.model_kwargs: dict[str, Any] = {"use_cache": True} | source | decoder.model_kwargs
        self.targets: torch.Tensor | None = None  # (sentences * beams, target_length)
        self.has_begun, self.output_attentions, self.attention = False, output_attentions, None
        if output_attentions:
            self.model_kwargs["output_attentions"] = True

    def prefill(self, prompt: torch.Tensor) -> None:
        self.targets = prompt[:, :-1].repeat_interleave(self.beams, dim=0)

    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        new = tokens.reshape(-1, 1)
        self.targets = new if self.targets is None else torch.cat([self.targets, new], dim=1)
        if self.has_begun:
            only_new = 1 if self.model_kwargs.get("use_cache") else None
            inputs = self.model.prepare_inputs_for_generation(
                self.targets, next_sequence_length=only_new, **self.model_kwargs
            )
            output, first_new = self.model(**inputs, return_dict=True), -1
        else:  # by transformers' own rule, which knows the user's cache
            output, first_new = self.model._prefill(self.targets, self.generation_config, self.model_kwargs), 0
        self.has_begun = True
        self.model_kwargs = self.model._update_model_kwargs_for_generation(
            output, self.model_kwargs, is_encoder_decoder=True
        )
        if self.output_attentions:
            if not output.get("cross_attentions"):
                raise ValueError(
                    f"coverage_penalty needs the attention weights, and {type(self.model).__name__} returns none by "
                    f"attn_implementation={self.model.config._attn_implementation!r}; where the model has attention, "
                    "call model.set_attn_implementation('eager') first"
                )
            weights = output.cross_attentions[-1].mean(dim=1)  # (sentences * beams, tokens, source_length)
            self.attention = weights[:, first_new:].sum(dim=1).unflatten(0, tokens.shape)
        return output.logits[:, -1]

    def reorder(self, beam_indices: torch.Tensor) -> None:
        if not self.has_begun:  # all hypotheses are the prompt
            return
        assert self.targets is not None
        offset = torch.arange(len(beam_indices), device=beam_indices.device)[:, None] * self.beams
        rows = (beam_indices + offset).flatten()  # (sentences * beams)
        self.targets = self.targets[rows]
        if (cache := self.model_kwargs.get(CACHE)) is not None:
            cache.reorder_cache(rows)


class ModelDecoder(TorchDecoder):
    """The forward pass and cache of any encoder-decoder of transformers: exact, and as fast as the model.

    Args:
        generation_config: the `generate` call's, if there is one.
        model_kwargs: what that call hands to a decoding method, with a row for each beam; takes precedence over the
            arguments of `begin`.
    """

    state_class = ModelDecoderState

    def __init__(self, model: Any, generation_config: Any = None, model_kwargs: dict[str, Any] | None = None):
        super().__init__(model.get_encoder())
        self.model, self.model_kwargs = model, model_kwargs or {}
        self.generation_config = generation_config or model.generation_config


def map_tensors(encoder_outputs: Any, function: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """The encoder's output, a `ModelOutput` or a tuple, with `function` applied to each tensor; the rest is dropped."""
    if not isinstance(encoder_outputs, ModelOutput):
        return tuple(function(value) for value in encoder_outputs if isinstance(value, torch.Tensor))
    tensors = {name: value for name, value in encoder_outputs.items() if isinstance(value, torch.Tensor)}
    return type(encoder_outputs)(**{name: function(tensor) for name, tensor in tensors.items()})


def compact_rows(tensors: Iterable[torch.Tensor], batch_indices: torch.Tensor) -> None:
    """Copy row `batch_indices[i]` of each tensor to row i, in place.

    On a CPU, rows that are there already are not copied. Elsewhere the host would wait for their number.
    """
    rows, replacements = torch.arange(len(batch_indices), device=batch_indices.device), batch_indices
    if batch_indices.device.type == "cpu":
        rows = (batch_indices != rows).nonzero().squeeze(1)
        replacements = batch_indices[rows]
    for tensor in tensors:
        tensor[rows] = tensor[replacements]
