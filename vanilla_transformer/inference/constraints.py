# SPDX-License-Identifier: Apache-2.0
"""Beam search whose targets begin with a prefix and contain terms, each as often as it was given.

Dynamic beam allocation (Post and Vilar 2018, arXiv:1804.06609): a bank holds the hypotheses with equally many tokens of
terms, the begun one's included, and the banks share the beam. Tokens are counted, not terms: a term's cheap first token
must not displace the hypotheses that have paid for the whole term. Only terms that the free translation lacks have
banks, for the model writes the others itself. Terms are found in the text of a hypothesis, as whole words, whichever
tokens spell it: a part of another word is none, and a second occurrence is seen.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from vanilla_transformer.inference.line_options import resolved
from vanilla_transformer.inference.target_text import IS_LETTER, TokenBytes, occurrences
from vanilla_transformer.search import BeamSearch, DecodingError, blockwise_topk


@dataclass(frozen=True)
class Term:
    """`count` occurrences of a text, those within other terms included.

    `within` has the places of longer terms that contain it, and how often each does. `spellings` are its tokens at the
    beginning of a target and after a space, with whether they begin with a space, and with a letter.
    """

    text: str
    count: int
    within: list[tuple[int, int]]
    spellings: list[tuple[list[int], bool, bool]]
    size: int = field(init=False)  # of the longest spelling, in tokens

    def __post_init__(self):
        object.__setattr__(self, "size", max(len(ids) for ids, *_ in self.spellings))


@dataclass(slots=True)
class Hypothesis:
    """A target so far; a spelling that it has begun is `(term, tokens, length)`."""

    text: bytes
    missing: list[int]  # occurrences of each term, beside those within longer terms; negative: too many
    rest: int  # at most so many tokens complete the terms, if the spellings that are begun are left
    bank: int  # number of tokens of terms that have banks
    ends_with_term: bool  # so that the next token decides whether the term is a whole word
    begun: list[tuple[int, list[int], int]] = field(default_factory=list)

    @property
    def is_complete(self) -> bool:
        """Whether it has every term, and as often as it was given."""
        return not any(self.missing)

    @property
    def has_surplus(self) -> bool:
        """Whether it ends with a term too many, unless it goes on as a longer word."""
        return min(self.missing, default=0) < 0

    @property
    def missing_tokens(self) -> int:
        """At most so many complete the terms."""
        return self.rest - max((length for _, _, length in self.begun), default=0)


class Candidate(NamedTuple):
    """A token that may follow a hypothesis; the better one sorts first."""

    is_last_choice: bool
    negative_score: float
    beam: int  # the hypothesis'
    token: int
    ends: bool  # the target
    bank: int
    hypothesis: Hypothesis | None  # with the token; `None`: not made yet, for few candidates are chosen


class LineConstraints:
    """The prefix and the terms of one target.

    Args:
        prefix: tokens.
        terms: texts; a text that is given twice has to occur twice, as has one that is a part of another.

    Raises:
        ValueError: a term that the vocabulary cannot write; a prefix that has a term too often.
    """

    def __init__(self, prefix: Sequence[int], terms: Sequence[str], token_bytes: TokenBytes):
        self.prefix, self.bytes = list(prefix), token_bytes
        distinct = sorted(dict.fromkeys(terms), key=len, reverse=True)
        self.terms = [self._term(text, terms, distinct[:i]) for i, text in enumerate(distinct)]
        self.texts = tuple(term.text.encode() for term in self.terms)
        self.suffixes = tuple({text[n:] for text in self.texts for n in range(len(text))})
        self.longest = 3 + max(map(len, self.texts), default=0)  # and the bytes of a character that is not yet whole
        self.first_tokens = {ids[0] for term in self.terms for ids, *_ in term.spellings if len(ids) > 1}
        self.without_terms = LineConstraints(prefix, (), token_bytes) if prefix and terms else None if terms else self
        self.may_matter = cache(self._may_matter)
        self.has_bank = [True] * len(self.terms)
        self.progress: dict[tuple[int, ...], tuple[int, int]] = {}
        start = self.read(self.prefix)
        if start is None or start.has_surplus:  # a prefix ends where a word ends
            raise ValueError(f"its prefix has one of its terms more often than they were given: {', '.join(terms)}")
        self.shortest = len(self.prefix) + start.rest  # a target with this many tokens can be had

    def _term(self, text: str, terms: Sequence[str], longer: Sequence[str]) -> Term:
        spellings: list[tuple[list[int], bool, bool]] = []
        for ids in map(self.bytes.encode, (f" {text}", text)):
            written = b"".join(self.bytes[token] for token in ids).decode(errors="replace")
            spelling = ids, written[:1].isspace(), IS_LETTER(written) is not None
            if written.strip() == text.strip() and spelling not in spellings:
                spellings.append(spelling)
        if not text.strip() or not spellings:
            raise ValueError(f"the term {text!r} cannot be written with the model's vocabulary")
        within = [(i, count) for i, each in enumerate(longer) if (count := occurrences(text, each))]
        return Term(text, sum(occurrences(text, each) for each in terms), within, spellings)

    def accepts(self, translations: Sequence[str]) -> bool:
        """Whether all have the terms, as often as they were given."""
        return not any(any(self._missing(text.encode())) for text in translations)

    def give_banks_beside(self, translation: str) -> None:
        """From now on only terms that this translation lacks have banks."""
        self.has_bank, self.progress = [n > 0 for n in self._missing(translation.encode())], {}

    def read(self, tokens: Sequence[int]) -> Hypothesis | None:
        """The hypothesis of a target without its prompt; `None`: it has a term too often."""
        hypothesis: Hypothesis | None = self._hypothesis(b"", self._missing(b""))
        for token in tokens:
            hypothesis = hypothesis and self.extend(hypothesis, token)
        return hypothesis

    def extend(self, before: Hypothesis, token: int) -> Hypothesis | None:
        """The hypothesis with one more token; `None`: it then has a term too often."""
        text, missing = before.text + self.bytes[token], before.missing
        if before.ends_with_term or self.may_matter(token):
            missing = self._missing(text)
            if min(missing) < 0 and min(self._missing(text + b"a")) < 0:
                return None
        after = self._hypothesis(text, missing)
        if before.begun or token in self.first_tokens:
            begun = [(i, ids, n + 1) for i, ids, n in before.begun if ids[n] == token and n + 1 < len(ids)]
            begun += [(i, ids, 1) for i, ids in self._startable(before) if ids[0] == token and len(ids) > 1]
            after.begun = [each for each in begun if missing[each[0]] > 0]
            after.bank += max((n for i, _, n in after.begun if self.has_bank[i]), default=0)
        return after

    def _may_matter(self, token: int) -> bool:
        """Whether a term may begin with the token, or end within it."""
        added = self.bytes[token]
        return (
            token in self.first_tokens or added.startswith(self.suffixes) or any(each in added for each in self.texts)
        )

    def needed_tokens(self, hypothesis: Hypothesis, length: int) -> list[int]:
        """The prefix's token after `length` tokens; after the prefix, tokens that begin a term or go on with one."""
        if length < len(self.prefix):
            return [self.prefix[length]]
        if hypothesis.rest == 0:
            return []
        needed = [ids[n] for _, ids, n in hypothesis.begun] or [ids[0] for _, ids in self._startable(hypothesis)]
        return list(dict.fromkeys(needed))

    def candidates(
        self,
        beam: int,
        hypothesis: Hypothesis,
        best: dict[int, float],
        needed: dict[int, float],
        eos_token_ids: set[int],
        length: int,
        room: int,
    ) -> list[Candidate]:
        """The tokens that may follow.

        Args:
            best: token → score, the most probable first.
            needed: likewise of the needed tokens.
            room: the number of tokens that the target may still get.
        """
        if length < len(self.prefix):
            [(token, score)] = needed.items()
            child = self.extend(hypothesis, token)
            return [] if child is None else [Candidate(False, -score, beam, token, False, child.bank, child)]
        room -= 1
        # Where the model would end the target, but terms are missing, anything but a term is a last choice.
        is_over = hypothesis.rest > 0 and next(iter(best)) in eos_token_ids
        plain_bank = self._progress(hypothesis.missing)[1]
        found: list[Candidate] = []
        for token, score in (best | needed).items():
            if score == -math.inf:
                continue
            if token in eos_token_ids:
                if hypothesis.is_complete:
                    found.append(Candidate(False, -score, beam, token, True, hypothesis.bank, hypothesis))
            elif hypothesis.ends_with_term or token in needed or self.may_matter(token):
                child = self.extend(hypothesis, token)
                if child is not None and child.missing_tokens <= room and (room > 0 or not child.has_surplus):
                    is_last_choice = child.has_surplus or (is_over and token not in needed)
                    found.append(Candidate(is_last_choice, -score, beam, token, False, child.bank, child))
            elif hypothesis.rest <= room:
                found.append(Candidate(is_over, -score, beam, token, False, plain_bank, None))
        return found

    def _hypothesis(self, text: bytes, missing: list[int]) -> Hypothesis:
        return Hypothesis(text, missing, *self._progress(missing), self._ends_with_term(text))

    def _progress(self, missing: list[int]) -> tuple[int, int]:
        """`Hypothesis.rest` and `Hypothesis.bank` where no spelling is begun."""
        if (known := self.progress.get(key := tuple(missing))) is None:
            tokens = [(max(n, 0) * term.size, term.count * term.size) for n, term in zip(key, self.terms, strict=True)]
            rest = sum(n for n, _ in tokens)
            bank = sum(total - n for (n, total), has_bank in zip(tokens, self.has_bank, strict=True) if has_bank)
            known = self.progress[key] = rest, bank
        return known

    def _ends_with_term(self, text: bytes) -> bool:
        if text[-1:] < b"\x80":
            return text.endswith(self.texts)
        end = text[-self.longest :]  # its last character may not be whole
        return any(each in end for each in self.texts)

    def _startable(self, hypothesis: Hypothesis) -> list[tuple[int, list[int]]]:
        """Terms that are missing, by the spellings that make a word of their own here."""
        last = hypothesis.text[-4:].decode(errors="ignore")[-1:]  # a character has at most four bytes
        is_after_letter = IS_LETTER(last) is not None
        return [
            (i, ids)
            for i, term in enumerate(self.terms)
            if hypothesis.missing[i] > 0
            for ids, has_space, has_letter in term.spellings
            if len(term.spellings) == 1 or (last if has_space else not (is_after_letter and has_letter))
        ]

    def _missing(self, text: bytes) -> list[int]:
        decoded, missing = text.decode(errors="replace"), []
        for term in self.terms:  # the longest first, which bring others with them
            to_come = sum([n * missing[i] for i, n in term.within if missing[i] > 0])
            missing.append(term.count - occurrences(term.text, decoded) - to_come)
        return missing


class ConstrainedBeams:
    """`BeamSearchConfig.select_candidates` for a batch, with the `LineConstraints` of each sentence.

    Every hypothesis offers its best tokens, and the tokens that go on with a term. The banks take turns at the places
    of the beam, the fullest first. A target ends only with all its terms, and none goes on that has no room for them.

    Once a sentence has finished targets with terms, hypotheses go on whose score at their present length is better, as
    in transformers; all of them where the search is to be exact.
    """

    def __init__(self, lines: Sequence[LineConstraints]):
        self.lines, self.has_terms = lines, any(line.terms for line in lines)
        # The hypotheses of each sentence by their tokens.
        self.known: list[dict[tuple[int, ...], Hypothesis | None]] = [{(): line.read(())} for line in lines]

    def __call__(self, search: BeamSearch, log_probs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        config, length, rows = search.config, search.length, search.rows.tolist()
        num_beams, eos = config.num_beams, set(config.eos_token_ids.tolist())
        sentences, alive, end = search.alive.shape
        # With terms several banks share the beam, so that each hypothesis gives fewer tokens.
        count = (num_beams // 2 if self.has_terms and alive > 1 else num_beams) + len(eos)
        best, tokens = blockwise_topk(log_probs, min(count, log_probs.shape[1]))
        if bool(best.isnan().any()):
            is_nan = best.isnan().any(dim=1).view(sentences, alive).any(dim=1)
            raise DecodingError(f"the logits are NaN within {length + 1} target tokens", int(search.rows[is_nan][0]))
        best_scores = (search.alive_scores[:, :, None] + best.view(sentences, alive, -1)).tolist()
        best_tokens = tokens.view(sentences, alive, -1).tolist()
        targets = search.alive[:, :, end - length :].tolist()
        rooms = (search.max_lengths - length).tolist()
        parents: list[tuple[int, int, Hypothesis, list[int]]] = []  # with sentence, beam and needed tokens
        for i, (row, scores) in enumerate(zip(rows, search.alive_scores.tolist(), strict=True)):
            line = self.lines[row]
            if not length and line.shortest > rooms[i]:
                raise DecodingError(f"prefix and terms need {line.shortest} of at most {rooms[i]} target tokens", row)
            for beam, score in enumerate(scores):
                hypothesis = self.known[row].get(tuple(targets[i][beam]))
                if hypothesis is not None and score != -math.inf:
                    parents.append((i, beam, hypothesis, line.needed_tokens(hypothesis, length)))
        needed = [(i, beam, token) for i, beam, _, tokens in parents for token in tokens]
        index = torch.tensor(needed, dtype=torch.long, device=log_probs.device).view(-1, 3).unbind(dim=1)
        needed_scores = search.alive_scores[index[:2]] + log_probs.view(sentences, alive, -1)[index]
        next_needed_score = iter(needed_scores.tolist())
        candidates: list[list[Candidate]] = [[] for _ in rows]
        for i, beam, hypothesis, tokens in parents:
            options = dict(zip(best_tokens[i][beam], best_scores[i][beam], strict=True))
            own = {token: next(next_needed_score) for token in tokens}
            found = self.lines[rows[i]].candidates(beam, hypothesis, options, own, eos, length, rooms[i])
            # Its best tokens may all repeat a term.
            if hypothesis.is_complete and all(each.is_last_choice for each in found):
                endings = search.alive_scores[i, beam] + log_probs[i * alive + beam, config.eos_token_ids]
                found += [
                    Candidate(False, -score, beam, token, True, hypothesis.bank, hypothesis)
                    for token, score in zip(config.eos_token_ids.tolist(), endings.tolist(), strict=True)
                ]
            candidates[i] += found
        by_beam = {(i, beam): hypothesis for i, beam, hypothesis, _ in parents}
        thresholds = [-math.inf] * len(rows)
        if self.has_terms and config.stopping != "exact":
            thresholds = search.finished.scores[:, config.num_return_sequences - 1].tolist()
        chosen = []
        for i, (row, threshold) in enumerate(zip(rows, thresholds, strict=True)):
            if threshold > -math.inf:
                log_prob = threshold * config.length_normalizer(length + 1)
                candidates[i] = [
                    each for each in candidates[i] if not each.is_last_choice and -each.negative_score > log_prob
                ]
            chosen.append(best := share(candidates[i], num_beams))
            self.known[row] = {
                (*targets[i][beam], token): child or self.lines[row].extend(by_beam[i, beam], token)
                for _, _, beam, token, ends, _, child in best
                if not ends
            }
        unused = Candidate(True, math.inf, 0, config.pad_token_id, False, 0, None)
        chosen = [best + [unused] * (2 * num_beams - len(best)) for best in chosen]
        scores = search.alive_scores.new_tensor([[-each.negative_score for each in best] for best in chosen])
        beams = search.alive.new_tensor([[each.beam for each in best] for best in chosen])
        tokens = search.alive.new_tensor([[each.token for each in best] for best in chosen])
        return scores, beams, tokens


def share(candidates: list[Candidate], num_beams: int) -> list[Candidate]:
    """The endings among the best `num_beams` of their bank, then the `num_beams` candidates that go on."""
    by_bank: dict[tuple[bool, int], list[Candidate]] = {}
    for candidate in sorted(candidates):
        by_bank.setdefault((not candidate.is_last_choice, candidate.bank), []).append(candidate)
    ended: list[Candidate] = []
    going_on: list[Candidate] = []
    for is_regular in (True, False):  # last choices get the rest
        banks = [by_bank[key] for key in sorted(by_bank, reverse=True) if key[0] == is_regular]
        ended += [each for bank in banks for each in bank[:num_beams] if each.ends]
        turns = itertools.zip_longest(*([each for each in bank if not each[4]] for bank in banks))
        in_turn = (each for turn in turns for each in turn if each is not None)
        going_on += itertools.islice(in_turn, num_beams - len(going_on))
    return ended + sorted(going_on, key=lambda each: each.negative_score)


def constraints_of_lines(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    terms: list[list[str]],
    prefixes: Sequence[str] | None,
    places: list[int],
    first_line: int,
    options: dict[str, Any],
) -> list[LineConstraints | None]:
    """Prefix and terms of each text, `None` without either.

    Args:
        places: index of each text's line.
        options: of `generate`.

    Raises:
        ValueError: a prefix or a term that no target can have; it names the line.
    """
    if prefixes is None and not any(terms):
        return [None] * len(terms)
    token_bytes, found = TokenBytes(tokenizer), []
    forced = resolved(model, options, "forced_bos_token_id")
    for own, place in zip(terms, places, strict=True):
        prefix = token_bytes.encode(prefixes[place]) if prefixes is not None else []
        if not (own or prefix):
            found.append(None)
            continue
        try:
            before = [] if forced is None or not prefix else [forced]
            found.append(LineConstraints(before + prefix, own, token_bytes))
        except ValueError as error:
            raise ValueError(f"line {place + first_line}: {error}") from error
    return found
