# SPDX-License-Identifier: Apache-2.0
"""Section 6.1: the paper's beam search, against exhaustive search, transformers' own, and teacher forcing."""

import itertools

import pytest
import torch
from transformers.generation import GenerationConfig

from tests.families import FAMILIES, Family
from vanilla_transformer.generation import beam_search, length_penalty

PAD, START, END = 0, 1, 2


@pytest.fixture(params=FAMILIES, ids=lambda family: family.name)
def family(request) -> Family:
    return request.param


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    torch.manual_seed(2)
    source = torch.randint(3, 31, (4, 8))
    source[0, 5:] = 0
    return {"input_ids": source, "attention_mask": source.ne(0).long()}


def log_probability(model, source: torch.Tensor, target: list[int]) -> float:
    """Of `target`, which begins with the start token, by one forward pass."""
    ids = torch.tensor([target])
    logits = model(source, decoder_input_ids=ids[:, :-1]).logits.log_softmax(-1)
    return logits.gather(2, ids[:, 1:, None]).sum().item()


@pytest.mark.parametrize("alpha", [0.0, 0.6, -1.0])
@pytest.mark.parametrize("family", [FAMILIES[0], FAMILIES[2]], ids=lambda family: family.name)
def test_wide_beams_find_what_exhaustive_search_finds(family, alpha):
    model = family.model(torch.float64, vocab_size=6)
    source, longest = torch.tensor([[3, 4, 5, 2]]), 4
    letters = range(6)
    complete = [
        [START, *head, END] for n in range(longest) for head in itertools.product(letters, repeat=n) if END not in head
    ]
    cut = [[START, *all_] for all_ in itertools.product(letters, repeat=longest) if END not in all_]
    scored = {
        tuple(target): log_probability(model, source, target) / ((5 + len(target) - 1) / 6) ** alpha
        for target in complete + cut
    }
    best = sorted(scored, key=scored.__getitem__, reverse=True)[:3]
    found = model.generate(
        source,
        custom_generate=beam_search,
        alpha=alpha,
        num_beams=6**3,  # every prefix stays in the beam
        num_return_sequences=3,
        max_new_tokens=longest,
        return_dict_in_generate=True,
    )
    assert [tuple(row[: len(b)]) for row, b in zip(found.sequences.tolist(), best, strict=True)] == best
    assert found.sequences_scores.tolist() == pytest.approx([scored[target] for target in best], abs=1e-5)


def test_plain_sums_are_transformers_beam_search_without_length_penalty(family, batch):
    model = family.model(torch.float64)
    options = {"num_beams": 4, "max_new_tokens": 9, "num_return_sequences": 2}
    expected = model.generate(**batch, **options, length_penalty=0.0)
    # transformers fills up with the end token where the padding's number is 0
    expected[((expected == END).cumsum(1) - (expected == END).long()) > 0] = PAD
    assert torch.equal(model.generate(**batch, **options, custom_generate=beam_search, alpha=0.0), expected)


def test_scores_are_those_of_one_forward_pass(family, batch):
    model = family.model(torch.float64)
    options = {"num_beams": 4, "max_new_tokens": 9, "num_return_sequences": 4, "return_dict_in_generate": True}
    found = model.generate(**batch, **options, custom_generate=beam_search)
    for i, (row, score) in enumerate(zip(found.sequences.tolist(), found.sequences_scores.tolist(), strict=True)):
        target = row[: row.index(END) + 1] if END in row else row
        source = batch["input_ids"][i // 4 : i // 4 + 1]
        expected = log_probability(model, source, target) / length_penalty(len(target) - 1, 0.6)
        assert score == pytest.approx(expected, abs=1e-5)


def test_a_forced_beginning_is_kept_and_not_counted(family, batch):
    model = family.model(torch.float64)
    beginning = torch.tensor([[START, 7, 8]] * 4)
    found = model.generate(
        **batch, decoder_input_ids=beginning, custom_generate=beam_search, num_beams=3, max_new_tokens=5
    )
    assert torch.equal(found[:, :3], beginning)
    assert found.shape[1] <= 8


def test_one_beam_is_greedy(family, batch):
    model = family.model(torch.float64)
    expected = model.generate(**batch, max_new_tokens=9)
    assert torch.equal(model.generate(**batch, max_new_tokens=9, custom_generate=beam_search), expected)


def test_processors_of_transformers_apply(family, batch):
    model = family.model(torch.float64)
    options = {"num_beams": 3, "max_new_tokens": 8, "min_new_tokens": 8, "suppress_tokens": [5, 9]}
    found = model.generate(**batch, **options, custom_generate=beam_search)
    assert found.shape[1] == 9
    assert not torch.isin(found, torch.tensor([5, 9])).any()


def test_the_file_in_a_model_folder_decodes_the_same(family, batch, tmp_path):
    model = family.model(torch.float64)
    model.save_pretrained(tmp_path)
    expected = model.generate(**batch, custom_generate=beam_search, num_beams=4, max_new_tokens=9)
    found = model.generate(**batch, custom_generate=str(tmp_path), trust_remote_code=True, max_new_tokens=9)
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("options", "named"),
    [({"do_sample": True}, "do_sample=True"), ({"output_attentions": True}, "output_attentions=True")],
)
def test_what_it_does_not_offer_is_refused(batch, options, named):
    model = FAMILIES[0].model()
    with pytest.raises(ValueError, match=named):
        model.generate(**batch, custom_generate=beam_search, num_beams=2, **options)


def test_a_generation_config_decides_the_beams(batch):
    model = FAMILIES[0].model(torch.float64)
    options = {"custom_generate": beam_search, "return_dict_in_generate": True}
    config = GenerationConfig(num_beams=3, num_return_sequences=3, max_new_tokens=4, decoder_start_token_id=START)
    assert model.generate(**batch, **options, generation_config=config).sequences.shape[0] == 12
