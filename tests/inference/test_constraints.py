# SPDX-License-Identifier: Apache-2.0
"""Prefixes and terms of the beam search, against all targets of a tiny vocabulary, and teacher forcing."""

import itertools
import random
import re
from functools import lru_cache

import pytest
import torch

from tests.families import END, FAMILIES, START
from vanilla_transformer.data.tokenizer import TokenizerConfig, train_tokenizer
from vanilla_transformer.generation import length_penalty
from vanilla_transformer.inference.native.engine import fast_decoder
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
    [[found]] = tool.n_best(
        ["\t".join(["w3 w1", *terms])], 1, prefixes=[prefix], constraints=IN_LINES, num_beams=400, max_new_tokens=length
    )
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
