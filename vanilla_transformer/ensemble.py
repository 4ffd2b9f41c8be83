# SPDX-License-Identifier: Apache-2.0
"""Several models that decode together: the next token has the mean of what they give it."""

import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal, get_args

import torch
from transformers.utils.generic import ModelOutput

from .decoder import Decoder, DecoderState, SupportsSelect

Mean = Literal["probabilities", "log_probabilities"]


def log_softmax(logits: torch.Tensor) -> torch.Tensor:
    """In float32 at least, as the search computes it."""
    return logits.log_softmax(dim=-1, dtype=torch.promote_types(logits.dtype, torch.float32))


class EnsembleState:
    """The members' states of one batch; see `decoder.DecoderState` and `SupportsSelect`."""

    def __init__(self, states: list[Any], weights: torch.Tensor, mean: Mean):
        self.states, self.weights, self.mean = states, weights, mean  # weights: (members, 1, 1)
        self.attention: torch.Tensor | None = None

    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        log_probs = torch.stack([log_softmax(state(tokens)) for state in self.states])
        weights = self.weights.to(log_probs.dtype)
        attentions = [state.attention for state in self.states if state.attention is not None]
        if attentions:  # of all members, or `begin` has raised
            self.attention = (torch.stack(attentions) * weights[..., None]).sum(dim=0)
        if self.mean == "probabilities":
            return (log_probs + weights.log()).logsumexp(dim=0)  # (sentences * beams, vocab_size)
        return (log_probs * weights).sum(dim=0)

    def reorder(self, beam_indices: torch.Tensor) -> None:
        for state in self.states:
            state.reorder(beam_indices)

    def select(self, batch_indices: torch.Tensor) -> None:
        for state in self.states:
            state.select(batch_indices)


class EnsembleDecoder:
    """Decoders of models with one vocabulary as one `Decoder`. An ensemble of one decodes as its member, to the bit.

    Args:
        decoders: of `build_decoder` or the native engine, in any mixture.
        weights: one for each, greater than 0; they are divided by their sum. `None`: all are equal.
        mean: the members' probabilities are averaged (as in fairseq), or their log-probabilities (as in Marian). The
            search normalizes the latter at every token, so that they are a distribution again.

    Raises:
        ValueError: no decoder; another number of weights, or one that is not positive; another mean.
    """

    def __init__(
        self, decoders: Iterable[Decoder], weights: Sequence[float] | None = None, mean: Mean = "probabilities"
    ):
        self.decoders = list(decoders)
        weights = [1.0] * len(self.decoders) if weights is None else list(weights)
        if len(weights) != len(self.decoders) or not weights:
            raise ValueError(f"weights has {len(weights)} values for {len(self.decoders)} models; give one for each")
        if not all(0 < weight < math.inf for weight in weights):
            raise ValueError(f"weights={weights} must be greater than 0, and finite")
        if mean not in get_args(Mean):
            raise ValueError(f"mean={mean!r} must be one of {', '.join(get_args(Mean))}")
        self.weights = [weight / sum(weights) for weight in weights]
        self.mean: Mean = mean

    @property
    def engine(self) -> str:
        """ "native" if it decodes all members."""
        return "native" if all(decoder.engine == "native" for decoder in self.decoders) else "torch"

    @property
    def parallel_batches(self) -> int:
        return min(decoder.parallel_batches for decoder in self.decoders)

    def encode(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> ModelOutput:
        """The source itself: each member encodes it in `begin`, whatever rows a caller has repeated until then."""
        return ModelOutput(last_hidden_state=input_ids, attention_mask=attention_mask)

    def begin(
        self,
        encoder_outputs: Any,
        attention_mask: torch.Tensor | None,
        max_length: int,
        beams: int,
        output_attentions: bool = False,
    ) -> DecoderState:
        """As `Decoder.begin`, with the output of `encode`.

        Raises:
            ValueError: the encoder's output of a single model; a member whose sentences cannot leave the batch.
        """
        source = encoder_outputs[0]
        if source.is_floating_point():
            raise ValueError("an ensemble encodes by itself: give encoder_outputs=decoder.encode(input_ids, mask)")
        mask = torch.ones_like(source) if attention_mask is None else attention_mask
        states = [
            decoder.begin(decoder.encode(source, mask), mask, max_length, beams, output_attentions)
            for decoder in self.decoders
        ]
        if len(states) == 1:
            return states[0]
        if not all(isinstance(state, SupportsSelect) for state in states):
            raise ValueError("an ensemble is of models of this package, without adapters or hooks: merge them")
        weights = torch.tensor(self.weights, dtype=torch.float64, device=source.device)[:, None, None]
        return EnsembleState(states, weights, self.mean)


def check_members(models: Sequence[Any]) -> None:
    """Raises ValueError if the models do not read and write the same token ids."""
    fields = ("vocab_size", "decoder_vocab_size", "decoder_start_token_id", "eos_token_id")
    values = [{name: getattr(model.config, name, None) for name in fields} for model in models]
    for name in fields:
        if different := [each[name] for each in values if each[name] != values[0][name]]:
            raise ValueError(
                f"members of an ensemble share one vocabulary: {name}={different[0]}, not {values[0][name]}"
            )
