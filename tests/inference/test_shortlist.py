# SPDX-License-Identifier: Apache-2.0
"""Shortlists against the search over the whole vocabulary, and against logits that are masked by hand."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.families import FAMILIES
from vanilla_transformer import Translator
from vanilla_transformer.data.tokenizer import load_tokenizer
from vanilla_transformer.inference.native.engine import fast_decoder, native_decoder
from vanilla_transformer.inference.shortlist import (
    Shortlist,
    ShortlistDecoder,
    lexical_table,
    read_shortlist,
)
from vanilla_transformer.inference.translate_file import translate_file
from vanilla_transformer.packed_linear import PRECISIONS

LETTERS = "abcdefgh"
LINES = ["a b c", "h", "d e d g f", "", "b b", "c a h e", "g"]
END = 2


def write_table(path: Path, targets: dict[str, str]) -> Path:
    """Each source letter has the same probability for all of its target letters."""
    pairs = [f"{target} {source} 0.5\n" for source, own in targets.items() for target in own]
    path.write_text("".join(pairs), encoding="utf-8")
    return path


@pytest.fixture
def small(model_folder: Path, tmp_path: Path) -> tuple[Translator, dict[str, str]]:
    """A translator whose sentences have two letters of each of theirs, and none in common."""
    targets = {letter: LETTERS[i] + LETTERS[(i + 3) % 8] for i, letter in enumerate(LETTERS)}
    translator = Translator.from_pretrained(model_folder, device="cpu")
    table = read_shortlist(
        write_table(tmp_path / "lex", targets), translator.model, translator.tokenizer, frequent=0, best=2
    )
    translator.decoder = ShortlistDecoder(translator.decoder, table)
    return translator, targets


def random_shortlists(sentences: int, vocab_size: int) -> torch.Tensor:
    allowed = torch.rand(sentences, vocab_size) < 0.2
    allowed[:, [END, 5, 9]] = True
    allowed[:, 17:40:3] = False  # tokens that no sentence may have
    return allowed


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    ("family", "fields"),
    [(0, {"vocab_size": 700}), (0, {"projection_bias": True, "d_model": 18, "num_heads": 3}), (1, {"vocab_size": 700})],
)
def test_logits_are_those_of_the_whole_projection(precision, family, fields):
    model = FAMILIES[family].model(**fields)
    decoder: Any = native_decoder(model, precision, "native")
    size = model.config.vocab_size
    ids, allowed = torch.randint(3, size, (4, 6)), random_shortlists(4, size)
    encoded = decoder.encode(ids, torch.ones_like(ids))
    states = [decoder.begin(encoded, None, 5, 2), decoder.begin(encoded, None, 5, 2, allowed=allowed)]
    for state in states:
        state.reorder(torch.zeros(4, 2, dtype=torch.long))
    for sentences in (torch.arange(4), torch.tensor([3, 1])):
        tokens = torch.randint(3, size, (len(sentences), 2))
        for state in states:
            state.select(sentences)
        plain, found = (state(tokens) for state in states)
        is_allowed = allowed[sentences].repeat_interleave(2, dim=0)
        torch.testing.assert_close(found, plain.masked_fill(~is_allowed, -torch.inf))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("count", [3, 70])  # with 70 sentences, hypotheses far behind are deferred
@pytest.mark.parametrize("family", FAMILIES[:2], ids=lambda family: family.name)
def test_topk_steps_ranks_as_masked_logits_do(family, count, precision):
    decoder: Any = native_decoder(family.model(vocab_size=700), precision, "native")
    ids = torch.randint(3, 700, (count, 6))
    encoded, allowed = decoder.encode(ids, torch.ones_like(ids)), random_shortlists(count, 700)
    ranked, plain = decoder.begin(encoded, None, 5, 4, allowed=allowed), decoder.begin(encoded, None, 5, 4)
    for state in (ranked, plain):
        state.reorder(torch.zeros(count, 4, dtype=torch.long))
    tokens, totals = torch.randint(3, 700, (count, 4)), 3 * torch.randn(count, 4).sort(descending=True).values
    scores, beams, found, _ = ranked.topk_steps(tokens, totals, 4, torch.tensor([END]))
    logits = plain(tokens).view(count, 4, -1).masked_fill(~allowed[:, None], -torch.inf).log_softmax(dim=-1)
    expected, index = (totals[..., None] + logits).flatten(1).topk(8)
    continues = index % 700 != END
    is_wanted = continues.cumsum(dim=1) - continues.long() < 4
    torch.testing.assert_close(scores[is_wanted], expected[is_wanted])
    assert torch.equal((beams * 700 + found)[is_wanted], index[is_wanted])


@pytest.mark.parametrize("family", FAMILIES[:2], ids=lambda family: family.name)
def test_nan_stays_nan_in_topk_steps(family):
    model = family.model()
    with torch.no_grad():
        model.lm_head.weight[5] = torch.nan
    decoder: Any = native_decoder(model, "float32", "native")
    allowed = torch.ones(1, 31, dtype=torch.bool)
    state = decoder.begin(decoder.encode(torch.tensor([[3]]), torch.ones(1, 1)), None, 5, 1, allowed=allowed)
    assert state.topk_steps(torch.tensor([[7]]), None, 1, torch.tensor([END]))[0].isnan().all()


@pytest.mark.parametrize("engine", ["native", "torch"])
@pytest.mark.parametrize("beams", [1, 4])
def test_the_whole_vocabulary_as_shortlist_changes_nothing(model_folder, tmp_path, engine, beams):
    tokens = load_tokenizer(model_folder).get_vocab()
    table = tmp_path / "lex"
    table.write_text("".join(f"{token} {letter} 0.1\n" for letter in LETTERS for token in tokens), encoding="utf-8")
    options = {"device": "cpu", "engine": engine}
    plain = Translator.from_pretrained(model_folder, **options)
    found = Translator.from_pretrained(model_folder, **options, shortlist=table)
    assert list(found.n_best(LINES, beams, num_beams=beams)) == list(plain.n_best(LINES, beams, num_beams=beams))


@pytest.mark.parametrize("beams", [1, 4])
def test_translations_have_tokens_of_their_shortlist_alone(small, beams):
    translator, targets = small
    found = list(translator.n_best(LINES, 1, num_beams=beams))
    for line, [translation] in zip(LINES, found, strict=True):
        assert set(translation.text.split()) <= {target for letter in line.split() for target in targets[letter]}
    translator.decoder = translator.decoder.decoder  # it is the shortlist that keeps the others out
    assert [best[0].text for best in translator.n_best(LINES, 1, num_beams=beams)] != [each[0].text for each in found]


def test_batch_invariance_and_the_same_from_every_engine(small):
    translator, _ = small
    options = {"num_beams": 3, "log_probs": True}
    together = list(translator.n_best(LINES, 3, **options))
    alone = [best for line in LINES for best in translator.n_best([line], 3, **options)]
    backwards = list(translator.n_best(LINES[::-1], 3, **options))[::-1]
    native, masked = (
        translator.decoder,
        ShortlistDecoder(translator.model.build_decoder(), translator.decoder.shortlist),
    )
    assert native.engine == "native"
    translator.decoder = masked
    for other in (alone, backwards, list(translator.n_best(LINES, 3, **options))):
        for best, expected in zip(other, together, strict=True):
            assert [each.text for each in best] == [each.text for each in expected]
            assert [each.score or 0 for each in best] == pytest.approx([each.score or 0 for each in expected], abs=1e-5)
            for each, same in zip(best, expected, strict=True):
                assert each.log_probs == pytest.approx(same.log_probs, abs=1e-5)


@pytest.mark.parametrize("engine", ["native", "torch"])
def test_rnns_have_shortlists(engine):
    model = FAMILIES[1].model()
    shortlist = Shortlist({3: {7: 0.5, 8: 0.1}, 4: {9: 1.0}}, model, frequent=1, best=1)
    decoder = ShortlistDecoder(fast_decoder(model, "float32", engine), shortlist)
    mask = torch.tensor([[1, 1], [1, 0]])
    state: Any = decoder.begin(decoder.encode(torch.tensor([[3, 4], [3, 0]]), mask), mask, 4, 1)
    finite = state(torch.tensor([[1], [1]])).isfinite()
    assert finite[0].nonzero()[:, 0].tolist() == [2, 3, 4, 7, 9]  # both best, the sum of 9 is the highest
    state.select(torch.tensor([1]))
    assert state(torch.tensor([[1]])).isfinite()[0].nonzero()[:, 0].tolist() == [2, 3, 7, 9]


def test_a_shortlist_has_the_best_of_each_token_the_most_frequent_the_token_and_the_end():
    shortlist = Shortlist({3: {7: 0.5, 8: 0.3, 9: 0.2}, 4: {9: 0.6, 10: 0.4}, 5: {9: 0.9}}, FAMILIES[0].model(), 1, 2)
    allowed = shortlist.allowed(torch.tensor([[3, 6], [4, 0]]), torch.tensor([[1, 1], [1, 0]]))
    assert allowed[0].nonzero()[:, 0].tolist() == [END, 3, 6, 7, 8, 9]
    assert allowed[1].nonzero()[:, 0].tolist() == [END, 4, 9, 10]  # padding adds nothing
    other = Shortlist({3: {36: 1.0}}, FAMILIES[5].model(), 0, 2)  # two vocabularies: a source token is no target token
    assert other.allowed(torch.tensor([[3]]), torch.tensor([[1]]))[0].nonzero()[:, 0].tolist() == [END, 36]


def test_a_table_has_the_shares_of_links_of_all_tokens(model_folder):
    rows = [
        {"source": "a b", "target": "c d", "alignments": "0-0 1p1"},
        {"source": "a", "target": "d", "alignments": "0-0"},
        {"source": "a b", "target": "d c", "alignments": "0-0"},
    ]
    found = list(lexical_table(rows, load_tokenizer(model_folder)))
    assert found == [("d", "a", pytest.approx(2 / 3)), ("c", "a", pytest.approx(1 / 3)), ("d", "b", 1.0)]
    assert [row[:2] for row in lexical_table(rows, load_tokenizer(model_folder), best=1)] == [("d", "a"), ("d", "b")]


def test_a_table_counts_every_pair_of_a_long_text(model_folder, monkeypatch):
    monkeypatch.setattr("vanilla_transformer.inference.shortlist.CHUNK", 2)
    rows = [{"source": letter, "target": letter, "alignments": "0-0"} for letter in LETTERS]
    assert sorted(lexical_table(rows, load_tokenizer(model_folder))) == [(letter, letter, 1.0) for letter in LETTERS]


def test_tokens_may_have_white_space_of_unicode(tmp_path):
    tokens = {"a\u00a0b": 3, "\u3000": 4, "\u2028": 5}
    (tmp_path / "lex").write_text("a\u00a0b \u3000 0.5\n\u2028\t\u3000 0.5 \r\n", encoding="utf-8", newline="")
    tokenizer = SimpleNamespace(get_vocab=lambda: tokens)
    found = read_shortlist(tmp_path / "lex", FAMILIES[0].model(), tokenizer, frequent=0)
    allowed = found.allowed(torch.tensor([[4]]), torch.tensor([[1]]))
    assert allowed[0].nonzero()[:, 0].tolist() == [END, 3, 4, 5]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a b 0.1\na b\n", "line 2: 'a b' is not 'target source probability'"),
        ("a b much\n", "line 1: 'a b much' is not"),
        ("a b 1\na c nan\n", "line 2: 'a c nan' is not"),
        ("a b -1\n", "line 1: 'a b -1' is not"),
        ("nobody knows 0.5\n", "has no pair of tokens of this model"),
    ],
)
def test_a_file_that_is_no_table_is_refused(model_folder, tmp_path, text, message):
    (tmp_path / "lex").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        Translator.from_pretrained(model_folder, device="cpu", shortlist=tmp_path / "lex")


def test_options_that_need_any_token_are_refused(small):
    translator, _ = small
    for options in ({"prefixes": ["a"]}, {"prefixes": [""]}, {"eos_token_id": 3}):
        with pytest.raises(ValueError, match="a shortlist may lack the tokens"):
            translator.translate(["a"], **options)
    with pytest.raises(ValueError, match="a shortlist may lack the tokens"):
        list(translator.score([("a", "b")]))


def test_a_file_begun_with_another_shortlist_is_refused(small, tmp_path):
    translator, _ = small
    (tmp_path / "in").write_text("a b\nc\n", encoding="utf-8")

    def stop(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        translate_file(translator, tmp_path / "in", tmp_path / "out", lambda *_: "", 1, stop, max_batch_tokens=99)
    translator.decoder = translator.decoder.decoder
    with pytest.raises(ValueError, match="was begun with shortlist="):
        translate_file(translator, tmp_path / "in", tmp_path / "out", lambda *_: "", 1, max_batch_tokens=99)
