# SPDX-License-Identifier: Apache-2.0
"""Prefixes and terms of the beam search, against all targets of a tiny vocabulary, and teacher forcing."""

import itertools
import random
import re
from collections import Counter
from functools import lru_cache

import pytest
import torch

from tests.families import END, FAMILIES, START
from vanilla_transformer.data.tokenizer import TokenizerConfig, train_tokenizer
from vanilla_transformer.generation import length_penalty
from vanilla_transformer.inference.constraints import Candidate, LineConstraints, share
from vanilla_transformer.inference.native.engine import fast_decoder
from vanilla_transformer.inference.target_text import TokenBytes
from vanilla_transformer.inference.terms import LexicalConstraints
from vanilla_transformer.inference.translator import Translator

CASES = [(FAMILIES[0], "native"), (FAMILIES[0], "torch"), (FAMILIES[4], "torch")]
IN_LINES = LexicalConstraints(in_lines=True)


@lru_cache
def translator(case: int, symbols: int) -> Translator:
    """Random weights for the words w0, w1, …"""
    family, engine = CASES[case]
    tokenizer = train_tokenizer([" ".join(f"w{i}" for i in range(symbols))], TokenizerConfig(kind="symbols"))
    model = family.model(
        vocab_size=len(tokenizer), pad_token_id=0, bos_token_id=START, eos_token_id=END, decoder_start_token_id=START
    )
    model.generation_config.update(num_beams=4, max_tokens_beyond_source=6)
    return Translator(model, tokenizer, fast_decoder(model, engine=engine))


@pytest.fixture(params=range(len(CASES)), ids=[f"{family.name}-{engine}" for family, engine in CASES])
def case(request) -> int:
    return request.param


def scores_of(translator: Translator, source: str, targets: torch.Tensor) -> torch.Tensor:
    """Teacher forcing: the log-probability over the length penalty of each target, `(targets, length)`."""
    ids = translator.tokenizer(source, return_tensors="pt")["input_ids"].expand(len(targets), -1)
    inputs = torch.cat([torch.full((len(targets), 1), START), targets[:, :-1]], dim=1)
    with torch.no_grad():
        logits = translator.model(ids, decoder_input_ids=inputs).logits
    log_probs = logits.log_softmax(-1).gather(2, targets[..., None])[..., 0]
    return log_probs.sum(1) / length_penalty(targets.shape[1], 0.6)


def occurrences(term: str, text: str) -> int:
    return len(re.findall(rf"(?<!\S){term}(?!\S)", text))


@pytest.mark.parametrize(
    ("prefix", "terms"),
    [("", ["w1"]), ("", ["w1 w2"]), ("", ["w0", "w0"]), ("", ["w1 w2", "w2"]), ("w2", []), ("w2 w1", ["w0"])],
)
def test_constrained_search_is_exhaustive_search_with_a_wide_beam(case, prefix, terms):
    tool, length = translator(case, 4), 4
    required = {term: sum(occurrences(term, other) for other in terms) for term in terms}
    best = -torch.inf, ""
    others = [token for token in range(len(tool.tokenizer)) if token != END]
    for before in range(length):
        last = [END] if before < length - 1 else range(len(tool.tokenizer))
        targets = torch.tensor([[*each, end] for each in itertools.product(others, repeat=before) for end in last])
        texts = tool.tokenizer.batch_decode(targets, skip_special_tokens=True)
        begun = tool.tokenizer(prefix, add_special_tokens=False)["input_ids"]
        scores = scores_of(tool, "w3 w1", targets)
        for target, text, score in zip(targets.tolist(), texts, scores.tolist(), strict=True):
            has_terms = all(occurrences(term, text) == count for term, count in required.items())
            if target[: len(begun)] == begun and has_terms:
                best = max(best, (score, text))
    options = {"num_beams": 400, "max_new_tokens": length, "early_stopping": False}
    line = "\t".join(["w3 w1", *terms])
    [[found]] = tool.n_best([line], 1, prefixes=[prefix], constraints=IN_LINES, **options)
    assert found.text == best[1]
    assert found.score == pytest.approx(best[0], abs=1e-5)


def test_batch_invariance_of_constrained_search(case):
    tool, draws, count = translator(case, 27), random.Random(3), 14
    words = [f"w{i}" for i in range(27)]
    lines, prefixes = [], []
    for i in range(count):
        source, term = (" ".join(draws.choices(words, k=draws.randint(*ends))) for ends in ((1, 5), (1, 2)))
        lines.append("\t".join([source, *([term] if i % 4 else []), *([draws.choice(words)] if i % 3 else [])]))
        prefixes.append("" if i % 2 else draws.choice(words))
    options = {"constraints": IN_LINES, "max_batch_tokens": 100}
    found = tool.translate(lines, prefixes=prefixes, **options)
    order = draws.sample(range(count), k=count)
    shuffled = tool.translate([lines[i] for i in order], prefixes=[prefixes[i] for i in order], **options)
    assert [found[i] for i in order] == shuffled
    for i in range(0, count, 3):
        assert [found[i]] == tool.translate([lines[i]], prefixes=[prefixes[i]], **options)
    for line, prefix, text in zip(lines, prefixes, found, strict=True):
        terms = line.split("\t")[1:]
        assert text.startswith(prefix)
        for term in terms:
            assert occurrences(term, text) == sum(occurrences(term, other) for other in terms)


@lru_cache
def byte_level() -> TokenBytes:
    corpus = ["The black cat and the cats of Zürich … „Zürich“ concatenate {0} <x1/>"] * 3
    return TokenBytes(train_tokenizer(corpus, TokenizerConfig(vocab_size=300)))


def target(*texts: str) -> list[int]:
    return [token for text in texts for token in byte_level().encode(text)]


@pytest.mark.parametrize(
    ("texts", "missing"),
    [
        (["The cat"], 0),
        (["The ca", "t"], 0),  # whichever tokens spell it
        (["The c", "a", "t", "s"], 1),  # a part of another word
        (["con", "cat"], 1),
        (["„cat“"], 0),
        (["cat", "…"], 0),
        (["The Cat"], 1),
    ],
)
def test_terms_are_whole_words_of_the_text(texts, missing):
    line = LineConstraints([], ["cat"], byte_level())
    hypothesis = line.read(target(*texts))
    assert hypothesis is not None
    assert hypothesis.missing == [missing]


def test_a_second_occurrence_is_refused_unless_the_word_goes_on():
    line = LineConstraints([], ["cat"], byte_level())
    twice = line.read(target("a cat", " c", "a", "t"))
    assert twice is not None
    assert twice.has_surplus
    assert line.read(target("a cat", " c", "a", "t", " ")) is None
    longer = line.read(target("a cat", " c", "a", "t", "s"))
    assert longer is not None
    assert (longer.missing, longer.has_surplus) == ([0], False)


def test_an_occurrence_within_a_longer_term_is_that_terms():
    line = LineConstraints([], ["cat", "black cat"], byte_level())
    assert [term.text for term in line.terms] == ["black cat", "cat"]
    for texts, missing in ((["a cat"], [1, 0]), (["a black cat"], [0, 1]), (["cat", " black cat"], [0, 0])):
        hypothesis = line.read(target(*texts))
        assert hypothesis is not None
        assert hypothesis.missing == missing


def test_a_begun_term_counts_by_its_tokens():
    """Its first token must not compete with hypotheses that have the whole term."""
    line = LineConstraints([], ["cat"], byte_level())
    term = byte_level().encode(" cat")
    banks = [hypothesis.bank for n in range(len(term) + 1) if (hypothesis := line.read(target("The") + term[:n]))]
    assert banks == list(range(len(term) + 1))


def test_a_term_of_the_free_translation_has_no_bank():
    line = LineConstraints([], ["cat", "black"], byte_level())
    line.give_banks_beside("A cat")
    for text, has_black in (("cat", False), ("a black", True)):
        hypothesis = line.read(target(text))
        assert hypothesis is not None
        assert (hypothesis.bank > 0) == has_black


@pytest.mark.parametrize(
    ("texts", "is_accepted"),
    [(["a cat"], True), (["a dog"], False), (["a cat, a cat"], False), (["a cat", "cats"], False)],
)
def test_translations_are_accepted_with_each_term_as_often_as_it_was_given(texts, is_accepted):
    assert LineConstraints([], ["cat"], byte_level()).accepts(texts) == is_accepted


def test_every_bank_has_a_place_in_the_beam():
    draws = random.Random(5)
    banks = [0] * 6 + [1] * 2 + [3] * 4
    candidates = [
        Candidate(False, draws.random() + 10 * bank, 0, token, False, bank, None) for token, bank in enumerate(banks)
    ]
    chosen = share(candidates, 8)
    assert sorted(Counter(each.bank for each in chosen).items()) == [(0, 3), (1, 2), (3, 3)]
    for bank in (0, 1, 3):
        own = sorted(each for each in candidates if each.bank == bank)
        assert [each for each in chosen if each.bank == bank] == own[: sum(each.bank == bank for each in chosen)]


def test_a_translation_that_has_its_terms_is_the_free_one(case):
    tool, lines = translator(case, 27), ["w1 w2", "w3 w4 w5"]
    free = [best for [best] in tool.n_best(lines, 1)]
    terms = [[word for word, n in Counter(each.text.split()).items() if n == 1] for each in free]
    given = ["\t".join([line, *own]) for line, own in zip(lines, terms, strict=True)]
    assert any(terms)
    assert tool.translate(given, constraints=IN_LINES) == [each.text for each in free]


def test_terms_that_fill_a_narrow_beam_are_all_found(case):
    """Even if the most probable tokens are all terms that the target has already."""
    tool, words = translator(case, 4), [f"w{i}" for i in range(4)]
    for source in words:
        [text] = tool.translate(["\t".join([source, *words])], num_beams=2, constraints=IN_LINES)
        assert Counter(text.split()) == Counter(words)


@pytest.mark.parametrize(
    ("terms", "prefix", "options", "said"),
    [
        (["w1"], "", {"num_beams": 1}, "num_beams=1 must be at least 2 where terms are given"),
        (["unheard"], "", {}, "line 1: the term 'unheard' cannot be written with the model's vocabulary"),
        (["w1"], "w1 w2 w1 w2", {}, "line 1: its prefix has one of its terms more often than they were given: w1"),
        (["w1"], "w1 w1", {}, "line 1: its prefix has one of its terms more often than they were given: w1"),
        (["w1 w2 w0"], "w3 w3", {"max_new_tokens": 4}, "at line 1: prefix and terms need 5 of at most 4 target tokens"),
    ],
)
def test_impossible_constraints_are_refused(terms, prefix, options, said):
    line = "\t".join(["w3", *terms])
    with pytest.raises(ValueError, match=re.escape(said)):
        translator(1, 4).translate([line], prefixes=[prefix], constraints=IN_LINES, **options)


def test_a_greedy_translation_goes_on_after_its_prefix():
    """As the model's own greedy search does from a part of the target."""
    tool = translator(1, 27)
    prompt = torch.tensor([[START, *tool.tokenizer("w5 w6", add_special_tokens=False)["input_ids"]]])
    expected = tool.translate(["w1 w2 w3"], num_beams=1, max_new_tokens=6, decoder_input_ids=prompt)
    assert tool.translate(["w1 w2 w3"], num_beams=1, max_new_tokens=8, prefixes=["w5 w6"]) == expected


def test_lines_without_terms_are_decoded_as_ever():
    tool, lines = translator(0, 27), ["w1 w2", "w3\tw4", "w5 w6 w7"]
    found = list(tool.n_best(lines, 2, constraints=IN_LINES))
    alone = list(tool.n_best(lines[::2], 2))
    for best, expected in zip(found[::2], alone, strict=True):
        assert [each.text for each in best] == [each.text for each in expected]
        assert [each.score for each in best] == pytest.approx([each.score for each in expected], abs=1e-5)
