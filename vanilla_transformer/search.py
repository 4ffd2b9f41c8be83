# SPDX-License-Identifier: Apache-2.0
"""Greedy and beam search over any decoder (section 6.1 of the paper).

Shapes: `sentences` counts the sentences still in the batch; `alive` the unfinished hypotheses of each, 1 at first and
then `num_beams`. Lengths count tokens without the prompt, the EOS token included.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch

from .decoder import DecoderState, SupportsSelect, SupportsTopK

TOPK_BLOCK = 128
TOPK_MIN_SIZE = 2**19  # elements from which `blockwise_topk` is faster than `topk`


class DecodingError(ValueError):
    """Decoding cannot go on; `sentence` is the row of the batch at fault."""

    def __init__(self, message: str, sentence: int):
        super().__init__(message)
        self.sentence = sentence


class StepRecords:
    """Scores and logits of every step in transformers' layout, whose rows are all beams of all sentences to the end.

    Args:
        names: "scores", "logits" or both: what `outputs` holds of every step, `(sentences * beams, vocab_size)`.
    """

    def __init__(self, names: list[str]):
        self.outputs: dict[str, tuple[torch.Tensor, ...]] = dict.fromkeys(names, ())
        self.parents: list[torch.Tensor] = []  # each hypothesis's parent after each step, (sentences, beams)

    def add(self, **tensors: torch.Tensor) -> None:
        """Copies, for decoders reuse their memory."""
        for name in self.outputs:
            self.outputs[name] += (tensors[name].to(torch.float32, copy=True),)

    def beam_indices(self, lengths: torch.Tensor, last_beams: torch.Tensor) -> torch.Tensor:
        """For each token the row of `scores` that it was chosen from, -1 after the end.

        Args:
            lengths: target lengths, `(sentences, num_return_sequences)`.
            last_beams: the hypothesis that the last token of each target continued, of the same shape.

        Returns:
            `(sentences * num_return_sequences, max_length)`.
        """
        rows = lengths.new_full((*lengths.shape, int(lengths.max())), -1)
        first = torch.arange(len(lengths), device=lengths.device)[:, None] * self.parents[0].shape[1]
        beam = last_beams
        for step in reversed(range(rows.shape[2])):
            rows[:, :, step] = torch.where(step < lengths, first + beam, -1)
            if step:
                beam = torch.where(step < lengths, self.parents[step - 1].gather(1, beam), last_beams)
        return rows.flatten(0, 1)


@dataclass(frozen=True)
class BeamSearchConfig:
    """How to search and rank.

    Args:
        length_normalizer: length(s) → the divisor of a log-probability.
        eos_token_ids: `(eos_tokens)`; any of them ends a hypothesis.
        stopping: when a sentence is finished. "exact": no unfinished hypothesis can still be among the
            `num_return_sequences` best; "max_finished": `num_beams` hypotheses are finished; "heuristic", as in
            transformers: none would be among them at its present length.
        coverage_penalty: beta of Wu et al. (2016); 0: none.
        logits_processor: transformers' `(targets, scores) → scores`.
        stopping_criteria: transformers' `(targets, scores) → (targets)`, beyond EOS and length.
        records: receives every step.
        select_candidates: `(search, log_probs) → candidates` in the place of `BeamSearch._candidates`, from
            `(sentences * alive, vocab_size)`: at least `2 * num_beams`. The best `num_beams` that do not end
            go on; one that ends is finished if it stands among the first `num_beams`.
    """

    num_beams: int
    num_return_sequences: int
    length_normalizer: Callable[[Any], Any]
    eos_token_ids: torch.Tensor
    pad_token_id: int
    stopping: Literal["exact", "max_finished", "heuristic"] = "exact"
    coverage_penalty: float = 0.0
    logits_processor: Callable | None = None
    stopping_criteria: Callable | None = None
    records: StepRecords | None = None
    select_candidates: (
        Callable[["BeamSearch", torch.Tensor], tuple[torch.Tensor, torch.Tensor, torch.Tensor]] | None
    ) = None

    def stops(self, targets: torch.Tensor) -> torch.Tensor:
        """The user's criteria for `(rows, length)` → `(rows)`; only with `stopping_criteria`."""
        assert self.stopping_criteria is not None
        return self.stopping_criteria(targets, None if self.records is None else self.records.outputs.get("scores"))


def coverage_penalty(coverage: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Wu et al. (2016), equation 14 without beta: the sum over the source of log(min(coverage, 1)).

    Args:
        coverage: attention summed over the target's tokens, `(sentences, hypotheses, source_length)`.
        mask: `(sentences, source_length)`, 1 for real tokens.

    Returns:
        `(sentences, hypotheses)`.
    """
    logs = coverage.clamp(min=1e-9, max=1.0).log()  # finite where nothing attended
    return (logs * mask[:, None]).sum(dim=-1)


class Hypotheses:
    """The best finished hypotheses of each sentence, best first; a score of -inf where there is none.

    `sequences` is `(sentences, count, prompt_length + max_length)`, padded; the other tensors are `(sentences, count)`.
    """

    def __init__(self, prompt: torch.Tensor, count: int, max_length: int, config: BeamSearchConfig):
        shape = prompt.shape[0], count
        self.sequences = prompt.new_full((*shape, prompt.shape[1] + max_length), config.pad_token_id)
        self.scores = torch.full(shape, -torch.inf, device=prompt.device)
        self.lengths = torch.zeros_like(self.scores, dtype=torch.long)
        # The hypothesis that the last token continued; only for records.
        self.last_beams = None if config.records is None else torch.zeros_like(self.lengths)

    def insert(self, scores: torch.Tensor, sequences: torch.Tensor, beams: torch.Tensor, length: int) -> None:
        """Merge candidates of one length, `(sentences, candidates)`; the best `count` remain."""
        self.scores, best = torch.cat([self.scores, scores], dim=1).topk(self.scores.shape[1])
        filled = self.sequences[:, :, : sequences.shape[2]]  # the rest is still padding
        filled.copy_(_gather_beams(torch.cat([filled, sequences], dim=1), best))
        self.lengths = torch.cat([self.lengths, torch.full_like(beams, length)], dim=1).gather(1, best)
        if self.last_beams is not None:
            self.last_beams = torch.cat([self.last_beams, beams], dim=1).gather(1, best)

    def select(self, batch_indices: torch.Tensor) -> None:
        for name, tensor in vars(self).items():
            setattr(self, name, None if tensor is None else tensor[batch_indices])

    def store(self, rows: torch.Tensor, other: "Hypotheses", other_rows: torch.Tensor) -> None:
        """Copy the best of `other`'s rows to these rows."""
        for name, tensor in vars(self).items():
            if tensor is not None:
                tensor[rows] = getattr(other, name)[other_rows, : tensor.shape[1]].to(tensor.dtype)


class BeamSearch:
    """Beam search over a batch, from which a sentence is removed as soon as its result is certain.

    Args:
        state: before the last token of the prompt.
        prompt: `(sentences, prompt_length)`.
        max_lengths: the maximum length of each target, `(sentences)`.
        source_mask: for the coverage penalty, `(sentences, source_length)`.
        coverage: attention summed over all prompt tokens but the last, `(sentences, 1, source_length)`.
    """

    def __init__(
        self,
        state: DecoderState,
        prompt: torch.Tensor,
        max_lengths: torch.Tensor,
        config: BeamSearchConfig,
        source_mask: torch.Tensor | None = None,
        coverage: torch.Tensor | None = None,
    ):
        sentences, device = prompt.shape[0], prompt.device
        self.state, self.config, self.source_mask, self.coverage = state, config, source_mask, coverage
        self.selectable, self.ranking = _capabilities(state, config)
        # On a CPU a read of a value costs nothing. Elsewhere the host waits for the device: at most once in a step.
        self.reads_are_free = device.type == "cpu"
        self.length, self.has_finished = 0, False
        self.max_lengths, self.min_max_length = max_lengths, int(max_lengths.min())
        self.max_normalizer = config.length_normalizer(max_lengths.float())  # (sentences)
        self.rows = torch.arange(sentences, device=device)  # each remaining sentence's row in the whole batch
        self.is_done = torch.zeros(sentences, dtype=torch.bool, device=device)
        self.alive = prompt[:, None]  # (sentences, alive, length)
        self.alive_scores = torch.zeros(sentences, 1, device=device)  # log-probabilities
        max_length = int(max_lengths.max())
        self.finished = Hypotheses(prompt, config.num_beams, max_length, config)
        self.results = Hypotheses(prompt, config.num_return_sequences, max_length, config)  # of all sentences

    def run(self) -> Hypotheses:
        """The `num_return_sequences` best hypotheses of each sentence.

        Raises:
            DecodingError: logits that are NaN; a sentence for which every token is forbidden.
        """
        num_beams = self.config.num_beams
        if self.selectable is None:  # all rows from the first step on
            self.alive = self.alive.expand(-1, num_beams, -1)
            self.alive_scores = self.alive_scores.repeat(1, num_beams)
            self.alive_scores[:, 1:] = -torch.inf
            self._reorder(torch.zeros_like(self.alive_scores, dtype=torch.long))
        while len(self.rows):
            scores, beams, tokens = self._candidates()
            if self.config.coverage_penalty:
                assert self.state.attention is not None
                attention = self.state.attention.float()
                self.coverage = attention if self.coverage is None else self.coverage + attention
            self.length += 1
            is_certain = self.has_finished or self.length >= self.min_max_length
            is_end = self._ends(beams, tokens)
            if (self.reads_are_free or not is_certain) and not bool(is_end.any()):
                # Mostly. Candidates are sorted, so the first go on.
                self.alive_scores = scores[:, :num_beams]
                beams, tokens = beams[:, :num_beams], tokens[:, :num_beams]
            else:
                self._finish(scores, beams, tokens, is_end)
                unfinished = scores.masked_fill(is_end, -torch.inf)
                self.alive_scores, best = unfinished.topk(min(num_beams, scores.shape[1]))
                beams, tokens = beams.gather(1, best), tokens.gather(1, best)
            self.alive = self._extend(beams, tokens)
            if self.config.records is not None:
                self.config.records.parents.append(beams)
            self._reorder(beams)
            if self.has_finished:
                self._stop(may_read=self.reads_are_free or is_certain)
        return self.results

    def _candidates(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The best continuations, enough for `num_beams` to be unfinished.

        Returns:
            Log-probabilities, hypotheses that they continue, and next tokens, `(sentences, candidates)`, best first.
        """
        config, last = self.config, self.alive[:, :, -1]
        if self.ranking is not None:
            # Once a hypothesis has finished, each step may finish its sentence; coverage needs each step's attention.
            is_single = self.has_finished or config.coverage_penalty != 0
            max_steps = 1 if is_single else self.min_max_length - self.length
            arguments = last, self.alive_scores, config.num_beams, config.eos_token_ids, max_steps
            scores, beams, tokens, prefixes = self.ranking.topk_steps(*arguments)
            if prefixes is not None:
                self.alive = torch.cat([_gather_beams(self.alive, prefixes[..., 0]), prefixes[..., 1:]], dim=-1)
                self.length += prefixes.shape[2] - 1
            return scores, beams, tokens
        count = max(2, 1 + len(config.eos_token_ids)) * config.num_beams  # criteria may end any of them
        logits = self.state(last)  # (sentences * alive, vocab_size)
        log_probs = logits.log_softmax(dim=-1, dtype=torch.promote_types(logits.dtype, torch.float32))
        if config.logits_processor is not None:
            log_probs = config.logits_processor(self.alive.flatten(0, 1), log_probs)
        if config.records is not None:
            config.records.add(scores=log_probs, logits=logits)
        if config.select_candidates is not None:
            return config.select_candidates(self, log_probs)
        # The best of all beams are among the best of each.
        best, tokens = blockwise_topk(log_probs, min(count, log_probs.shape[1]))
        totals = self.alive_scores[:, :, None] + best.view(*self.alive_scores.shape, -1)
        scores, index = totals.flatten(1).topk(min(count, totals[0].numel()))  # (sentences, candidates)
        return scores, index // totals.shape[2], tokens.view(len(totals), -1).gather(1, index)

    def _extend(self, beams: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """`(sentences, hypotheses)` twice → the targets, `(sentences, hypotheses, length)`."""
        return torch.cat([_gather_beams(self.alive, beams), tokens[..., None]], dim=-1)

    def _ends(self, beams: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Whether each candidate ends, by its token, its length or the user's criteria."""
        is_end = (tokens[..., None] == self.config.eos_token_ids).any(dim=-1)  # (sentences, candidates)
        if self.length >= self.min_max_length:
            is_end |= (self.max_lengths <= self.length)[:, None]
        if self.config.stopping_criteria is not None:
            is_end |= self.config.stops(self._extend(beams, tokens).flatten(0, 1)).view_as(is_end)
        return is_end

    def _finish(self, scores: torch.Tensor, beams: torch.Tensor, tokens: torch.Tensor, is_end: torch.Tensor) -> None:
        """Among the best `num_beams` candidates, move the ended ones to the finished hypotheses."""
        best = slice(0, self.config.num_beams)
        beams, tokens = beams[:, best], tokens[:, best]
        ranked = scores[:, best] / self.config.length_normalizer(self.length)
        if self.coverage is not None and self.source_mask is not None:
            covered = coverage_penalty(_gather_beams(self.coverage, beams), self.source_mask)
            ranked = ranked + self.config.coverage_penalty * covered
        ranked = ranked.masked_fill(~is_end[:, best] | self.is_done[:, None], -torch.inf)
        self.finished.insert(ranked, self._extend(beams, tokens), beams, self.length)
        self.has_finished = True

    def _stop(self, may_read: bool) -> None:
        """Decide which sentences are done (`BeamSearchConfig.stopping`), and remove them where the decoder can.

        Args:
            may_read: whether the host may ask for their number. If not, they leave after the next step: nothing is
                added to their finished hypotheses.
        """
        config, best_alive = self.config, self.alive_scores[:, 0]
        if config.stopping == "heuristic":
            self.is_done |= best_alive / config.length_normalizer(self.length) <= self.finished.scores[:, -1]
        else:  # a log-probability only falls, so this is the highest score that is still possible
            bound = best_alive / self.max_normalizer.clamp(min=config.length_normalizer(self.length + 1))
            self.is_done |= bound <= self.finished.scores[:, config.num_return_sequences - 1]
        if config.stopping == "max_finished":
            self.is_done |= self.finished.scores[:, -1].isfinite()
        if self.length >= self.min_max_length:
            self.is_done |= self.max_lengths <= self.length
        if not may_read:
            return
        # One read for both: the number of sentences, and whether their scores are finite.
        best = torch.where(self.is_done, self.finished.scores[:, 0], 0.0)
        done, total = torch.stack([self.is_done.sum(dtype=best.dtype), best.sum()]).tolist()
        if done and (self.selectable is not None or done == len(self.rows)):
            if not math.isfinite(total):  # torch ranks NaN highest, so it stays to the end
                raise _decoding_error(best, self.rows, self.length)
            self._remove_finished(len(self.rows) - int(done))

    def _remove_finished(self, count: int) -> None:
        """Unfinished sentences, `count`, from the end of the batch replace the finished ones: few rows move."""
        unfinished, done = self.is_done.int().argsort(stable=True).split([count, len(self.rows) - count])
        self.results.store(self.rows[done], self.finished, done)
        is_hole = self.is_done[:count]
        moved = unfinished[(is_hole.cumsum(0) - is_hole.sum() - 1) % max(count, 1)]  # its last, in their order
        order = torch.where(is_hole, moved, torch.arange(count, device=done.device))
        for name in ("rows", "max_lengths", "max_normalizer", "is_done", "alive", "alive_scores"):
            setattr(self, name, getattr(self, name)[order])
        if self.coverage is not None and self.source_mask is not None:
            self.coverage, self.source_mask = self.coverage[order], self.source_mask[order]
        self.finished.select(order)
        if count:
            assert self.selectable is not None
            self.selectable.select(order)

    def _reorder(self, beam_indices: torch.Tensor) -> None:
        self.state.reorder(beam_indices)
        if self.coverage is not None:
            self.coverage = _gather_beams(self.coverage, beam_indices)


def greedy_search(
    state: DecoderState, prompt: torch.Tensor, max_lengths: torch.Tensor, config: BeamSearchConfig
) -> torch.Tensor:
    """The most probable token at every step; arguments and errors as for `BeamSearch`.

    Returns:
        `(sentences, target_length)`, with the prompts.
    """
    length, end = 0, prompt.shape[1]  # without and with the prompt
    min_max_length = int(max_lengths.min())
    targets = prompt.new_full((prompt.shape[0], end + int(max_lengths.max())), config.pad_token_id)
    targets[:, :end] = prompt
    rows, tokens = torch.arange(prompt.shape[0], device=prompt.device), prompt[:, -1]
    is_done = torch.zeros_like(rows, dtype=torch.bool)
    has_done = False  # whether a finished sentence is still in the batch
    selectable, ranking = _capabilities(state, config)
    while len(rows):
        if ranking is None:
            logits = scores = state(tokens[:, None])  # (sentences, vocab_size)
            if config.logits_processor is not None:
                scores = config.logits_processor(targets[rows, :end], logits.float())
            if config.records is not None:
                config.records.add(scores=scores, logits=logits)
            best, token = blockwise_topk(scores, 1)
        else:
            max_steps = 1 if has_done else min_max_length - length  # a finished sentence must not go on
            best, _, token, prefixes = ranking.topk_steps(tokens[:, None], None, 1, config.eos_token_ids, max_steps)
            if prefixes is not None:
                steps = prefixes.shape[2] - 1
                targets[rows, end : end + steps] = prefixes[:, 0, 1:]
                length, end = length + steps, end + steps
        tokens = token[:, 0].masked_fill(is_done, config.pad_token_id) if has_done else token[:, 0]
        targets[rows, end] = tokens
        length, end = length + 1, end + 1
        is_end = (tokens[:, None] == config.eos_token_ids).any(dim=-1)
        if length >= min_max_length:
            is_end |= max_lengths <= length
        if config.stopping_criteria is not None:
            is_end |= config.stops(targets[rows, :end])
        is_done = is_done | is_end if has_done else is_end
        # One read for both: whether the logits are finite, and the number of finished sentences.
        total, done = torch.stack([best.sum(dtype=torch.float32), is_done.sum(dtype=torch.float32)]).tolist()
        if not math.isfinite(total):
            raise _decoding_error(best[:, 0], rows, length)
        has_done = done > 0
        if done == len(rows):
            break
        if has_done and selectable is not None:
            unfinished = is_done.int().argsort(stable=True)[: len(rows) - int(done)]
            rows, tokens, max_lengths, is_done = (part[unfinished] for part in (rows, tokens, max_lengths, is_done))
            selectable.select(unfinished)
            has_done = False
            if ranking is not None:  # it computes on a CPU, where a read costs nothing
                min_max_length = int(max_lengths.min())
    return targets[:, :end]


def _capabilities(state: DecoderState, config: BeamSearchConfig) -> tuple[SupportsSelect | None, SupportsTopK | None]:
    """The state twice: if sentences may leave its batch, and if it ranks tokens itself; else `None`.

    Processors, criteria and records expect all beams of all sentences, in transformers' order, at every step.
    """
    if any(part is not None for part in (config.logits_processor, config.stopping_criteria, config.records)):
        return None, None
    ranking = state if isinstance(state, SupportsTopK) and config.select_candidates is None else None
    return state if isinstance(state, SupportsSelect) else None, ranking


def _decoding_error(scores: torch.Tensor, rows: torch.Tensor, length: int) -> DecodingError:
    """For the first of the sentences `rows` whose score, `(sentences)`, is not finite."""
    fault = "the logits are NaN" if bool(scores.isnan().any()) else "every token is forbidden"
    return DecodingError(f"{fault} within {length} target tokens", int(rows[~scores.isfinite()][0]))


def blockwise_topk(values: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`torch.topk` of each row of `(rows, width)`; large ones in two passes, first by the maximum of each block."""
    rows, width = values.shape
    if rows * width < TOPK_MIN_SIZE or width < 2 * count * TOPK_BLOCK:
        return values.topk(count)
    blocks = width // TOPK_BLOCK
    whole, rest = values.split([blocks * TOPK_BLOCK, width - blocks * TOPK_BLOCK], dim=1)
    whole = whole.unflatten(1, (blocks, TOPK_BLOCK))
    chosen = whole.amax(dim=2).topk(count).indices  # (rows, count)
    candidates = whole.gather(1, chosen[..., None].expand(-1, -1, TOPK_BLOCK)).flatten(1)
    ids = (chosen[..., None] * TOPK_BLOCK + torch.arange(TOPK_BLOCK, device=values.device)).flatten(1)
    ids = torch.cat([ids, torch.arange(blocks * TOPK_BLOCK, width, device=values.device).expand(rows, -1)], dim=1)
    best, index = torch.cat([candidates, rest], dim=1).topk(count)
    return best, ids.gather(1, index)


def _gather_beams(hypotheses: torch.Tensor, beams: torch.Tensor) -> torch.Tensor:
    """`(sentences, hypotheses, width)` at `beams` `(sentences, chosen)` → `(sentences, chosen, width)`."""
    return hypotheses.gather(1, beams[..., None].expand(-1, -1, hypotheses.shape[2]))
