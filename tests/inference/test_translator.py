# SPDX-License-Identifier: Apache-2.0
"""The Translator, against `generate` line by line, one forward pass, and itself in other precisions."""

import random
import subprocess
import sys
from itertools import count
from pathlib import Path

import pytest
import torch
from transformers import MarianConfig, MarianMTModel

import vanilla_transformer
from tests.families import CROSS_ATTENTION, END, FAMILIES, START, Family
from vanilla_transformer import Translator
from vanilla_transformer.data.tokenizer import TokenizerConfig, train_tokenizer
from vanilla_transformer.generation import beam_search, length_penalty
from vanilla_transformer.inference.model_folder import load_model_folder
from vanilla_transformer.inference.translate import Translation

SYMBOLS = [f"w{i}" for i in range(27)]  # with the 4 special tokens, the vocabulary of a tiny model


@pytest.fixture(params=[FAMILIES[0], FAMILIES[2], FAMILIES[4]], ids=lambda family: family.name)
def family(request) -> Family:
    return request.param


@pytest.fixture
def folder(family, tmp_path) -> Path:
    """A model folder of random weights that decodes as a trained one is told to."""
    tokenizer = train_tokenizer([" ".join(SYMBOLS)], TokenizerConfig(kind="symbols"))
    model = family.model(pad_token_id=0, bos_token_id=START, eos_token_id=END, decoder_start_token_id=START)
    model.generation_config.update(num_beams=3, max_tokens_beyond_source=4)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    return tmp_path


@pytest.fixture
def translator(folder) -> Translator:
    return Translator.from_pretrained(folder, device="cpu")


@pytest.fixture
def lines() -> list[str]:
    return [" ".join(random.choices(SYMBOLS, k=length)) for length in random.sample(range(1, 15), k=12)]


@torch.no_grad()
def test_translations_equal_beam_search_line_by_line(translator, folder, lines):
    model, tokenizer = load_model_folder(folder), translator.tokenizer
    options = {"num_beams": 4, "alpha": 1.0}
    outputs = [
        model.generate(**tokenizer(line, return_tensors="pt"), custom_generate=beam_search, **options)[0]
        for line in lines
    ]
    expected = [tokenizer.decode(output, skip_special_tokens=True) for output in outputs]
    assert len(set(expected)) > len(lines) / 2  # or a wrong order would not show
    lines.insert(3, "")
    expected.insert(3, "")
    assert translator.translate(lines, max_batch_tokens=100, **options) == expected


def test_lines_may_be_any_iterable(translator, lines, tmp_path):
    expected = translator.translate(lines)
    path = tmp_path / "lines"
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    with path.open(encoding="utf-8") as file:
        assert translator.translate(file) == expected
    assert translator.translate(line for line in lines) == expected
    assert list(translator.stream(tuple(lines), window=5)) == expected


def test_a_byte_order_mark_of_a_file_is_no_word(translator, tmp_path):
    path = tmp_path / "lines"
    path.write_text("w1 w2\nw3\n\ufeffw1\n", encoding="utf-8-sig")
    with path.open(encoding="utf-8") as file:
        found = list(translator.n_best(file, 1))
    assert found == list(translator.n_best(["w1 w2", "w3", "\ufeffw1"], 1))


def test_a_stream_reads_a_window_at_a_time(translator):
    read: list[int] = []
    endless = (read.append(i) or "w1" for i in count())
    translations = translator.stream(endless, window=4, max_new_tokens=2)
    assert [len(read) for _ in zip(range(5), translations, strict=False)] == [4, 4, 4, 4, 8]


def test_a_string_is_not_taken_for_lines(translator):
    with pytest.raises(ValueError, match="one string was given: put it into a list"):
        translator.translate("w1 w2")


def test_a_line_that_is_no_string_is_named(translator):
    with pytest.raises(ValueError, match="line 3 must be a string; NoneType was given"):
        translator.translate(["w1", "", None])


WORDS_ALONE = {"max_new_tokens": 5, "suppress_tokens": [0, 1, 3]}  # a text then has all tokens but the end


@torch.no_grad()
def exact_score(folder: Path, tokenizer, source: str, text: str, alpha: float) -> float:
    """The score of a translation, by one forward pass in float32 and the paper's length penalty."""
    target = [START, *tokenizer(text)["input_ids"]][: 1 + WORDS_ALONE["max_new_tokens"]]  # the longest have no end
    decoder_input_ids = torch.tensor([target[:-1]])
    model = load_model_folder(folder)
    logits = model(**tokenizer(source, return_tensors="pt"), decoder_input_ids=decoder_input_ids).logits[0]
    total = logits.log_softmax(-1)[torch.arange(len(target) - 1), target[1:]].sum().item()
    return total / length_penalty(len(target) - 1, alpha)


def test_scores_are_log_probabilities_over_the_papers_length_penalty(translator, folder):
    source, alpha = "w4 w9 w2", 0.8
    [best] = translator.n_best([source], 3, num_beams=4, alpha=alpha, **WORDS_ALONE)
    expected = [exact_score(folder, translator.tokenizer, source, translation.text, alpha) for translation in best]
    assert [translation.score for translation in best] == pytest.approx(expected, rel=1e-4)
    assert expected == sorted(expected, reverse=True)


def test_the_coverage_penalty_reaches_the_search(translator, family, lines):
    options = {"num_beams": 3, "max_new_tokens": 5}
    if CROSS_ATTENTION in family.lacks:
        with pytest.raises(ValueError, match="attention='none'"):
            translator.translate(lines, coverage_penalty=0.5, **options)
        return
    plain = list(translator.n_best(lines, 3, **options))
    found = list(translator.n_best(lines, 3, coverage_penalty=0.5, **options))
    scores = [
        [{translation.text: translation.score for translation in best} for best in side] for side in (plain, found)
    ]
    differences = [
        after[text] - before[text]
        for before, after in zip(*scores, strict=True)
        for text in before.keys() & after.keys()
    ]
    assert len(differences) > len(lines)
    assert max(differences) < 1e-5  # beta times a sum of logarithms of at most 1
    assert min(differences) < -0.1


def test_greedy_decoding_has_no_scores(translator):
    assert [translation.score for [translation] in translator.n_best(["w1", "w2"], 1, num_beams=1)] == [None, None]


def test_missing_hypotheses_are_left_out(translator):
    nothing_but_the_end = [token for token in range(31) if token != END]
    [best] = translator.n_best(["w1"], 3, suppress_tokens=nothing_but_the_end, max_new_tokens=4)
    assert [translation.text for translation in best] == [""]


def test_the_decoder_is_built_once(family, folder, lines, monkeypatch):
    built, build = [], family.seq2seq_class.build_decoder

    def counted(model, precision):
        built.append(precision)
        return build(model, precision)

    monkeypatch.setattr(family.seq2seq_class, "build_decoder", counted)
    translator = Translator.from_pretrained(folder, "bfloat16", "cpu", "torch")
    list(translator.stream(lines, window=2, max_batch_tokens=20))
    translator.translate(lines)
    assert built == ["bfloat16"]


def test_every_engine_translates_the_same(family, folder, lines):
    engines = [Translator.from_pretrained(folder, device="cpu", engine=item) for item in ("auto", "torch")]
    assert [engine.engine for engine in engines] == ["native", "torch"]
    assert engines[0].translate(lines) == engines[1].translate(lines)


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_scores_in_every_precision_are_near_the_exact_ones_of_the_same_words(folder, lines, precision):
    """Each score is compared for its own words: rounding, and so the CPU, may decide which words are found."""
    translator = Translator.from_pretrained(folder, precision, device="cpu")
    best = [translation for [translation] in translator.n_best(lines, 1, alpha=0.6, **WORDS_ALONE)]
    found = [translation.score for translation in best]
    exact = [
        exact_score(folder, translator.tokenizer, line, item.text, 0.6) for line, item in zip(lines, best, strict=True)
    ]
    assert found == pytest.approx(exact, rel=0.05)
    assert found != pytest.approx(exact, rel=1e-5)  # or it was float32 that decoded


def test_precision_does_not_depend_on_the_dtype_of_the_folder(folder):
    load_model_folder(folder).bfloat16().save_pretrained(folder)
    assert Translator.from_pretrained(folder, device="cpu").model.dtype == torch.float32
    assert Translator.from_pretrained(folder, "bfloat16", "cpu", "torch").model.dtype == torch.bfloat16


def test_an_unknown_precision_is_refused(folder):
    with pytest.raises(ValueError, match="precision='int4' must be one of float32, bfloat16, int8"):
        Translator.from_pretrained(folder, "int4")


def test_models_of_other_packages_translate_but_not_in_int8(tmp_path, lines):
    sizes = {"d_model": 16, "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 16}
    sizes |= {"decoder_ffn_dim": 16, "encoder_layers": 1, "decoder_layers": 1, "max_position_embeddings": 64}
    tokens = {"pad_token_id": 0, "eos_token_id": END, "decoder_start_token_id": 0, "forced_eos_token_id": None}
    model = MarianMTModel(MarianConfig(vocab_size=31, init_std=1.0, **sizes, **tokens)).eval()
    tokenizer = train_tokenizer([" ".join(SYMBOLS)], TokenizerConfig(kind="symbols"))
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    expected = [model.generate(**tokenizer(line, return_tensors="pt"), num_beams=2, max_new_tokens=5) for line in lines]
    expected = [tokenizer.decode(output[0], skip_special_tokens=True) for output in expected]
    translator = Translator.from_pretrained(tmp_path, device="cpu")
    assert translator.translate(lines, num_beams=2, max_new_tokens=5) == expected
    with pytest.raises(ValueError, match="precision='int8' is for models of this package.*'marian'"):
        Translator.from_pretrained(tmp_path, "int8")


def test_a_vocabulary_of_the_targets_own_needs_its_tokenizer(tmp_path):
    tokenizer = train_tokenizer(["a b c d e"], TokenizerConfig(kind="symbols"))
    sizes = dict.fromkeys(("vocab_size", "decoder_vocab_size"), len(tokenizer))  # of equal size, too
    sizes |= {"d_model": 8, "d_ff": 8, "num_heads": 2, "num_layers": 1, "num_decoder_layers": 1}
    config = vanilla_transformer.VanillaTransformerConfig(**sizes, share_encoder_decoder_embeddings=False)
    vanilla_transformer.VanillaTransformerForConditionalGeneration(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"has decoder_vocab_size=\d+, a vocabulary of .* no target_tokenizer/"):
        Translator.from_pretrained(tmp_path)


def test_an_empty_line_has_one_translation_for_each_that_is_asked_for(translator):
    assert list(translator.n_best([" "], 2)) == [[Translation(""), Translation("")]]


def test_importing_it_imports_no_library_of_training_or_plots():
    script = "import sys, vanilla_transformer.inference.translator; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, encoding="utf-8", check=True)
    unneeded = {"datasets", "evaluate", "sacrebleu", "pandas", "pyarrow", "peft", "tensorboard", "matplotlib"}
    assert unneeded & set(done.stdout.split()) == set()


def test_it_is_the_packages():
    assert vanilla_transformer.Translator is Translator
    assert "Translator" in vanilla_transformer.__all__


def test_the_alpha_of_a_run_is_the_models_own(tiny_run):
    tiny_run.train("generation.alpha=-1.5", "generation.num_beams=3")
    translator = Translator.from_pretrained(tiny_run.output_dir / "model", device="cpu")
    lines = ["a b c", "d"]
    own = list(translator.n_best(lines, 3))
    assert own == list(translator.n_best(lines, 3, alpha=-1.5))
    assert own != list(translator.n_best(lines, 3, alpha=0.6))
