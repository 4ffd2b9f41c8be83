# SPDX-License-Identifier: Apache-2.0
"""Steps of a decoder, as a search takes them, and the records that it keeps of them."""

from typing import Any, Protocol, runtime_checkable

import torch
from transformers.utils.generic import ModelOutput


class DecoderState(Protocol):
    """Sentences in the midst of being decoded; what a model has to offer to be searched.

    `attention`, `(sentences, beams, source_length)`, is what the last step has looked at, where it was asked for; a
    step that reads several tokens has the sum.
    """

    attention: torch.Tensor | None

    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        """Read a token of each hypothesis: `(sentences, beams)` → logits `(sentences * beams, vocab_size)`."""
        ...

    def reorder(self, beam_indices: torch.Tensor) -> None:
        """Hypothesis i of a sentence continues its former hypothesis `beam_indices[:, i]`; `(sentences, beams)`."""
        ...

    def select(self, batch_indices: torch.Tensor) -> None:
        """Go on with these sentences in this order; `(sentences)`."""
        ...


@runtime_checkable
class SupportsTopK(DecoderState, Protocol):
    """Steps that also find the best next tokens, where that is faster than to hand over all logits."""

    def topk_step(
        self, tokens: torch.Tensor, totals: torch.Tensor | None, beams: int, ends: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Read a token of each hypothesis, `(sentences, live)`, and find the best that may follow.

        Args:
            totals: log-probabilities of the hypotheses so far, `(sentences, live)`; `None`: the logits decide, of one
                hypothesis for each sentence.
            beams: the number of tokens wanted that are not among `ends`, `(ends)`; ends that score higher come too.

        Returns:
            Log-probabilities with the next token, or logits; which hypothesis each continues; by which token;
            `(sentences, beams * (1 + len(ends)))`, best first, fewer where fewer are possible. Entries after the tokens
            wanted are undefined. Scores are NaN where a logit is NaN.
        """
        ...


class Decoder(Protocol):
    """A model laid out for decoding: whatever a search, `translate` and `Translator` need to know of an engine.

    Attributes:
        engine: its name, "native" or "torch", or "model" for a model's own forward pass.
        parallel_batches: how many batches it can decode at once, each on a thread of its own.
        supports_select: whether its states can `select` some of their sentences.
    """

    engine: str
    parallel_batches: int
    supports_select: bool

    def encode(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> ModelOutput:
        """`(sentences, source_length)` twice → the encoder's output, which `begin` takes."""
        ...

    def begin(
        self,
        encoder_outputs: ModelOutput,
        attention_mask: torch.Tensor | None,
        max_length: int,
        beams: int,
        output_attentions: bool = False,
    ) -> DecoderState:
        """Start decoding these sources, with one hypothesis for each that has no token yet.

        Args:
            encoder_outputs: with `last_hidden_state` `(sentences, source_length, d_model)`.
            attention_mask: `(sentences, source_length)`, 1 for real tokens; `None`: all are real.
            max_length: of all targets, in tokens.
            beams: hypotheses that there will be of each sentence.
            output_attentions: whether the state's `attention` is wanted.

        Raises:
            ValueError: targets longer than learned positions reach.
        """
        ...


class ModelDecoderState:
    """Any model's own forward pass and cache as `DecoderState`: exact, and as fast as the model.

    The beams of a sentence stand side by side in the batch, as transformers has it; sentences cannot leave. The first
    step reads the prompt as a whole, by transformers' own rule.

    Args:
        prompt: `(sentences * beams, prompt_length)`.
        model_kwargs: as transformers hands them to a decoding method.
    """

    def __init__(
        self, model: Any, prompt: torch.Tensor, generation_config: Any, output_attentions: bool, model_kwargs: dict
    ):
        self.model, self.targets, self.generation_config = model, prompt, generation_config
        self.beams = generation_config.num_beams or 1
        self.sentences = len(prompt) // self.beams
        self.has_begun, self.output_attentions, self.attention = False, output_attentions, None
        self.model_kwargs = model_kwargs | ({"output_attentions": True} if output_attentions else {})

    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        first_new = -1 if self.has_begun else 0
        if self.has_begun:
            self.targets = torch.cat([self.targets, self._widen(tokens).reshape(-1, 1)], dim=1)
            only_new = 1 if self.model_kwargs.get("use_cache") else None
            inputs = self.model.prepare_inputs_for_generation(
                self.targets, next_sequence_length=only_new, **self.model_kwargs
            )
            output = self.model(**inputs, return_dict=True)
        else:
            output = self.model._prefill(self.targets, self.generation_config, self.model_kwargs)
        self.has_begun = True
        self.model_kwargs = self.model._update_model_kwargs_for_generation(
            output, self.model_kwargs, is_encoder_decoder=self.model.config.is_encoder_decoder
        )
        shape = self.sentences, self.beams, -1
        if self.output_attentions:
            if not output.get("cross_attentions"):
                raise ValueError(
                    f"coverage_penalty needs the attention weights, and {type(self.model).__name__} returns none by "
                    f"attn_implementation={self.model.config._attn_implementation!r}; where the model has attention, "
                    "call model.set_attn_implementation('eager') first"
                )
            weights = output.cross_attentions[-1].mean(dim=1)  # (sentences * beams, tokens, source_length)
            self.attention = weights[:, first_new:].sum(dim=1).view(shape)[:, : tokens.shape[1]]
        return output.logits[:, -1].view(shape)[:, : tokens.shape[1]].flatten(0, 1)

    def reorder(self, beam_indices: torch.Tensor) -> None:
        if not self.has_begun:  # all are the prompt
            return
        offset = torch.arange(self.sentences, device=beam_indices.device)[:, None] * self.beams
        flat = (self._widen(beam_indices) + offset).flatten()  # (sentences * beams)
        self.targets = self.targets[flat]
        cache: Any = self.model_kwargs.get("cache")
        if cache is not None:
            cache.reorder_cache(flat)

    def select(self, batch_indices: torch.Tensor) -> None:
        raise AssertionError("sentences stay in the batch")

    def _widen(self, hypotheses: torch.Tensor) -> torch.Tensor:
        """`(sentences, live)` → `(sentences, beams)`; places without a hypothesis repeat the last."""
        places = torch.arange(self.beams, device=hypotheses.device).clamp(max=hypotheses.shape[1] - 1)
        return hypotheses[:, places]


class StepRecords:
    """Scores and logits of every step in transformers' layout, whose rows are all beams of all sentences to the end."""

    def __init__(self, with_scores: bool, with_logits: bool):
        self.scores: tuple[torch.Tensor, ...] | None = () if with_scores else None  # (sentences * beams, vocab_size)
        self.logits: tuple[torch.Tensor, ...] | None = () if with_logits else None
        self.parents: list[torch.Tensor] = []  # of the hypotheses after each step, (sentences, beams)

    def add(self, scores: torch.Tensor, logits: torch.Tensor) -> None:
        """Copies, for decoders use their memory again."""
        if self.scores is not None:
            self.scores += (scores.to(torch.float32, copy=True),)
        if self.logits is not None:
            self.logits += (logits.to(torch.float32, copy=True),)

    def beam_indices(self, lengths: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
        """For each token the row of `scores` that it was chosen from, -1 after the end.

        Args:
            lengths: of the targets without their prompts, `(sentences, kept)`.
            last: which hypothesis of its sentence the last token of a target continued, `(sentences, kept)`.

        Returns:
            `(sentences * kept, longest)`.
        """
        found = lengths.new_full((*lengths.shape, int(lengths.max())), -1)
        first = torch.arange(len(lengths), device=lengths.device)[:, None] * self.parents[0].shape[1]
        beam = last
        for step in reversed(range(found.shape[2])):
            found[:, :, step] = torch.where(step < lengths, first + beam, -1)
            if step:
                beam = torch.where(step < lengths, self.parents[step - 1].gather(1, beam), last)
        return found.flatten(0, 1)
