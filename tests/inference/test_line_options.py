# SPDX-License-Identifier: Apache-2.0
"""An option with a value for each line follows its line, against `model.generate` of every line alone."""

import inspect
import random
from types import SimpleNamespace

import accelerate.utils
import pytest
import torch
from transformers import GenerationConfig, LogitsProcessorList, MarianConfig, MarianMTModel, PreTrainedTokenizerFast
from transformers.generation import GenerationMixin

from tests.families import END, FAMILIES, PAD, START
from vanilla_transformer.data.tokenizer import TokenizerConfig, train_tokenizer
from vanilla_transformer.distributed import processes
from vanilla_transformer.generation import beam_search
from vanilla_transformer.inference.line_options import REFUSED
from vanilla_transformer.inference.native.engine import fast_decoder
from vanilla_transformer.inference.translate import translate_lines, translate_on_all_processes
from vanilla_transformer.inference.translator import Translator

WORDS = [f"w{i}" for i in range(27)]
FIRST_WORD = 4  # after the special tokens
MARIAN = "marian"


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer([" ".join(WORDS)], TokenizerConfig(kind="symbols"))


@pytest.fixture(params=[FAMILIES[0], FAMILIES[1], MARIAN], ids=[FAMILIES[0].name, FAMILIES[1].name, MARIAN])
def model(request):
    tokens = {"pad_token_id": PAD, "bos_token_id": START, "eos_token_id": END, "decoder_start_token_id": START}
    if request.param == MARIAN:
        sizes = {"d_model": 16, "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 16}
        sizes |= {"decoder_ffn_dim": 16, "encoder_layers": 1, "decoder_layers": 1, "max_position_embeddings": 64}
        model = MarianMTModel(MarianConfig(vocab_size=31, init_std=1.0, forced_eos_token_id=None, **sizes, **tokens))
    else:
        model = request.param.model(**tokens)
    model.generation_config = GenerationConfig(num_beams=3, max_new_tokens=6, **tokens)
    return model.eval()


@pytest.fixture
def lines() -> list[str]:
    """Neither sorted nor all with something to translate."""
    lines = [" ".join(random.choices(WORDS, k=length)) for length in random.sample(range(1, 15), k=8)]
    return [*lines[:3], "", *lines[3:]]


@pytest.fixture
def prompts(lines) -> list[list[int]]:
    """For each line one of another length; some begin with the start token already, as `generate` allows."""
    return [
        [START] * random.randint(0, 1) + random.choices(range(FIRST_WORD, 31), k=random.randint(1, 3)) for _ in lines
    ]


def padded(prompts: list[list[int]]) -> dict[str, torch.Tensor]:
    longest = max(map(len, prompts))
    return {
        "decoder_input_ids": torch.tensor([[PAD] * (longest - len(item)) + item for item in prompts]),
        "decoder_attention_mask": torch.tensor([[0] * (longest - len(item)) + [1] * len(item) for item in prompts]),
    }


def alone(model, tokenizer, line: str, **options) -> str:
    if not line:
        return ""
    own = {} if model.config.model_type == MARIAN else {"custom_generate": beam_search}
    output = model.generate(**tokenizer(line, return_tensors="pt"), **own, **options)
    return tokenizer.decode(output[0], skip_special_tokens=True)


def texts(translations) -> list[str]:
    return [best[0].text for best in translations]


def by_lines(model, tokenizer, lines, **options):
    return translate_lines(model, tokenizer, lines, **options)


def by_stream(model, tokenizer, lines, window=4, **options):
    return Translator(model, tokenizer, fast_decoder(model)).n_best(iter(lines), 1, window=window, **options)


def by_two_processes(model, tokenizer, lines, **options):
    """One after the other."""
    results = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(accelerate.utils, "gather_object", lambda own: own)
        for i in (0, 1):
            patch.setattr(processes, "process_state", lambda i=i: SimpleNamespace(process_index=i, num_processes=2))
            results += translate_on_all_processes(model, tokenizer, lines, **options)
    return results


WAYS = pytest.mark.parametrize("way", [by_lines, by_stream, by_two_processes])


@WAYS
@pytest.mark.parametrize("beams", [1, 3])
def test_each_line_has_its_own_prompt(model, tokenizer, lines, prompts, way, beams: int):
    expected = [
        alone(model, tokenizer, line, decoder_input_ids=torch.tensor([prompt]), num_beams=beams)
        for line, prompt in zip(lines, prompts, strict=True)
    ]
    assert len(set(expected)) == len(lines)  # or a wrong order would not show
    found = way(model, tokenizer, lines, max_batch_tokens=60, num_beams=beams, **padded(prompts))
    assert texts(found) == expected


@WAYS
def test_each_line_has_its_own_start_token(model, tokenizer, lines, way):
    starts = random.sample(range(FIRST_WORD, 31), k=len(lines))
    expected = [
        alone(model, tokenizer, line, decoder_start_token_id=start) for line, start in zip(lines, starts, strict=True)
    ]
    assert texts(way(model, tokenizer, lines, max_batch_tokens=200, decoder_start_token_id=starts)) == expected


@WAYS
def test_a_prefix_function_gets_the_number_of_the_line(model, tokenizer, lines, way):
    words = random.sample(range(FIRST_WORD, 31), k=len(lines))
    found = way(
        model,
        tokenizer,
        lines,
        max_batch_tokens=200,
        max_new_tokens=3,
        prefix_allowed_tokens_fn=lambda line, target: [words[line]],
    )
    expected = [
        " ".join([tokenizer.decode([word])] * 3) if line else "" for line, word in zip(lines, words, strict=True)
    ]
    assert texts(found) == expected


def test_prompts_follow_their_lines_in_parallel_batches(tokenizer):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        tokens = {"pad_token_id": PAD, "bos_token_id": START, "eos_token_id": END, "decoder_start_token_id": START}
        model = FAMILIES[0].model(**tokens)
        lines = [" ".join(random.choices(WORDS, k=length)) for length in random.sample(range(1, 50), k=40)]
        words = torch.randint(FIRST_WORD, 31, (40, 1))
        found = translate_lines(
            model, tokenizer, lines, max_batch_tokens=2000, decoder_input_ids=words, max_new_tokens=2
        )
    finally:
        torch.set_num_threads(before)
    assert [text.split()[0] for text in texts(found)] == [tokenizer.decode(word) for word in words]


REFUSALS = {
    **dict.fromkeys(REFUSED, torch.ones(2, 2)),
    "logits_processor": LogitsProcessorList(),
    "decoder_position_ids": torch.ones(2, 2),  # nobody here knows it
}


@pytest.mark.parametrize("name", REFUSALS)
def test_options_that_depend_on_rows_are_refused(tokenizer, name: str):
    model = FAMILIES[0].model()
    with pytest.raises(ValueError, match=f"^{name} cannot be given here: ") as caught:
        translate_lines(model, tokenizer, ["w1", "w2 w3"], max_batch_tokens=100, **{name: REFUSALS[name]})
    assert "\n" not in str(caught.value)


def test_another_custom_generate_is_refused(tokenizer):
    with pytest.raises(ValueError, match="custom_generate: models of this package are translated by beam_search"):
        translate_lines(FAMILIES[0].model(), tokenizer, ["w1"], max_batch_tokens=9, custom_generate=lambda **_: None)


TWO = torch.full((2, 1), FIRST_WORD)
UNFIT = {
    "too few rows": ({"decoder_input_ids": TWO}, "decoder_input_ids has 2 rows for 3 lines; give it one for each line"),
    "start tokens": ({"decoder_start_token_id": [4, 5]}, "decoder_start_token_id has 2 rows for 3 lines"),
    "no tokens": ({"decoder_input_ids": torch.ones(3, 0)}, "must be a tensor .lines, length. with at least one token"),
    "a list": ({"decoder_input_ids": [[4], [5], [6]]}, "decoder_input_ids must be a tensor"),
    "another mask": (
        {"decoder_input_ids": torch.ones(3, 2), "decoder_attention_mask": torch.ones(3, 1)},
        r"decoder_attention_mask must be a tensor of the shape of decoder_input_ids, \(3, 2\)",
    ),
    "padding on the right": (
        {"decoder_input_ids": torch.full((3, 2), 4), "decoder_attention_mask": torch.tensor([[1, 1], [1, 0], [0, 1]])},
        "decoder_attention_mask, line 2: it may hide padding on the left alone",
    ),
    "a mask alone": ({"decoder_attention_mask": torch.ones(3, 2)}, "decoder_attention_mask needs decoder_input_ids"),
    "a config's": (
        {"generation_config": GenerationConfig(decoder_start_token_id=[4, 5, 6])},
        "decoder_start_token_id of a generation config must be one token",
    ),
}


@pytest.mark.parametrize("kind", UNFIT)
def test_options_that_do_not_fit_the_lines_are_refused(tokenizer, kind: str):
    options, message = UNFIT[kind]
    with pytest.raises(ValueError, match=message):
        translate_lines(FAMILIES[0].model(), tokenizer, ["w1", "w2", "w3"], max_batch_tokens=100, **options)


@pytest.mark.parametrize(
    ("rows", "message"), [(3, "has 3 rows, and there are more lines"), (5, "has 5 rows for 4 lines")]
)
def test_a_stream_must_have_as_many_lines_as_rows(tokenizer, rows: int, message: str):
    options = {"decoder_input_ids": torch.full((rows, 1), 4), "max_new_tokens": 2, "max_batch_tokens": 100}
    with pytest.raises(ValueError, match=message):
        list(by_stream(FAMILIES[0].model(), tokenizer, ["w1", "w2", "w3", "w4"], window=2, **options))


# Whatever else `generate` may be given, by name: no row of a batch has a part in it. Beyond these, tensors are refused.
THE_SAME_FOR_ALL = {"self", "generation_config", "synced_gpus", "assistant_model", "custom_generate", "kwargs"}
FOLLOW_THEIR_LINE = {"prefix_allowed_tokens_fn"}


def test_every_argument_of_generate_is_decided_upon():
    """A new one in transformers needs its place in `line_options`, or here."""
    arguments = set(inspect.signature(GenerationMixin.generate).parameters)
    assert arguments <= THE_SAME_FOR_ALL | FOLLOW_THEIR_LINE | REFUSED.keys()
