# SPDX-License-Identifier: Apache-2.0
"""Beam search whose targets begin with a prefix and contain terms, each as often as it was given.

Dynamic beam allocation (Post and Vilar 2018, arXiv:1804.06609): hypotheses with equally many terms compete among
themselves, and the numbers of terms share the beam. Terms are found in the text of a hypothesis, as whole words,
whichever tokens spell it: a part of another word is none, and a second occurrence is seen.
"""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from transformers.convert_slow_tokenizer import bytes_to_unicode

from vanilla_transformer.data.tokenizer_class import TARGET_TOKENIZER
from vanilla_transformer.search import BeamSearch, DecodingError, blockwise_topk

# A letter or digit of a script that puts spaces between words; the ranges are Thai to Lao, Burmese, Khmer, kana, Han.
LETTER = r"[^\W\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]"
BYTES = {character: bytes([byte]) for byte, character in bytes_to_unicode().items()}  # of byte-level tokens


@lru_cache(2**16)
def whole_words(text: str) -> re.Pattern[str]:
    """Finds the text where no letter touches a letter at its edges."""
    before = f"(?<!{LETTER})" if re.match(LETTER, text) else ""
    after = f"(?!{LETTER})" if re.match(LETTER, text[-1]) else ""
    return re.compile(f"{before}{re.escape(text)}{after}")


class TokenBytes(dict[int, bytes]):
    """The bytes that each token of the target adds to the text, looked up once; special tokens add none."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = getattr(tokenizer, TARGET_TOKENIZER, None) or tokenizer
        self.special = set(self.tokenizer.all_special_ids)
        decoder = getattr(getattr(self.tokenizer, "backend_tokenizer", None), "decoder", None)
        self.is_byte_level = "ByteLevel" in repr(decoder)
        self.before = self.encode("a")[-1:]

    def encode(self, text: str) -> list[int]:
        return self.tokenizer(text_target=text, add_special_tokens=False)["input_ids"]

    def __missing__(self, token: int) -> bytes:
        if token in self.special:
            value = b""
        elif self.is_byte_level:
            characters = self.tokenizer.convert_ids_to_tokens(token) or ""  # a model may have more rows than tokens
            value = b"".join(BYTES.get(character) or character.encode() for character in characters)
        else:  # between words, for the first word of a text may be decoded without its space
            before = self.tokenizer.decode(self.before)
            value = self.tokenizer.decode([*self.before, token]).removeprefix(before).encode()
        self[token] = value
        return value


@dataclass(frozen=True)
class Term:
    """`count` occurrences of a text, those within other terms included.

    `within` counts them in each longer term; `spellings` are its tokens at the beginning of a target and after a space.
    """

    text: str
    count: int
    within: list[int]
    spellings: list[list[int]]
    pattern: re.Pattern[str]
    size: int = field(init=False)  # of the longest spelling, in tokens

    def __post_init__(self):
        object.__setattr__(self, "size", max(map(len, self.spellings)))


@dataclass(slots=True)
class Hypothesis:
    """A target so far; a spelling that it has begun is `(term, tokens, length)`."""

    text: bytes
    missing: list[int]  # occurrences of each term, beside those within longer terms; negative: too many
    begun: list[tuple[int, list[int], int]]
    bank: int  # number of terms that it has, the begun one included
    missing_tokens: int  # at most so many complete the terms
    has_surplus: bool  # ends with a term too many, unless it goes on as a longer word


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
        self.last_bytes = {term.text.encode()[-1] for term in self.terms}
        self.banks = 1 + len(terms)
        start = self.read(self.prefix)
        if start is None:
            raise ValueError(f"its prefix has one of its terms more often than they were given: {', '.join(terms)}")
        self.shortest = len(self.prefix) + start.missing_tokens  # a target with this many tokens can be had

    def _term(self, text: str, terms: Sequence[str], longer: Sequence[str]) -> Term:
        spellings = []
        for spelling in map(self.bytes.encode, (f" {text}", text)):
            written = b"".join(self.bytes[token] for token in spelling).decode(errors="replace")
            if written.strip() == text.strip() and spelling not in spellings:
                spellings.append(spelling)
        if not text.strip() or not spellings:
            raise ValueError(f"the term {text!r} cannot be written with the model's vocabulary")
        pattern = whole_words(text)
        count, *within = (sum(len(pattern.findall(each)) for each in some) for some in (terms, *([x] for x in longer)))
        return Term(text, count, within, spellings, pattern)

    def read(self, tokens: Sequence[int]) -> Hypothesis | None:
        """The hypothesis of a target without its prompt; `None`: it has a term too often."""
        hypothesis: Hypothesis | None = self._hypothesis(b"", self._missing(b""), [])
        for token in tokens:
            hypothesis = hypothesis and self.extend(hypothesis, token)
        return hypothesis

    def extend(self, before: Hypothesis, token: int) -> Hypothesis | None:
        """The hypothesis with one more token; `None`: it then has a term too often."""
        added = self.bytes[token]
        text, missing = before.text + added, before.missing
        may_end_term = not self.last_bytes.isdisjoint(added)
        if may_end_term or (before.text and before.text[-1] in self.last_bytes):
            missing = self._missing(text)
            if any(n < 0 for n in missing) and any(n < 0 for n in self._missing(text + b"a")):
                return None
        begun = [(i, ids, n + 1) for i, ids, n in before.begun if ids[n] == token and n + 1 < len(ids)]
        begun += [(i, ids, 1) for i, ids in self._startable(before) if ids[0] == token and len(ids) > 1]
        return self._hypothesis(text, missing, begun)

    def needed_tokens(self, hypothesis: Hypothesis, length: int) -> list[int]:
        """The token of the prefix that comes after `length` tokens; else those that go on with a term, or begin one."""
        if length < len(self.prefix):
            return [self.prefix[length]]
        needed = [ids[n] for _, ids, n in hypothesis.begun] or [ids[0] for _, ids in self._startable(hypothesis)]
        return list(dict.fromkeys(needed))

    def candidates(
        self,
        beam: int,
        hypothesis: Hypothesis,
        options: dict[int, float],
        needed: Sequence[int],
        eos_token_ids: set[int],
        length: int,
        room: int,
    ) -> Iterator["Candidate"]:
        """The tokens that may follow.

        Args:
            options: token → score, the most probable first, and the needed ones.
            room: the number of tokens that the target may still get.
        """
        is_in_prefix = length < len(self.prefix)
        # Where the model would end the target, but terms are missing, anything but a term is a last choice.
        is_over = hypothesis.missing_tokens > 0 and next(iter(options)) in eos_token_ids
        for token, score in options.items():
            if score == -math.inf or (is_in_prefix and token not in needed):
                continue
            is_end = token in eos_token_ids
            child = hypothesis if is_end else self.extend(hypothesis, token)
            room_after = 0 if is_end else room - 1
            if child is None or (child.has_surplus and room_after == 0):
                continue
            if is_in_prefix or child.missing_tokens <= room_after:
                is_last_choice = child.has_surplus or (is_over and token not in needed)
                yield Candidate(score, beam, token, is_end, is_last_choice, child)

    def _hypothesis(self, text: bytes, missing: list[int], begun: list[tuple[int, list[int], int]]) -> Hypothesis:
        begun = [each for each in begun if missing[each[0]] > 0]
        bank = self.banks - 1 - sum(n for n in missing if n > 0) + bool(begun)
        tokens = sum(n * term.size for n, term in zip(missing, self.terms, strict=True) if n > 0)
        done = max((n for _, _, n in begun), default=0)
        return Hypothesis(text, missing, begun, bank, tokens - done, any(n < 0 for n in missing))

    def _startable(self, hypothesis: Hypothesis) -> list[tuple[int, list[int]]]:
        """Terms that are missing, by the spellings that make a word of their own here."""
        text = hypothesis.text[-4:].decode(errors="ignore")  # the last character at least
        after_letter = re.match(LETTER, text[-1:]) is not None
        found = []
        for i, term in enumerate(self.terms):
            if hypothesis.missing[i] > 0:
                for ids in term.spellings:
                    first = self.bytes[ids[0]].decode(errors="replace")
                    if len(term.spellings) == 1 or (
                        hypothesis.text if first[:1].isspace() else not (after_letter and re.match(LETTER, first))
                    ):
                        found.append((i, ids))
        return found

    def _missing(self, text: bytes) -> list[int]:
        decoded, missing = text.decode(errors="replace"), []
        for term in self.terms:  # the longest first, which bring others with them
            to_come = sum(n * max(0, of_longer) for n, of_longer in zip(term.within, missing, strict=True))
            missing.append(term.count - len(term.pattern.findall(decoded)) - to_come)
        return missing


@dataclass(slots=True)
class Candidate:
    """The token that follows hypothesis `beam`, and the hypothesis that it makes."""

    score: float
    beam: int
    token: int
    is_end: bool
    is_last_choice: bool  # behind all others of its bank
    hypothesis: Hypothesis


class ConstrainedBeams:
    """`BeamSearchConfig.select_candidates` for a batch, with the `LineConstraints` of each sentence.

    Every hypothesis offers its best tokens, and those that go on with a term. A bank holds the candidates with equally
    many occurrences of terms; the banks take turns at the places of the beam, the fullest first. A target ends only
    with all its terms, and none goes on that has no room for them.
    """

    def __init__(self, lines: Sequence[LineConstraints]):
        self.lines = lines
        # The hypotheses of each sentence by their tokens.
        self.known: list[dict[tuple[int, ...], Hypothesis | None]] = [{(): line.read(())} for line in lines]

    def __call__(self, search: BeamSearch, log_probs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        num_beams, eos = search.config.num_beams, set(search.config.eos_token_ids.tolist())
        sentences, alive, end = search.alive.shape
        best, tokens = blockwise_topk(log_probs, min(num_beams + len(eos), log_probs.shape[1]))
        best_scores = (search.alive_scores[:, :, None] + best.view(sentences, alive, -1)).tolist()
        best_tokens = tokens.view(sentences, alive, -1).tolist()
        targets = search.alive[:, :, end - search.length :].tolist()
        rows, rooms = search.rows.tolist(), (search.max_lengths - search.length).tolist()
        parents: list[tuple[int, int, Hypothesis, list[int]]] = []  # with sentence, beam and needed tokens
        for i, (row, scores) in enumerate(zip(rows, search.alive_scores.tolist(), strict=True)):
            line = self.lines[row]
            if not search.length and line.shortest > rooms[i]:
                raise DecodingError(f"prefix and terms need {line.shortest} of at most {rooms[i]} target tokens", row)
            for beam, score in enumerate(scores):
                hypothesis = self.known[row].get(tuple(targets[i][beam]))
                if hypothesis is not None and score != -math.inf:
                    parents.append((i, beam, hypothesis, line.needed_tokens(hypothesis, search.length)))
        needed = [(i, beam, token) for i, beam, _, tokens in parents for token in tokens]
        index = torch.tensor(needed, dtype=torch.long, device=log_probs.device).view(-1, 3).unbind(dim=1)
        needed_scores = search.alive_scores[index[:2]] + log_probs.view(sentences, alive, -1)[index]
        next_needed_score = iter(needed_scores.tolist())
        candidates: list[list[Candidate]] = [[] for _ in rows]
        for i, beam, hypothesis, tokens in parents:
            options = dict(zip(best_tokens[i][beam], best_scores[i][beam], strict=True))
            if any(map(math.isnan, options.values())):
                raise DecodingError(f"the logits are NaN within {search.length + 1} target tokens", rows[i])
            options |= {token: next(next_needed_score) for token in tokens}
            line = self.lines[rows[i]]
            candidates[i] += line.candidates(beam, hypothesis, options, tokens, eos, search.length, rooms[i])
        chosen = [_share(each, self.lines[row].banks, num_beams) for each, row in zip(candidates, rows, strict=True)]
        for i, (row, best) in enumerate(zip(rows, chosen, strict=True)):
            self.known[row] = {(*targets[i][each.beam], each.token): each.hypothesis for each in best}
        unused = Candidate(-math.inf, 0, search.config.pad_token_id, False, True, Hypothesis(b"", [], [], 0, 0, False))
        chosen = [best + [unused] * (2 * num_beams - len(best)) for best in chosen]
        scores = search.alive_scores.new_tensor([[each.score for each in best] for best in chosen])
        beams, tokens = (
            search.alive.new_tensor([[getattr(each, name) for each in best] for best in chosen])
            for name in ("beam", "token")
        )
        return scores, beams, tokens


def _share(candidates: list[Candidate], banks: int, num_beams: int) -> list[Candidate]:
    """Those that end the target and are as good as the fullest bank's share, then the best `num_beams` that go on."""
    by_bank: list[list[Candidate]] = [[] for _ in range(banks)]
    for candidate in sorted(candidates, key=lambda each: (each.is_last_choice, -each.score)):
        by_bank[candidate.hypothesis.bank].append(candidate)
    unfinished = [[each for each in bank if not each.is_end] for bank in by_bank]
    shares, free = [0] * banks, min(num_beams, sum(map(len, unfinished)))
    while free:
        for bank in reversed(range(banks)):
            if free and shares[bank] < len(unfinished[bank]):
                shares[bank], free = shares[bank] + 1, free - 1
    ended = [each for each in by_bank[-1][: max(1, shares[-1])] if each.is_end]
    going_on = [each for bank, share in zip(unfinished, shares, strict=True) for each in bank[:share]]
    return ended + sorted(going_on, key=lambda each: -each.score)
