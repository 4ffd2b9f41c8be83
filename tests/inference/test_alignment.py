# SPDX-License-Identifier: Apache-2.0
"""Alignments of constructed attention are those by construction, whatever the batch."""

import numpy as np
import pytest
import torch
from transformers import GenerationConfig

from tests.families import CROSS_ATTENTION, END, FAMILIES, START
from tests.inference.aligning_model import aligning_model, reorderings
from vanilla_transformer import Translator
from vanilla_transformer.data.tokenizer import TokenizerConfig, load_tokenizer, train_tokenizer
from vanilla_transformer.evaluation.attention_weights import attention_weights
from vanilla_transformer.inference import alignment
from vanilla_transformer.inference.alignment import AlignmentHeads, align, alignment_heads_of
from vanilla_transformer.inference.model_folder import load_model_folder
from vanilla_transformer.inference.translate import Translation, translate_lines

READS, PREDICTS = AlignmentHeads(((0, 0),), shift=1), AlignmentHeads(((0, 0),), shift=0)
SUTSKEVER = FAMILIES[4]
SYMBOLS = [f"w{i}" for i in range(27)]  # with the 4 special tokens, the vocabulary of a tiny model


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([" ".join(SYMBOLS)], TokenizerConfig(kind="symbols"))


def lines_of(links):
    return [" ".join(f"{s}-{t}" for s, t in own) for [own] in links]


def test_the_head_that_aligns_by_construction():
    model, tokenizer = aligning_model()
    sources, targets, expected = zip(*reorderings(50), strict=True)
    assert lines_of(align(model, tokenizer, sources, targets, [AlignmentHeads(((1, 1),), shift=1)])) == list(expected)


def test_shift_chooses_between_the_row_that_reads_and_the_row_that_predicts(tokenizer, monkeypatch):
    """Row t has all its weight on source token t. Row t predicts word t, and row t + 1 reads it."""
    oracle = torch.eye(4, 5)[None, None]  # 3 words and the first row that reads the last; 4 words and </s>
    monkeypatch.setattr(alignment, "_cross_attentions", lambda *_: (oracle,))
    [[predicts, reads]] = align(FAMILIES[0].model(), tokenizer, ["w1 w2 w3 w4"], ["w5 w6 w7"], [PREDICTS, READS])
    assert predicts == [(0, 0), (1, 1), (2, 2)]
    assert reads == [(1, 0), (2, 1), (3, 2)]


def test_subwords_are_merged_to_words_and_tokens_without_a_word_are_left_out(monkeypatch):
    """Bytes as tokens: "ab c" has a, b, space, c and </s>; "x yz" has x, space, y, z."""
    tokenizer = train_tokenizer([""], TokenizerConfig(kind="bpe", vocab_size=259))
    oracle = torch.tensor(
        [
            [0.1, 0.2, 0.3, 0.0, 0.4],  # x: </s> and the space are no words; the largest other is b, of word 0
            [0.0, 0.0, 0.0, 1.0, 0.0],  # the space is no word of the target
            [0.6, 0.1, 0.0, 0.3, 0.0],  # y: a, of word 0
            [0.0, 0.1, 0.0, 0.9, 0.0],  # z: c, of word 1
            [1.0, 0.0, 0.0, 0.0, 0.0],
        ]
    )
    monkeypatch.setattr(alignment, "_cross_attentions", lambda *_: (oracle[None, None],))
    [[links]] = align(FAMILIES[0].model(), tokenizer, ["ab c"], ["x yz"], [PREDICTS])
    assert links == [(0, 0), (0, 1), (1, 1)]


def test_several_heads_align_by_their_mean(tokenizer, monkeypatch):
    first, second = torch.tensor([[0.6, 0.4, 0.0]] * 2), torch.tensor([[0.1, 0.5, 0.4]] * 2)
    monkeypatch.setattr(alignment, "_cross_attentions", lambda *_: (first[None, None], second[None, None]))
    candidates = [AlignmentHeads(heads) for heads in (((0, 0),), ((1, 0),), ((0, 0), (1, 0)))]
    [found] = align(FAMILIES[0].model(), tokenizer, ["w1 w2"], ["w3"], candidates)
    assert found == [[(0, 0)], [(1, 0)], [(1, 0)]]  # means 0.35, 0.45, 0.2


@pytest.mark.parametrize(
    "family", [family for family in FAMILIES if CROSS_ATTENTION not in family.lacks], ids=lambda family: family.name
)
def test_batch_invariance_of_the_weights(family, tokenizer):
    """A padded batch aligns as one sentence alone does by the weights of `attention_weights`."""
    model = family.model(pad_token_id=0, bos_token_id=START, eos_token_id=END, decoder_start_token_id=START)
    sources = ["w1 w2 w3 w4 w5 w6", "w7", "w8 w9 w1"]
    targets = ["w3 w1", "w2 w4 w6 w8 w1", "w9"]
    layers = len(attention_weights(model, tokenizer, "w1", [START, 7]).cross)
    heads = AlignmentHeads(((layers - 1, 0),))
    found = align(model, tokenizer, sources, targets, [heads])
    for source, target, [links] in zip(sources, targets, found, strict=True):
        ids = [START, *tokenizer(target)["input_ids"]]
        weights = attention_weights(model, tokenizer, source, ids).cross[layers - 1, 0]
        best = np.argmax(weights[: len(target.split()), : len(source.split())], axis=1)  # without </s>
        assert links == sorted((int(s), t) for t, s in enumerate(best))


def test_batches_of_any_size_align_the_same(monkeypatch):
    model, tokenizer = aligning_model()
    sources, targets, _ = zip(*reorderings(12), strict=True)
    heads = [AlignmentHeads(((1, 1),), shift=1)]
    together = align(model, tokenizer, sources, targets, heads)
    calls = []
    passes = alignment._cross_attentions
    monkeypatch.setattr(alignment, "_cross_attentions", lambda *a: calls.append(len(a[1])) or passes(*a))
    monkeypatch.setattr(alignment, "MAX_WEIGHTS", 100)
    assert align(model, tokenizer, sources, targets, heads) == together
    assert sum(calls) == 12
    assert 1 < len(calls) < 12


def test_empty_sides_have_no_links():
    model, tokenizer = aligning_model()
    heads = [AlignmentHeads(((1, 1),), shift=1)]
    assert align(model, tokenizer, ["", "a b", "b a", " "], ["a", "", "a b", ""], heads) == [
        [[]], [[]], [[(0, 1), (1, 0)]], [[]],
    ]  # fmt: skip
    assert align(model, tokenizer, [], [], heads) == []


def test_translations_carry_the_alignment_of_their_text(model_folder):
    model, tokenizer = load_model_folder(model_folder), load_tokenizer(model_folder)
    model.generation_config.alignment_heads = [[0, 1]]
    lines = ["a b c", "", "h g f e d", "b"]
    options = {"max_batch_tokens": 100, "num_beams": 3, "num_return_sequences": 2}
    plain = translate_lines(model, tokenizer, lines, **options)
    found = translate_lines(model, tokenizer, lines, alignments=True, **options)
    for line, before, now in zip(lines, plain, found, strict=True):
        assert [(t.text, t.score) for t in now] == [(t.text, t.score) for t in before]
        texts = [translation.text for translation in now]
        expected = align(model, tokenizer, [line] * len(texts), texts)
        assert [[translation.alignment] for translation in now] == expected
    assert all(translation.alignment is None for best in plain for translation in best)


def test_a_translation_has_the_source_positions_of_each_word():
    translation = Translation("x y z", alignment=[(0, 0), (2, 0), (1, 2)])
    assert translation.source_positions == [[0, 2], [], [1]]
    assert Translation("x").source_positions is None


def test_a_search_without_alignments_pays_nothing(model_folder, monkeypatch):
    model, tokenizer = load_model_folder(model_folder), load_tokenizer(model_folder)
    monkeypatch.setattr("vanilla_transformer.inference.translate.align", None)
    assert translate_lines(model, tokenizer, ["a b"], max_batch_tokens=100)[0][0].text


def test_the_backend_and_the_mode_are_restored(model_folder):
    model, tokenizer = load_model_folder(model_folder).train(), load_tokenizer(model_folder)
    model.set_attn_implementation("sdpa")
    align(model, tokenizer, ["a b"], ["b a"], [READS])
    assert model.training
    assert model.config._attn_implementation == "sdpa"


def test_a_tag_before_the_source_is_no_word(model_folder):
    model, tokenizer = load_model_folder(model_folder), load_tokenizer(model_folder)
    tokenizer.add_special_tokens({"extra_special_tokens": ["<2de>"]})
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    [[links]] = align(model, tokenizer, ["a b c"], ["c b"], [READS], target_language="de")
    assert sorted(t for _, t in links) == [0, 1]
    assert {s for s, _ in links} <= {0, 1, 2}


class TestTheHeadsOfAModel:
    def test_one_head_needs_no_choice(self):
        assert alignment_heads_of(FAMILIES[1].model()) == AlignmentHeads(((0, 0),))

    def test_several_heads_need_a_choice(self, model_folder):
        with pytest.raises(ValueError, match=r"no alignment_heads, and the decoder has 1 layers of 2 heads: choose"):
            alignment_heads_of(load_model_folder(model_folder))

    @pytest.mark.parametrize("heads", [[], [[1, 0]], [[0, 2]], [[0, -1]]])
    def test_heads_that_the_model_does_not_have_are_refused(self, model_folder, heads):
        model = load_model_folder(model_folder)
        model.generation_config.alignment_heads = heads
        with pytest.raises(ValueError, match="must be pairs of a layer below 1 and a head below 2"):
            alignment_heads_of(model)

    def test_a_model_without_attention_is_refused_before_it_translates(self, tokenizer):
        with pytest.raises(ValueError, match="no attention over the source"):
            translate_lines(SUTSKEVER.model(), tokenizer, ["w1"], max_batch_tokens=10, alignments=True)

    def test_a_translator_aligns_by_the_folders_choice(self, tmp_path):
        model, tokenizer = aligning_model()
        tokens = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "decoder_start_token_id": 1}
        model.generation_config = GenerationConfig(alignment_heads=[[1, 1]], alignment_shift=1, **tokens)
        model.save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        translator = Translator.from_pretrained(tmp_path, device="cpu", engine="torch")
        [(source, target, expected)] = reorderings(1)
        assert lines_of([translator.align([source], [target])]) == [expected]
        with pytest.raises(ValueError, match="2 sources and 1 targets"):
            translator.align(["a", "b"], ["a"])
