# SPDX-License-Identifier: Apache-2.0
import math
import random
from itertools import count

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import GenerationConfig, MarianConfig, MarianMTModel, PreTrainedTokenizerFast

import vanilla_transformer.inference.translate as translate_module
from tests.families import END as OUR_END
from tests.families import FAMILIES, START, Family
from vanilla_transformer.data.tokenizer import TokenizerConfig, train_tokenizer
from vanilla_transformer.generation import beam_search
from vanilla_transformer.inference.native.engine import fast_decoder
from vanilla_transformer.inference.translate import Translation, translate_lines
from vanilla_transformer.inference.translator import Translator

PAD, END, UNKNOWN = 0, 1, 2
WORDS = [f"w{i}" for i in range(20)]
LONGEST = 6  # of a translation, in tokens


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {token: i for i, token in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", END)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_input_names=["input_ids", "attention_mask"],
    )


@pytest.fixture
def model() -> MarianMTModel:
    config = MarianConfig(
        vocab_size=3 + len(WORDS),
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        max_position_embeddings=64,
        init_std=1.0,  # so that the translation of each line differs
        pad_token_id=PAD,
        eos_token_id=END,
        decoder_start_token_id=PAD,
        forced_eos_token_id=None,
    )
    model = MarianMTModel(config)
    model.generation_config = GenerationConfig(
        max_new_tokens=LONGEST,
        num_beams=1,
        pad_token_id=PAD,
        eos_token_id=END,
        decoder_start_token_id=PAD,
        suppress_tokens=[PAD, UNKNOWN],  # a text then has all tokens but the end
    )
    return model


@pytest.fixture
def lines() -> list[str]:
    return [" ".join(random.choices(WORDS, k=length)) for length in random.sample(range(1, 30), k=17)]


@pytest.fixture
def calls(model, monkeypatch) -> list[dict]:
    """What `generate` is called with, in order."""
    calls, generate = [], model.generate

    def record(**kwargs):
        calls.append(kwargs | {"training": model.training})
        return generate(**kwargs)

    monkeypatch.setattr(model, "generate", record)
    return calls


def texts(translations: list[list[Translation]]) -> list[str]:
    return [best[0].text for best in translations]


def one_by_one(model, tokenizer, lines: list[str], **options) -> list[str]:
    model.eval()
    outputs = [model.generate(**tokenizer(line, return_tensors="pt"), **options) for line in lines]
    return [tokenizer.decode(output[0], skip_special_tokens=True) for output in outputs]


@pytest.mark.parametrize("num_beams", [1, 3])
def test_every_line_gets_its_own_translation_in_order(model, tokenizer, lines, num_beams: int):
    options = {"num_beams": num_beams, "no_repeat_ngram_size": 1}  # random weights like to repeat themselves
    expected = one_by_one(model, tokenizer, lines, **options)
    assert len(set(expected)) > len(lines) / 2  # or a wrong order would not show
    assert texts(translate_lines(model, tokenizer, lines, max_batch_tokens=100, **options)) == expected


def test_a_blank_line_is_empty_and_the_others_stay_in_place(model, tokenizer):
    lines = ["", "w1 w2", "  \t", "w3", "\u2028"]
    first, second = one_by_one(model, tokenizer, ["w1 w2", "w3"])
    assert texts(translate_lines(model, tokenizer, lines, max_batch_tokens=100)) == ["", first, "", second, ""]


@pytest.mark.parametrize("lines", [[], ["", " "]])
def test_the_model_is_not_asked_for_blank_lines(model, tokenizer, calls, lines: list[str]):
    best = translate_lines(model, tokenizer, lines, max_batch_tokens=100, num_beams=2, num_return_sequences=2)
    assert best == [[Translation(""), Translation("")] for _ in lines]
    assert calls == []


@pytest.mark.parametrize(
    ("beams", "options"),
    [(1, {}), (3, {"num_beams": 3}), (2, {"generation_config": GenerationConfig(num_beams=2, max_new_tokens=2)})],
    ids=["the model's", "keyword", "generation_config"],
)
def test_padded_tokens_times_beams_stay_within_the_budget(model, tokenizer, lines, calls, beams: int, options: dict):
    if "generation_config" in options:
        options["generation_config"].update(pad_token_id=PAD, eos_token_id=END, decoder_start_token_id=PAD)
    translate_lines(model, tokenizer, lines, max_batch_tokens=100, **options)
    sizes = [call["input_ids"].numel() * beams for call in calls]
    widths = [call["input_ids"].shape[1] for call in calls]
    assert max(sizes) <= 100
    for call, next_width in zip(calls, widths[1:], strict=False):  # no batch could have taken the next line too
        rows, width = call["input_ids"].shape
        assert (rows + 1) * width * beams > 100
        assert width >= next_width


def test_the_longest_line_comes_first(model, tokenizer, lines, calls):
    translate_lines(model, tokenizer, lines, max_batch_tokens=50)
    lengths = [length for call in calls for length in call["attention_mask"].sum(1).tolist()]
    assert lengths == sorted((len(line.split()) + 1 for line in lines), reverse=True)


def test_a_line_beyond_the_budget_is_a_batch_of_its_own(model, tokenizer, lines, calls):
    translate_lines(model, tokenizer, lines, max_batch_tokens=1)
    assert [len(call["input_ids"]) for call in calls] == [1] * len(lines)


@pytest.mark.parametrize("length_penalty", [0.0, 0.6, 1.0])
def test_a_score_is_the_log_probability_over_length_to_the_penalty(model, tokenizer, length_penalty: float):
    source = "w4 w9 w2"
    [best] = translate_lines(
        model,
        tokenizer,
        [source],
        max_batch_tokens=1000,
        num_return_sequences=3,
        num_beams=4,
        length_penalty=length_penalty,
        renormalize_logits=True,
    )
    expected = [score(model, tokenizer, source, each.text, length_penalty) for each in best]
    assert [each.score for each in best] == pytest.approx(expected, rel=1e-4)
    assert expected == sorted(expected, reverse=True)


def score(model, tokenizer, source: str, translation: str, length_penalty: float) -> float:
    target = tokenizer(translation)["input_ids"][:LONGEST]  # the longest translations have no end
    logits = model.eval()(
        **tokenizer(source, return_tensors="pt"), decoder_input_ids=torch.tensor([[PAD, *target[:-1]]])
    ).logits[0]  # (target_length, vocab_size)
    logits[:, [PAD, UNKNOWN]] = -torch.inf
    log_probabilities = logits.log_softmax(-1)[torch.arange(len(target)), target]
    return log_probabilities.sum().item() / len(target) ** length_penalty


def test_greedy_decoding_has_no_scores_and_keeps_none(model, tokenizer, calls):
    [[translation]] = translate_lines(model, tokenizer, ["w1"], max_batch_tokens=100)
    assert translation.score is None
    assert not calls[0]["output_scores"]


@pytest.mark.parametrize("training", [True, False])
def test_the_model_decodes_in_evaluation_mode_and_returns_to_its_own(model, tokenizer, calls, training: bool):
    model.train(training)
    translate_lines(model, tokenizer, ["w1"], max_batch_tokens=100)
    assert [call["training"] for call in calls] == [False]
    assert model.training is training


def test_an_error_restores_the_mode_too(model, tokenizer, monkeypatch):
    model.train()
    monkeypatch.setattr(model, "generate", failing(KeyError("lost")))
    with pytest.raises(RuntimeError):
        translate_lines(model, tokenizer, ["w1"], max_batch_tokens=100)
    assert model.training


def failing(error: Exception):
    def generate(**kwargs):
        raise error

    return generate


@pytest.mark.parametrize(
    ("error", "kind"), [(ValueError("too\nlong"), ValueError), (torch.OutOfMemoryError("too\nlong"), RuntimeError)]
)
def test_an_error_names_the_lines_of_the_batch_in_one_line(model, tokenizer, monkeypatch, error, kind: type):
    monkeypatch.setattr(model, "generate", failing(error))
    with pytest.raises(kind) as caught:
        translate_lines(model, tokenizer, ["", "w1", "w2 w3", "", "w4"], max_batch_tokens=100)
    assert str(caught.value) == "decoding failed in the batch with lines 2, 3, 5: too long"
    assert caught.value.__cause__ is error


def test_an_error_does_not_list_hundreds_of_lines(model, tokenizer, monkeypatch):
    monkeypatch.setattr(model, "generate", failing(ValueError("no")))
    with pytest.raises(ValueError, match=r"lines 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 and 190 more: no$"):
        translate_lines(model, tokenizer, ["w1"] * 200, max_batch_tokens=1000)


@pytest.mark.parametrize("name", ["max_batch_tokens", "num_return_sequences"])
def test_numbers_below_one_are_refused(model, tokenizer, name: str):
    with pytest.raises(ValueError, match=rf"{name}=0 must be at least 1"):
        translate_lines(model, tokenizer, ["w1"], **{"max_batch_tokens": 100, name: 0})


def test_more_translations_than_beams_are_refused(model, tokenizer):
    with pytest.raises(ValueError, match="num_return_sequences=3 needs at least as many beams: num_beams=2"):
        translate_lines(model, tokenizer, ["w1"], max_batch_tokens=100, num_beams=2, num_return_sequences=3)


def test_progress_counts_lines_up_to_all(model, tokenizer, lines):
    seen = []
    translate_lines(
        model, tokenizer, [*lines, ""], max_batch_tokens=50, on_progress=lambda *progress: seen.append(progress)
    )
    done = [lines_done for lines_done, _ in seen]
    assert done == sorted(set(done))
    assert seen[-1] == (len(lines) + 1, len(lines) + 1)
    assert {total for _, total in seen} == {len(lines) + 1}


def by_stream(model, tokenizer, lines, **options):
    return Translator(model, tokenizer, fast_decoder(model)).n_best(lines, 1, max_batch_tokens=100, **options)


@pytest.mark.parametrize("window", [1, 5, 18, 100])
def test_a_stream_gives_what_a_list_gives(model, tokenizer, lines, window: int):
    lines.insert(5, "")
    streamed = by_stream(model, tokenizer, iter(lines), window=window)
    assert texts(list(streamed)) == texts(translate_lines(model, tokenizer, lines, max_batch_tokens=100))


def test_a_stream_is_read_a_window_at_a_time(model, tokenizer):
    read: list[int] = []
    endless = (read.append(i) or "w1" for i in count())
    translations = by_stream(model, tokenizer, endless, window=4)
    read_at_each = [len(read) for _ in zip(range(5), translations, strict=False)]
    assert read_at_each == [4, 4, 4, 4, 8]


def test_errors_in_a_stream_count_lines_from_its_start(model, tokenizer):
    lines = ["w1"] * 5 + ["w1 " * 100]  # beyond Marian's table of positions
    with pytest.raises((ValueError, RuntimeError), match=r"batch with line 6:"):
        list(by_stream(model, tokenizer, lines, window=2))


def test_a_window_without_lines_is_refused(model, tokenizer):
    with pytest.raises(ValueError, match=r"window=0 must be at least 1 line"):
        next(by_stream(model, tokenizer, ["w1"], window=0))


# Models of this package, which decode by the paper's beam search.


@pytest.fixture(params=[FAMILIES[0], FAMILIES[1]], ids=lambda family: family.name)
def family(request) -> Family:
    return request.param


@pytest.fixture
def our_tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer([" ".join(f"w{i}" for i in range(27))], TokenizerConfig(kind="symbols"))


def our_model(family: Family, **changes):
    model = family.model(decoder_start_token_id=START, eos_token_id=OUR_END, **changes)
    model.generation_config.update(num_beams=3, max_tokens_beyond_source=4)
    return model


@pytest.fixture
def ours(family):
    return our_model(family)


def test_our_models_score_beams_without_keeping_the_scores_of_every_token(ours, our_tokenizer, monkeypatch):
    outputs, generate = [], ours.generate
    monkeypatch.setattr(ours, "generate", lambda **kwargs: outputs.append(generate(**kwargs)) or outputs[-1])
    [[best]] = translate_lines(ours, our_tokenizer, ["w1"], max_batch_tokens=100)
    assert best.score == pytest.approx(outputs[0].sequences_scores.item())
    assert outputs[0].get("scores") is None


def test_our_models_decode_as_the_paper_does(ours, our_tokenizer, lines):
    expected = one_by_one(ours, our_tokenizer, lines, custom_generate=beam_search)
    assert texts(translate_lines(ours, our_tokenizer, lines, max_batch_tokens=100)) == expected


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_parallel_batches_give_the_same_within_one_budget(our_tokenizer):
    """As they are one by one, and within one budget."""
    ours, done = our_model(FAMILIES[0]), []
    lines = [" ".join(random.choices(WORDS, k=length)) for length in range(1, 41)]
    found = translate_lines(
        ours, our_tokenizer, lines, max_batch_tokens=1000, on_progress=lambda *numbers: done.append(numbers)
    )
    assert len(done) >= sum(range(1, 41)) * 3 / (1000 / 2)
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)  # two would wait for each other after every product, spinning if another test has a core
    assert texts(found) == one_by_one(ours, our_tokenizer, lines, custom_generate=beam_search)


@pytest.mark.usefixtures("two_threads")
def test_an_error_in_parallel_batches_names_a_line(our_tokenizer):
    ours = our_model(FAMILIES[0])
    with torch.no_grad():
        ours.lm_head.weight[7] = math.nan
    with pytest.raises(ValueError, match="decoding failed at line [0-9]+: the logits are NaN"):
        translate_lines(ours, our_tokenizer, ["w1 w2"] * 80, max_batch_tokens=2000)


def test_options_of_transformers_apply(ours, our_tokenizer, lines):
    options = {"min_new_tokens": 6, "max_new_tokens": 8, "suppress_tokens": [0, 1, 3, 9], "no_repeat_ngram_size": 1}
    found = texts(translate_lines(ours, our_tokenizer, lines, max_batch_tokens=100, **options))
    assert found == one_by_one(ours, our_tokenizer, lines, custom_generate=beam_search, **options)
    for words in map(str.split, found):
        assert 6 <= len(set(words)) == len(words)
        assert our_tokenizer.decode([9]) not in words


def test_a_model_whose_decoder_cannot_be_built_decodes_too(family, ours, our_tokenizer, lines, monkeypatch):
    expected = translate_lines(ours, our_tokenizer, lines, max_batch_tokens=100)
    monkeypatch.setattr(family.seq2seq_class, "can_build_decoder", lambda self: False)
    monkeypatch.setattr(family.seq2seq_class, "build_decoder", lambda self: pytest.fail("it was built"))
    assert texts(translate_lines(ours, our_tokenizer, lines, max_batch_tokens=100)) == texts(expected)


def test_a_decoder_is_built_once_for_all_lines(ours, our_tokenizer, lines, monkeypatch):
    built, build = [], translate_module.fast_decoder
    monkeypatch.setattr(translate_module, "fast_decoder", lambda *given: built.append(given) or build(*given))
    translate_lines(ours, our_tokenizer, lines, max_batch_tokens=40)
    assert len(built) == 1


def test_a_line_longer_than_any_seen_before_has_a_translation(ours, our_tokenizer):
    lines = ["w1 " * 700, "w2"]
    [[long], [short]] = translate_lines(ours, our_tokenizer, lines, max_batch_tokens=100, max_new_tokens=5)
    assert len(long.text.split()) <= 5
    assert [short.text] == one_by_one(ours, our_tokenizer, ["w2"], max_new_tokens=5, custom_generate=beam_search)


def test_a_line_beyond_learned_positions_is_named(our_tokenizer):
    model = our_model(FAMILIES[0], position_embedding="learned", max_position_embeddings=20)
    with pytest.raises(ValueError, match=r"in the batch with line 2: .*max_position_embeddings=20"):
        translate_lines(model, our_tokenizer, ["w1", "w1 " * 30, "w2"], max_batch_tokens=10)


def test_a_line_without_a_token_is_empty(ours, our_tokenizer, monkeypatch):
    """As a tokenizer that drops unknown characters, and marks no end, has it."""
    encode = type(our_tokenizer).__call__

    def without_end(self, texts):
        return {"input_ids": [ids[:-1] for ids in encode(self, [text.replace("?", "") for text in texts])["input_ids"]]}

    monkeypatch.setattr(type(our_tokenizer), "__call__", without_end)
    [first, second] = translate_lines(ours, our_tokenizer, ["?", "w1"], max_batch_tokens=100)
    assert first == [Translation("")]
    assert second != first


def test_padding_in_the_text_is_text(ours, our_tokenizer):
    [[one]] = translate_lines(ours, our_tokenizer, ["<pad> <pad>"], max_batch_tokens=100)
    assert [one.text] == one_by_one(ours, our_tokenizer, ["<pad> <pad>"], custom_generate=beam_search)


def test_beams_beyond_the_vocabulary_find_all_there_is(ours, our_tokenizer):
    beams = 100
    options = {"num_beams": beams, "num_return_sequences": beams, "max_new_tokens": 1}
    for best in translate_lines(ours, our_tokenizer, ["w1 w2", "w3"], max_batch_tokens=1000, **options):
        assert len(best) == 31  # one for each token
        # of one token, so what is scored is a distribution, over ((5 + 1) / 6)^alpha = 1
        assert sum(math.exp(item.score) for item in best) == pytest.approx(1, rel=1e-4)


def test_one_usable_token_is_repeated_to_the_limit(ours, our_tokenizer):
    token = our_tokenizer.convert_tokens_to_ids("w5")
    others = [i for i in range(31) if i != token]
    options = {"num_return_sequences": 3, "suppress_tokens": others, "max_new_tokens": 4}
    [best] = translate_lines(ours, our_tokenizer, ["w1"], max_batch_tokens=100, **options)
    assert [item.text for item in best] == ["w5 w5 w5 w5"]


@pytest.mark.parametrize("beams", [1, 3])
def test_a_line_for_which_every_token_is_forbidden_is_named(ours, our_tokenizer, beams: int):
    options = {"num_beams": beams, "suppress_tokens": list(range(31)), "max_new_tokens": 4}
    with pytest.raises(ValueError, match=r"^decoding failed at line 2: "):
        translate_lines(ours, our_tokenizer, ["", "w1"], max_batch_tokens=100, **options)


@pytest.mark.parametrize("beams", [1, 3])
def test_nan_weights_name_the_line_that_needs_them(family, our_tokenizer, beams: int):
    model = our_model(family, tie_word_embeddings=False)
    with torch.no_grad():
        model.get_input_embeddings().weight[our_tokenizer.convert_tokens_to_ids("w7")] = torch.nan
    lines = ["w1 w2 w3", "", "w4 w5 w6", "w8 w7", "w9 w3"]
    with pytest.raises(ValueError, match=r"^decoding failed at line 4: .*NaN"):
        translate_lines(model, our_tokenizer, lines, max_batch_tokens=1000, num_beams=beams)


@pytest.mark.parametrize("alpha", [math.nan, math.inf])
def test_an_alpha_that_is_not_finite_is_refused(ours, our_tokenizer, alpha: float):
    with pytest.raises(ValueError, match=f"alpha={alpha} must be a finite number"):
        translate_lines(ours, our_tokenizer, ["w1"], max_batch_tokens=100, alpha=alpha)


def test_sampling_is_refused(ours, our_tokenizer):
    with pytest.raises(ValueError, match=r"in the batch with line 1: do_sample=True"):
        translate_lines(ours, our_tokenizer, ["w1"], max_batch_tokens=100, do_sample=True)
