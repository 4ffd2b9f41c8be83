# SPDX-License-Identifier: Apache-2.0
"""Section 6.1 of the paper: beam search with the length penalty of Wu et al. (2016, arXiv:1609.08144).

A model's folder has this file as custom_generate/generate.py, where transformers looks for `generate`, and
decoder.py beside it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from transformers.cache_utils import Cache
from transformers.generation.stopping_criteria import EosTokenCriteria, MaxLengthCriteria
from transformers.generation.utils import GenerateBeamEncoderDecoderOutput, GenerateEncoderDecoderOutput
from transformers.utils.generic import ModelOutput

from .decoder import DecoderState, ModelDecoderState, StepRecords, SupportsTopK

BEAMS, ALPHA = 4, 0.6  # "chosen after experimentation on the development set"
TOP_BLOCK, TOP_FROM = 128, 2**19  # where so many numbers are compared, blocks of them are compared first
NOT_OFFERED = (  # fields of a generation config that ask for another way of decoding, or for outputs not offered
    *("do_sample", "penalty_alpha", "dola_layers", "diversity_penalty", "num_beam_groups", "constraints"),
    *("force_words_ids", "low_memory", "use_mtp", "is_assistant", "prompt_lookup_num_tokens", "assistant_early_exit"),
    *("guidance_scale", "prefill_chunk_size", "output_attentions", "output_hidden_states"),
)


class DecodingError(ValueError):
    """Decoding cannot go on; `sentence` is the row of the batch at fault."""

    def __init__(self, message: str, sentence: int):
        super().__init__(message)
        self.sentence = sentence


@dataclass(frozen=True)
class Search:
    """How to search, and by what to rank.

    Args:
        beams: hypotheses of a sentence that are followed.
        kept: of them returned, best first.
        divisor: of a log-probability, by the length of its hypothesis in tokens, the end among them; of a number or
            a tensor of them.
        stops_when: "sure": nothing unfinished can become one of the `kept`; "full": `beams` are finished;
            "unlikely": transformers' heuristic, nothing unfinished would be at its present length.
        coverage: beta of Wu et al.'s coverage penalty; 0: none.
        ends: the tokens that end a target, `(ends)`.
        filler: what follows an end.
        processors: transformers' logits processors, `(histories, scores) → scores`; `None`: none.
        criteria: further stopping criteria, `(histories, scores) → (histories)`; `None`: none.
        records: takes down every step; `None`: nobody asked for it.
    """

    beams: int
    kept: int
    divisor: Callable[[Any], Any]
    ends: torch.Tensor
    filler: int
    stops_when: Literal["sure", "full", "unlikely"] = "sure"
    coverage: float = 0.0
    processors: Callable | None = None
    criteria: Callable | None = None
    records: StepRecords | None = None

    @property
    def ranks_by_tokens_alone(self) -> bool:
        """Whether no processor, criterion or record needs all beams of all sentences in the batch to the end."""
        return self.processors is None and self.criteria is None and self.records is None


def generate(inputs: torch.Tensor | None = None, *, model, **kwargs):
    """The paper's decoding: `model.generate(…, custom_generate=folder, trust_remote_code=True)` comes here.

    Args:
        inputs, kwargs: as for `model.generate`, and `beam_search`'s own. With no `num_beams`, neither here nor in a
            generation config, there are 4 as in the paper.
    """
    config = kwargs.get("generation_config") or model.generation_config
    if "num_beams" not in kwargs and config.num_beams is None:
        kwargs["num_beams"] = BEAMS
    return type(model).generate(model, inputs, custom_generate=beam_search, **kwargs)


def length_penalty(length: Any, alpha: float) -> Any:
    """lp(Y) = ((5 + |Y|) / 6)^alpha, by which a log-probability is divided.

    Args:
        length: in tokens, with the last one; a number or a tensor of them.
    """
    return ((5 + length) / 6) ** alpha


def coverage_penalty(coverage: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Wu et al. (2016), equation 14 without beta: sum over the source of log(min(what was attended to it, 1)).

    Args:
        coverage: sum over the target's tokens of the attention, `(sentences, hypotheses, source_length)`.
        mask: `(sentences, source_length)`, 1 for real tokens.

    Returns:
        `(sentences, hypotheses)`.
    """
    attended = coverage.clamp(min=1e-9, max=1.0).log()  # finite where nothing was
    return (attended * mask[:, None]).sum(dim=-1)


class BeamSearch:
    """The search for the best translations of a batch; a sentence leaves it as soon as it has them.

    Args:
        steps: the sentences, at their beginning.
        prompt: what their targets begin with, `(sentences, prompt_length)`; not counted in any length.
        limits: of each target, in tokens, `(sentences)`.
        source_mask: for the coverage penalty, `(sentences, source_length)`.
        coverage: the attention of all prompt tokens but the last, summed, `(sentences, 1, source_length)`.
        may_leave: whether `steps` can `keep` some of the sentences; otherwise finished ones stay, and are idle.
    """

    def __init__(
        self,
        steps: DecoderState,
        prompt: torch.Tensor,
        limits: torch.Tensor,
        search: Search,
        source_mask: torch.Tensor | None = None,
        coverage: torch.Tensor | None = None,
        may_leave: bool = True,
    ):
        sentences = prompt.shape[0]
        self.steps, self.search, self.source_mask, self.may_leave = steps, search, source_mask, may_leave
        self.ranking = steps if search.ranks_by_tokens_alone and isinstance(steps, SupportsTopK) else None
        self.prompt_length, self.length = prompt.shape[1], 0
        self.limits, self.longest = limits, int(limits.max())
        self.nearest_limit = int(limits.min())
        self.furthest = search.divisor(limits.float())  # (sentences)
        self.has_finished = False
        self.rows = torch.arange(sentences, device=prompt.device)  # of the batch, that are still searched
        shape = (sentences, search.beams)
        self.is_done = torch.zeros(sentences, dtype=torch.bool, device=prompt.device)
        self.live = prompt[:, None]  # (sentences, live, length): one hypothesis, until there are several
        self.live_scores = torch.zeros(sentences, 1, device=prompt.device)
        self.finished = prompt.new_full((*shape, self.prompt_length + self.longest), search.filler)
        self.finished_scores = torch.full(shape, -torch.inf, device=prompt.device)
        self.finished_lengths = torch.zeros_like(self.finished_scores, dtype=torch.long)
        self.finished_parents = torch.zeros_like(self.finished_lengths)  # only with records
        self.coverage = coverage
        # Of the whole batch, for the sentences that have left.
        self.best = self.finished[:, : search.kept].clone()
        self.best_scores = self.finished_scores[:, : search.kept].clone()
        self.best_lengths = self.finished_lengths[:, : search.kept].clone()

    def run(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The search as a whole.

        Returns:
            Targets with their prompts, `(sentences, kept, target_length)`, and their scores `(sentences, kept)`,
            best first; -inf for what does not exist, where fewer than `kept` targets are possible.

        Raises:
            DecodingError: logits that are no numbers; a sentence for which every token is forbidden.
        """
        if not self.search.ranks_by_tokens_alone:
            self.live = self.live.expand(-1, self.search.beams, -1)
            self.live_scores = torch.full_like(self.finished_scores, -torch.inf)
            self.live_scores[:, 0] = 0.0
            self._follow(self.live_scores.new_zeros(self.live_scores.shape, dtype=torch.long))
        while len(self.rows):
            scores, beam, token = self._candidates()
            self.length += 1
            is_end = self._ends(scores, beam, token)  # (sentences, candidates)
            if is_end is None:  # mostly; candidates are sorted, so the first go on
                going_on = slice(0, self.search.beams)
                self.live_scores, parents, token = scores[:, going_on], beam[:, going_on], token[:, going_on]
            else:
                going_on = self._finish(scores, beam, token, is_end)  # (sentences, up to beams)
                parents, token = beam.gather(1, going_on), token.gather(1, going_on)
            self.live = self._extended(parents, token)
            if self.search.records is not None:
                self.search.records.parents.append(parents)
            self._follow(parents)
            self._stop()
        length = self.prompt_length + int(self.best_lengths.max())
        return self.best[:, :, :length], self.best_scores

    def _candidates(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The best continuations, more than `beams`, so that `beams` of them go on whatever ends.

        Returns:
            Their log-probabilities, which live hypothesis each continues, and by which token;
            `(sentences, candidates)`.
        """
        sentences, live = self.live_scores.shape
        if self.ranking is not None:
            candidates = self.ranking.topk_step(
                self.live[:, :, -1], self.live_scores, self.search.beams, self.search.ends
            )
            self._look()
            return candidates
        wanted = max(2, 1 + len(self.search.ends)) * self.search.beams  # criteria may end any of them
        logits = self.steps(self.live[:, :, -1])  # (sentences * live, vocab_size)
        self._look()
        log_probabilities = logits.log_softmax(dim=-1, dtype=torch.promote_types(logits.dtype, torch.float32))
        if self.search.processors is not None:
            log_probabilities = self.search.processors(self.live.flatten(0, 1), log_probabilities)
        if self.search.records is not None:
            self.search.records.add(log_probabilities, logits)
        # The best of all are among the best of each.
        best, tokens = top(log_probabilities, min(wanted, log_probabilities.shape[1]))
        totals = self.live_scores[:, :, None] + best.view(sentences, live, -1)
        scores, index = totals.flatten(1).topk(min(wanted, totals[0].numel()))  # (sentences, candidates)
        return scores, index // totals.shape[2], tokens.view(sentences, -1).gather(1, index)

    def _extended(self, beam: torch.Tensor, token: torch.Tensor) -> torch.Tensor:
        """`(sentences, hypotheses)` twice → the targets, `(sentences, hypotheses, length)`."""
        return torch.cat([_take(self.live, beam), token[..., None]], dim=-1)

    def _ends(self, scores: torch.Tensor, beam: torch.Tensor, token: torch.Tensor) -> torch.Tensor | None:
        """Which candidates end, by their last token, their length or the user's criteria; `None`: none does."""
        is_end = (token[..., None] == self.search.ends).any(dim=-1)  # (sentences, candidates)
        if self.length >= self.nearest_limit:
            is_end |= (self.limits <= self.length)[:, None]
        if self.search.criteria is not None:
            recorded = None if self.search.records is None else self.search.records.scores
            is_end |= self.search.criteria(self._extended(beam, token).flatten(0, 1), recorded).view_as(scores)
        return is_end if bool(is_end.any()) else None

    def _finish(
        self, scores: torch.Tensor, beam: torch.Tensor, token: torch.Tensor, is_end: torch.Tensor
    ) -> torch.Tensor:
        """Keep the ends among the best `beams` candidates, if they are better than what is there.

        Returns:
            Which candidates go on, `(sentences, up to beams)`; `live_scores` are theirs.
        """
        beams = self.search.beams
        self.has_finished = True
        entering = is_end[:, :beams] & ~self.is_done[:, None]
        ranked = scores[:, :beams] / self.search.divisor(self.length)
        if self.coverage is not None and self.source_mask is not None:
            covered = _take(self.coverage, beam[:, :beams])
            ranked = ranked + self.search.coverage * coverage_penalty(covered, self.source_mask)
        ranked = ranked.masked_fill(~entering, -torch.inf)
        self.finished_scores, best = torch.cat([self.finished_scores, ranked], dim=1).topk(beams)
        extended = self._extended(beam[:, :beams], token[:, :beams])
        until_now = self.finished[:, :, : extended.shape[2]]  # what is beyond is still filler
        until_now.copy_(_take(torch.cat([until_now, extended], dim=1), best))
        lengths = torch.full_like(beam[:, :beams], self.length)
        self.finished_lengths = torch.cat([self.finished_lengths, lengths], dim=1).gather(1, best)
        if self.search.records is not None:
            self.finished_parents = torch.cat([self.finished_parents, beam[:, :beams]], dim=1).gather(1, best)
        self.live_scores, going_on = scores.masked_fill(is_end, -torch.inf).topk(min(beams, scores.shape[1]))
        return going_on

    def _stop(self) -> None:
        """A sentence is done when what is live cannot change what is returned; see `Search.stops_when`."""
        if not self.has_finished:
            return
        search = self.search
        if search.stops_when == "unlikely":
            reach = self.live_scores[:, 0] / search.divisor(self.length)
            self.is_done |= reach <= self.finished_scores[:, -1]
        else:  # a sum of log-probabilities only falls, so this is the most that a live hypothesis can still reach
            reach = self.live_scores[:, 0] / self.furthest.clamp(min=search.divisor(self.length + 1))
            self.is_done |= reach <= self.finished_scores[:, search.kept - 1]
        if search.stops_when == "full" or search.beams == 1:  # with one beam a finished hypothesis has taken it
            self.is_done |= self.finished_scores[:, -1].isfinite()
        if self.length >= self.nearest_limit:
            self.is_done |= self.limits <= self.length
        if not bool(self.is_done.any()):
            return
        if self.may_leave or bool(self.is_done.all()):
            self._leave()

    def _leave(self) -> None:
        """Sentences that are done go; the last of the others take their places, so that few are moved."""
        kept, left = self.search.kept, self.is_done.nonzero().squeeze(1)
        best = self.finished_scores[left, 0]
        if not bool(best.isfinite().all()):  # what is no number is the largest for torch, and stays to the end
            row = int(self.rows[left[~best.isfinite()]][0])
            fault = "no numbers (NaN)" if bool(best.isnan().any()) else "such that none is allowed"
            raise DecodingError(f"the logits are {fault} within {self.length} target tokens", row)
        to = self.rows[left]
        self.best[to], self.best_scores[to] = self.finished[left, :kept], self.finished_scores[left, :kept].float()
        self.best_lengths[to] = self.finished_lengths[left, :kept]
        count = len(self.rows) - len(left)
        order = torch.arange(len(self.rows), device=left.device)
        order[left[left < count]] = order[count:][~self.is_done[count:]]
        order = order[:count]
        names = ("rows", "limits", "furthest", "is_done", "live", "live_scores", "coverage", "source_mask")
        for name in (*names, "finished", "finished_scores", "finished_lengths"):
            tensor = getattr(self, name)
            setattr(self, name, None if tensor is None else tensor[order])
        if count:
            self.steps.select(order)

    def _look(self) -> None:
        """Add the attention of the last step to the coverage."""
        if self.search.coverage:
            assert self.steps.attention is not None
            seen = self.steps.attention.float()
            self.coverage = seen if self.coverage is None else self.coverage + seen

    def _follow(self, parents: torch.Tensor) -> None:
        self.steps.reorder(parents)
        if self.coverage is not None:
            self.coverage = _take(self.coverage, parents)


def greedy_search(
    steps: DecoderState, prompt: torch.Tensor, limits: torch.Tensor, search: Search, may_leave: bool = True
) -> torch.Tensor:
    """The most probable token at every step: what `BeamSearch` finds with one beam, without its scores.

    Args:
        steps, prompt, limits, may_leave: as for `BeamSearch`.

    Returns:
        `(sentences, target_length)`, with the prompts.

    Raises:
        DecodingError: logits that are no numbers, or that forbid every token.
    """
    prompt_length, longest, nearest_limit = prompt.shape[1], int(limits.max()), int(limits.min())
    targets = prompt.new_full((prompt.shape[0], prompt_length + longest), search.filler)
    targets[:, :prompt_length] = prompt
    rows, tokens, length = torch.arange(prompt.shape[0], device=prompt.device), prompt[:, -1], 0
    is_done = torch.zeros_like(rows, dtype=torch.bool)
    has_done = False  # any that stays in the batch
    ranking = steps if search.ranks_by_tokens_alone and isinstance(steps, SupportsTopK) else None
    while len(rows):
        if ranking is None:
            logits = scores = steps(tokens[:, None])  # (sentences, vocab_size)
            if search.processors is not None:
                scores = search.processors(targets[rows, : prompt_length + length], logits.float())
            if search.records is not None:
                search.records.add(scores, logits)
            best, token = top(scores, 1)
        else:
            best, _, token = ranking.topk_step(tokens[:, None], None, 1, search.ends[:0])
        if not math.isfinite(float(best.sum(dtype=torch.float32))):
            row = int(rows[~best[:, 0].isfinite()][0])
            fault = "no numbers (NaN)" if bool(best.isnan().any()) else "such that none is allowed"
            raise DecodingError(f"the logits are {fault} within {length + 1} target tokens", row)
        tokens = token[:, 0].masked_fill(is_done, search.filler) if has_done else token[:, 0]
        targets[rows, prompt_length + length] = tokens
        length += 1
        ended = (tokens[:, None] == search.ends).any(dim=-1)
        if length >= nearest_limit:
            ended |= limits <= length
        if search.criteria is not None:
            recorded = None if search.records is None else search.records.scores
            ended |= search.criteria(targets[rows, : prompt_length + length], recorded)
        if not bool(ended.any()):
            continue
        is_done, has_done = is_done | ended, True
        if bool(is_done.all()):
            break
        if may_leave:
            going_on = (~is_done).nonzero().squeeze(1)
            rows, tokens, limits, is_done = (one[going_on] for one in (rows, tokens, limits, is_done))
            steps.select(going_on)
            has_done = False
    return targets[:, : prompt_length + length]


def top(values: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`torch.topk` of each row of `(rows, width)`; of many numbers in two passes, by the best of each block first."""
    rows, width = values.shape
    if rows * width < TOP_FROM or width < 2 * count * TOP_BLOCK:
        return values.topk(count)
    blocks = width // TOP_BLOCK
    in_blocks, rest = values[:, : blocks * TOP_BLOCK].unflatten(1, (blocks, TOP_BLOCK)), values[:, blocks * TOP_BLOCK :]
    chosen = in_blocks.amax(dim=2).topk(count).indices  # (rows, count)
    candidates = in_blocks.gather(1, chosen[..., None].expand(-1, -1, TOP_BLOCK)).flatten(1)
    ids = (chosen[..., None] * TOP_BLOCK + torch.arange(TOP_BLOCK, device=values.device)).flatten(1)
    ids = torch.cat([ids, torch.arange(blocks * TOP_BLOCK, width, device=values.device).expand(rows, -1)], dim=1)
    best, index = torch.cat([candidates, rest], dim=1).topk(count)
    return best, ids.gather(1, index)


def _take(hypotheses: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """`(sentences, hypotheses, width)` at `index` `(sentences, chosen)` → `(sentences, chosen, width)`."""
    return hypotheses.gather(1, index[..., None].expand(-1, -1, hypotheses.shape[2]))


@runtime_checkable
class BuildsDecoder(Protocol):
    """A model that can lay out its weights for decoding."""

    def can_build_decoder(self) -> bool: ...

    def build_decoder(self, precision: str = "float32") -> Any: ...


@torch.no_grad()
def beam_search(
    model,
    input_ids: torch.Tensor,
    logits_processor,
    stopping_criteria,
    generation_config,
    synced_gpus: bool = False,
    alpha: float | None = None,
    length_penalty: float | None = None,
    rule: Literal["gnmt", "transformers"] = "gnmt",
    coverage_penalty: float = 0.0,
    decoder: Any = None,
    **model_kwargs,
) -> torch.Tensor | GenerateBeamEncoderDecoderOutput | GenerateEncoderDecoderOutput:
    """The paper's beam search, for `model.generate(…, custom_generate=beam_search, num_beams=4)`.

    It ends for a sentence when nothing unfinished can still become one of the best `num_return_sequences`, so it
    returns what it would at the longest length ("but terminate early when possible"); with `early_stopping=True` when
    `num_beams` are finished. That length is for each sentence its own: its tokens plus `max_tokens_beyond_source` of
    the generation config, unless another limit is given. One beam is greedy decoding.

    Every argument of `generate` has the effect that it has there, or is refused. Of models from elsewhere transformers
    drops `streamer`, `assistant_model`, `synced_gpus` and `tokenizer` before they come here.

    Args:
        model: any encoder-decoder with transformers' `GenerationMixin`; those of this package decode faster, by
            weights that are laid out anew for this call, unless an argument needs the model's own forward pass.
        input_ids: what the target begins with, `(sentences * num_beams, prompt_length)`.
        alpha: of the length penalty; 0: plain sums of log-probabilities. `None`: `alpha` of the generation config,
            else the paper's 0.6.
        rule: "transformers" divides by length^`length_penalty` instead, and stops as transformers does.
        coverage_penalty: beta of Wu et al. (2016), for models that return attention; 0: none.
        decoder: `model.build_decoder()`, to have it made once for many calls. It has a cache of its own, whatever
            `use_cache` and `cache_implementation` say.

    Returns:
        `(sentences * num_return_sequences, target_length)`, best first for each sentence. With
        `return_dict_in_generate` transformers' output, with `scores` and `logits` where asked for, and for several
        beams `beam_indices` with them and always `sequences_scores`: log-probability over the penalty, plus the
        coverage penalty; -inf for what does not exist. Scores are kept for every step, `(sentences * num_beams,
        vocab_size)`, and slow the search down; there is no `cache`.

    Raises:
        ValueError: what this search does not offer (`NOT_OFFERED`, `synced_gpus`); an unknown rule; the length penalty
            of the other rule; a penalty that is not finite; a coverage penalty without attention, or with a cache or a
            `decoder_attention_mask` of the user's; a source without any position; with a `decoder`, arguments that
            it does not read.
        DecodingError: see `BeamSearch.run`.
    """
    settings = vars(generation_config)  # transformers' own, and whatever else a folder has there
    _check(settings, synced_gpus, rule, coverage_penalty)
    beams = generation_config.num_beams or 1
    sentences, prompt = input_ids.shape[0] // beams, input_ids[::beams]
    pad, early = generation_config._pad_token_tensor, generation_config.early_stopping
    is_dict = generation_config.return_dict_in_generate
    asked = [bool(is_dict and settings.get(name)) for name in ("output_scores", "output_logits")]
    # transformers replaces its own MaxLengthCriteria and EosTokenCriteria by the user's. A subclass may do anything.
    maximum = min(one.max_length for one in stopping_criteria if type(one) is MaxLengthCriteria)
    ends = [one.eos_token_id.to(input_ids.device) for one in stopping_criteria if type(one) is EosTokenCriteria]
    others = [one for one in stopping_criteria if type(one) not in (MaxLengthCriteria, EosTokenCriteria)]
    search = Search(
        beams=beams,
        kept=generation_config.num_return_sequences or 1,
        divisor=_divisor(rule, settings, alpha, length_penalty),
        ends=torch.cat([input_ids.new_empty(0), *ends]),
        filler=0 if pad is None else int(pad),
        stops_when="full" if early is True else "unlikely" if rule == "transformers" and early != "never" else "sure",
        coverage=coverage_penalty,
        processors=logits_processor if len(logits_processor) else None,
        criteria=type(stopping_criteria)(others) if others else None,
        records=StepRecords(*asked) if any(asked) else None,
    )
    mask = _source_mask(model_kwargs)[::beams]  # (sentences, source_length)
    longest = max(1, maximum - prompt.shape[1])
    limits = torch.full((sentences,), longest, device=input_ids.device)
    beyond = settings.get("max_tokens_beyond_source")
    if beyond is not None and maximum == generation_config.max_length:
        limits = (mask.sum(dim=1) + beyond).clamp(max=longest)

    unread = _unread_by_decoders(model_kwargs)
    if decoder is not None and unread:
        raise ValueError(
            f"a prepared decoder does not read {', '.join(unread)}; leave `decoder` out, and the model itself decodes"
        )
    says_how_to_cache = generation_config.use_cache is False or generation_config.cache_implementation is not None
    if decoder is None and isinstance(model, BuildsDecoder) and not unread and not says_how_to_cache:
        decoder = model.build_decoder() if model.can_build_decoder() else None
    output_attentions, coverage = coverage_penalty != 0, None
    if decoder is None:
        if output_attentions and {"cache", "decoder_attention_mask"} & set(unread):
            raise ValueError(f"coverage_penalty={coverage_penalty} needs whole targets; leave {', '.join(unread)} out")
        steps: DecoderState = ModelDecoderState(model, input_ids, generation_config, output_attentions, model_kwargs)
    else:
        encoded = _of_sentences(model_kwargs["encoder_outputs"], beams)
        steps = decoder.begin(encoded, mask, prompt.shape[1] + longest, beams, output_attentions)
        for token in prompt[:, :-1].unbind(dim=1):
            steps(token[:, None])
            if steps.attention is not None:
                coverage = steps.attention.float() + (0.0 if coverage is None else coverage)
    may_leave = decoder is not None and search.ranks_by_tokens_alone
    outputs: dict[str, Any] = {}
    if beams == 1:
        sequences = greedy_search(steps, prompt, limits, search, may_leave)
    else:
        beam = BeamSearch(steps, prompt, limits, search, mask, coverage, may_leave)
        found, scores = beam.run()
        sequences, outputs["sequences_scores"] = found.flatten(0, 1), scores.flatten()
        if search.records is not None:
            parents = beam.finished_parents[:, : search.kept]
            outputs["beam_indices"] = search.records.beam_indices(beam.best_lengths, parents)
    if not is_dict:
        return sequences
    if search.records is not None:
        outputs |= {"scores": search.records.scores, "logits": search.records.logits}
    kind: Any = GenerateEncoderDecoderOutput if beams == 1 else GenerateBeamEncoderDecoderOutput
    return kind(sequences=sequences, **outputs)


def _divisor(rule: str, settings: dict[str, Any], alpha: float | None, penalty: float | None) -> Callable[[Any], Any]:
    """The length penalty of the rule, as the call sets it (`alpha`, `penalty`), else as `settings` do."""
    if rule == "gnmt":
        name, default, given, unused = "alpha", ALPHA, alpha, {"length_penalty": penalty}
    else:
        name, default, given, unused = "length_penalty", 1.0, penalty, {"alpha": alpha}
    for other, value in unused.items():
        if value is not None:
            raise ValueError(f"{other}={value} has no part in rule={rule!r}; use {name}, or another rule")
    power = next(one for one in (given, settings.get(name), default) if one is not None)
    if not math.isfinite(power):
        raise ValueError(f"{name}={power} must be a finite number")
    return partial(length_penalty, alpha=power) if rule == "gnmt" else lambda length: length**power


def _source_mask(model_kwargs: dict[str, Any]) -> torch.Tensor:
    """`(sentences * beams, source_length)`, 1 for real tokens: as given, as the encoder inferred it, or all."""
    encoded = model_kwargs["encoder_outputs"]
    mask = model_kwargs.get("attention_mask")
    if mask is None and isinstance(encoded, ModelOutput):
        mask = encoded.get("attention_mask")
    return encoded[0].new_ones(encoded[0].shape[:2], dtype=torch.long) if mask is None else mask


def _unread_by_decoders(model_kwargs: dict[str, Any]) -> list[str]:
    """The arguments that only a model's own forward pass honours."""
    # The encoder has read `inputs_embeds`; transformers hands `labels` to no step.
    read = {"encoder_outputs", "attention_mask", "use_cache", "inputs_embeds", "labels"}
    unread = {name: value for name, value in model_kwargs.items() if value is not None and name not in read}
    mask, cache = unread.get("decoder_attention_mask"), unread.get("cache")
    if mask is not None and bool(mask.all()):
        del unread["decoder_attention_mask"]
    if isinstance(cache, Cache) and not (cache.get_seq_length() or getattr(cache, "_is_user_defined", False)):
        del unread["cache"]  # transformers has made it
    if not isinstance(model_kwargs["encoder_outputs"], ModelOutput):
        unread["encoder_outputs"] = None
    return list(unread)


def _of_sentences(encoder_outputs, beams: int):
    """What the encoder returned, a row for each sentence, before transformers repeated it for the beams."""
    rows = {name: value[::beams] for name, value in encoder_outputs.items() if isinstance(value, torch.Tensor)}
    return type(encoder_outputs)(**rows)


def _check(settings: dict[str, Any], synced_gpus: bool, rule: str, coverage_penalty: float) -> None:
    if rule not in ("gnmt", "transformers"):
        raise ValueError(f"rule={rule!r} must be 'gnmt' (the paper's) or 'transformers'")
    if not math.isfinite(coverage_penalty):
        raise ValueError(f"coverage_penalty={coverage_penalty} must be a finite number")
    for name, value in [("synced_gpus", synced_gpus), *((name, settings.get(name)) for name in NOT_OFFERED)]:
        if value and (name, value) not in (("num_beam_groups", 1), ("guidance_scale", 1)):
            raise ValueError(f"{name}={value} is not offered by the paper's decoding; leave it or custom_generate out")
