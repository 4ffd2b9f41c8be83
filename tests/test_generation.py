# SPDX-License-Identifier: Apache-2.0
"""Section 6.1: the paper's beam search, against exhaustive search, transformers' own, and teacher forcing."""

import itertools

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers.generation import GenerationConfig, MaxTimeCriteria, StoppingCriteriaList

from tests.families import FAMILIES, Family
from vanilla_transformer.generation import DecodingError, beam_search, coverage_penalty, length_penalty, top

PAD, START, END = 0, 1, 2


@pytest.fixture(params=FAMILIES, ids=lambda family: family.name)
def family(request) -> Family:
    return request.param


@pytest.fixture(params=["prepared", "as it is"])
def decodes(request, monkeypatch) -> str:
    """With weights laid out for decoding, or by the model's own forward pass."""
    if request.param == "as it is":
        for one in FAMILIES:
            monkeypatch.setattr(one.seq2seq_class, "can_prepare_decoding", lambda self: False)
    return request.param


def sources(count: int, longest: int = 8, seed: int = 2) -> dict[str, torch.Tensor]:
    """Sources of many lengths, padded on the right."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 31, (count, longest), generator=generator)
    lengths = torch.randint(1, longest + 1, (count, 1), generator=generator)
    mask = (torch.arange(longest) < lengths).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    return sources(4)


def row(batch: dict[str, torch.Tensor], i: int) -> dict[str, torch.Tensor]:
    """One sentence by itself, without padding."""
    length = int(batch["attention_mask"][i].sum())
    return {name: tensor[i : i + 1, :length] for name, tensor in batch.items()}


def without_padding(target: list[int]) -> list[int]:
    return target[: target.index(END) + 1] if END in target else target


def log_probability(model, source: torch.Tensor, target: list[int]) -> float:
    """Of `target`, which begins with the start token, by one forward pass."""
    ids = torch.tensor([target])
    with torch.no_grad():
        logits = model(source, decoder_input_ids=ids[:, :-1]).logits.log_softmax(-1)
    return logits.gather(2, ids[:, 1:, None]).sum().item()


@pytest.mark.parametrize("alpha", [0.0, 0.6, -1.0])
@pytest.mark.parametrize("family", [FAMILIES[0], FAMILIES[2]], ids=lambda family: family.name)
def test_wide_beams_find_what_exhaustive_search_finds(family, decodes, alpha):
    model = family.model(torch.float64, vocab_size=4)
    source, longest, alphabet = torch.tensor([[3, 1, 3, 2]]), 5, range(4)
    complete = [
        [START, *head, END] for n in range(longest) for head in itertools.product(alphabet, repeat=n) if END not in head
    ]
    cut = [[START, *head] for head in itertools.product(alphabet, repeat=longest) if END not in head]
    scored = {
        tuple(target): log_probability(model, source, target) / ((5 + len(target) - 1) / 6) ** alpha
        for target in complete + cut
    }
    best = sorted(scored, key=scored.__getitem__, reverse=True)[:3]
    found = model.generate(
        source,
        custom_generate=beam_search,
        alpha=alpha,
        num_beams=3**4 + 4,  # every prefix stays in the beam
        num_return_sequences=3,
        max_new_tokens=longest,
        return_dict_in_generate=True,
    )
    assert [tuple(row[: len(b)]) for row, b in zip(found.sequences.tolist(), best, strict=True)] == best
    assert found.sequences_scores.tolist() == pytest.approx([scored[target] for target in best], abs=1e-5)


@pytest.mark.parametrize("early_stopping", [False, True, "never"])
@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.0])
def test_with_transformers_rule_it_finds_what_transformers_finds(family, decodes, early_stopping, length_penalty):
    model, batch = family.model(torch.float64), sources(12)
    options = {"num_beams": 4, "max_new_tokens": 9, "num_return_sequences": 2}
    options |= {"length_penalty": length_penalty, "early_stopping": early_stopping}
    expected = model.generate(**batch, **options)
    found = model.generate(**batch, **options, custom_generate=beam_search, rule="transformers")
    # transformers fills up with the end token where the padding's number is 0
    assert [without_padding(row) for row in found.tolist()] == [without_padding(row) for row in expected.tolist()]


def test_scores_are_those_of_one_forward_pass(family, decodes, batch):
    model = family.model(torch.float64)
    options = {"num_beams": 4, "max_new_tokens": 9, "num_return_sequences": 4, "return_dict_in_generate": True}
    found = model.generate(**batch, **options, custom_generate=beam_search)
    for i, (target, score) in enumerate(zip(found.sequences.tolist(), found.sequences_scores.tolist(), strict=True)):
        target = without_padding(target)
        expected = log_probability(model, row(batch, i // 4)["input_ids"], target)
        assert score == pytest.approx(expected / length_penalty(len(target) - 1, 0.6), abs=1e-5)


@pytest.mark.parametrize("family", [FAMILIES[0], FAMILIES[1], FAMILIES[2]], ids=lambda family: family.name)
def test_the_coverage_penalty_is_that_of_the_attention_of_one_forward_pass(family, decodes, batch):
    model, beta = family.model(torch.float64), 0.3
    model.set_attn_implementation("eager")  # which returns its weights
    options = {"num_beams": 4, "max_new_tokens": 9, "num_return_sequences": 2, "return_dict_in_generate": True}
    found = model.generate(**batch, **options, custom_generate=beam_search, coverage_penalty=beta)
    for i, (target, score) in enumerate(zip(found.sequences.tolist(), found.sequences_scores.tolist(), strict=True)):
        target, source = without_padding(target), row(batch, i // 2)["input_ids"]
        ids = torch.tensor([target[:-1]])
        with torch.no_grad():
            weights = model(source, decoder_input_ids=ids, output_attentions=True).cross_attentions[-1]
        attended = weights[0].mean(dim=0).sum(dim=0)  # (source_length)
        expected = log_probability(model, source, target) / length_penalty(len(target) - 1, 0.6)
        expected += beta * attended.clamp(max=1).log().sum().item()
        assert score == pytest.approx(expected, abs=1e-5)


def test_coverage_counts_real_tokens_only():
    coverage = torch.tensor([[[0.5, 2.0, 0.1]]])
    found = coverage_penalty(coverage, torch.tensor([[1, 1, 0]]))
    assert found.item() == pytest.approx(torch.tensor(0.5).log().item())  # min(2, 1) is 1, and log(1) is 0


def test_a_model_without_attention_has_no_coverage(batch):
    model = FAMILIES[4].model()
    with pytest.raises(ValueError, match="attention"):
        model.generate(**batch, custom_generate=beam_search, num_beams=2, coverage_penalty=0.2)


def test_a_forced_beginning_is_kept_and_not_counted(family, decodes, batch):
    model = family.model(torch.float64)
    beginning = torch.tensor([[START, 7, 8]] * 4)
    options = {"num_beams": 3, "max_new_tokens": 5, "length_penalty": 1.0, "early_stopping": "never"}
    expected = model.generate(**batch, decoder_input_ids=beginning, **options)
    found = model.generate(
        **batch, decoder_input_ids=beginning, custom_generate=beam_search, rule="transformers", **options
    )
    assert torch.equal(found[:, :3], beginning)
    assert [without_padding(row) for row in found.tolist()] == [without_padding(row) for row in expected.tolist()]


def test_one_beam_is_greedy(family, decodes):
    model, batch = family.model(torch.float64), sources(12)
    expected = model.generate(**batch, max_new_tokens=9)
    assert torch.equal(model.generate(**batch, max_new_tokens=9, custom_generate=beam_search), expected)


@pytest.mark.parametrize("beams", [1, 4])
def test_companions_and_order_change_nothing(family, beams):
    model, batch = family.model(), sources(64)
    options = {"custom_generate": beam_search, "num_beams": beams, "max_new_tokens": 12}
    expected = [
        without_padding(model.generate(**row(batch, i), **options)[0].tolist()) for i in range(len(batch["input_ids"]))
    ]
    for size, order in ((64, torch.randperm(64)), (7, torch.arange(64))):
        for rows in order.split(size):
            found = model.generate(**{name: tensor[rows] for name, tensor in batch.items()}, **options)
            assert [without_padding(target) for target in found.tolist()] == [expected[i] for i in rows.tolist()]


def test_the_longest_target_is_each_sources_own_length_and_some_more(family, decodes, batch):
    model = family.model()
    model.generation_config.max_tokens_beyond_source = 3
    model.generation_config.eos_token_id = None  # nothing ends before
    for beams in (1, 2):
        found = model.generate(**batch, custom_generate=beam_search, num_beams=beams, suppress_tokens=[PAD])
        lengths = (found != PAD).sum(dim=1) - 1  # the start token is not counted
        assert lengths.tolist() == (batch["attention_mask"].sum(dim=1) + 3).tolist()


def test_a_length_that_is_asked_for_is_the_limit(batch):
    model = FAMILIES[0].model()
    model.generation_config.max_tokens_beyond_source = 3
    model.generation_config.eos_token_id = None
    found = model.generate(**batch, custom_generate=beam_search, num_beams=2, max_new_tokens=20)
    assert found.shape[1] == 21


def test_learned_positions_end_the_longest_target(batch):
    model = FAMILIES[0].model(position_embedding="learned", max_position_embeddings=10)
    model.generation_config.max_tokens_beyond_source = 50
    model.generation_config.eos_token_id = None
    assert model.generate(**batch, custom_generate=beam_search, num_beams=2).shape[1] == 10
    with pytest.raises(ValueError, match="max_position_embeddings=10"):
        model.generate(**batch, custom_generate=beam_search, num_beams=2, max_new_tokens=11)


@pytest.mark.parametrize("beams", [1, 3])
def test_processors_of_transformers_apply(family, decodes, batch, beams):
    model = family.model(torch.float64)
    options = {"num_beams": beams, "max_new_tokens": 8, "min_new_tokens": 8, "suppress_tokens": [5, 9]}
    options |= {"no_repeat_ngram_size": 2, "encoder_no_repeat_ngram_size": 2}
    if beams > 1:
        options |= {"length_penalty": 1.0, "early_stopping": "never"}
    expected = model.generate(**batch, **options)
    found = model.generate(**batch, **options, custom_generate=beam_search, rule="transformers")
    assert torch.equal(found, expected)


def test_criteria_of_the_user_apply(batch):
    criteria = StoppingCriteriaList([MaxTimeCriteria(max_time=0.0)])
    for beams in (1, 2):
        found = (
            FAMILIES[0]
            .model()
            .generate(
                **batch, custom_generate=beam_search, num_beams=beams, max_new_tokens=9, stopping_criteria=criteria
            )
        )
        assert found.shape[1] == 2


def test_the_file_in_a_model_folder_decodes_the_same(family, batch, tmp_path):
    model = family.model(torch.float64)
    model.save_pretrained(tmp_path)
    expected = model.generate(**batch, custom_generate=beam_search, num_beams=4, max_new_tokens=9)
    found = model.generate(**batch, custom_generate=str(tmp_path), trust_remote_code=True, max_new_tokens=9)
    assert torch.equal(found, expected)


def test_adapters_are_part_of_the_model(batch):
    model = FAMILIES[0].model(torch.float64)
    plain = model.generate(**batch, custom_generate=beam_search, num_beams=2, max_new_tokens=9)
    adapted = get_peft_model(model, LoraConfig(task_type="SEQ_2_SEQ_LM", r=2, target_modules=["q_proj", "v_proj"]))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    options = {"num_beams": 2, "max_new_tokens": 9, "length_penalty": 0.0}
    expected = adapted.generate(**batch, **options)
    found = adapted.generate(**batch, **options, custom_generate=beam_search, alpha=0.0)
    assert [without_padding(row) for row in found.tolist()] == [without_padding(row) for row in expected.tolist()]
    assert not torch.equal(found, plain)
    with pytest.raises(ValueError, match="merge_and_unload"):
        model.prepare_decoding()


def test_a_decoder_made_once_serves_many_calls(family, batch):
    model = family.model()
    decoder = model.prepare_decoding()
    for beams in (1, 3):
        options = {"custom_generate": beam_search, "num_beams": beams, "max_new_tokens": 9}
        assert torch.equal(model.generate(**batch, **options, decoder=decoder), model.generate(**batch, **options))


@pytest.mark.parametrize("beams", [1, 2, 40])
def test_one_usable_token_is_repeated_to_the_end(family, beams, batch):
    model = family.model()
    others = [token for token in range(31) if token != 7]
    found = model.generate(
        **batch,
        custom_generate=beam_search,
        num_beams=beams,
        num_return_sequences=min(beams, 2),
        max_new_tokens=4,
        suppress_tokens=others,
    )
    assert found[:: min(beams, 2)].tolist() == [[START, 7, 7, 7, 7]] * 4


def test_what_does_not_exist_scores_minus_infinity():
    model = FAMILIES[0].model(vocab_size=4)
    options = {"num_beams": 8, "num_return_sequences": 8, "max_new_tokens": 1, "return_dict_in_generate": True}
    found = model.generate(torch.tensor([[3, 2]]), custom_generate=beam_search, **options)
    assert found.sequences_scores.isfinite().tolist() == [True] * 4 + [False] * 4
    assert sorted(found.sequences[:4, 1].tolist()) == [0, 1, 2, 3]


@pytest.mark.parametrize("beams", [1, 3])
def test_no_usable_token_is_an_error(batch, beams):
    options = {"num_beams": beams, "max_new_tokens": 4, "suppress_tokens": list(range(31))}
    with pytest.raises(DecodingError, match="none is allowed"):
        FAMILIES[0].model().generate(**batch, custom_generate=beam_search, **options)


@pytest.mark.parametrize("beams", [1, 3])
def test_logits_that_are_no_numbers_are_an_error_that_names_the_sentence(family, decodes, batch, beams):
    model = family.model()
    bad = int((set(range(3, 31)) - set(batch["input_ids"].flatten().tolist())).pop())
    batch["input_ids"][2, 0] = bad
    model.model.encoder.embed_tokens = torch.nn.Embedding.from_pretrained(model.get_input_embeddings().weight.clone())
    model.model.encoder.embed_tokens.weight[bad] = torch.nan
    with pytest.raises(DecodingError, match=r"no numbers \(NaN\)") as caught:
        model.generate(**batch, custom_generate=beam_search, num_beams=beams, max_new_tokens=4)
    assert caught.value.sentence == 2


def test_a_source_of_padding_alone_has_an_answer(family, batch):
    batch = {name: torch.zeros_like(tensor[:2]) for name, tensor in batch.items()}
    found = family.model().generate(**batch, custom_generate=beam_search, num_beams=2, max_new_tokens=4)
    assert found.shape[0] == 2


def test_a_source_without_any_position_is_refused(family):
    with pytest.raises(ValueError, match="input_ids has no position"):
        family.model().generate(torch.zeros(1, 0, dtype=torch.long), custom_generate=beam_search, num_beams=2)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"do_sample": True}, "do_sample=True"),
        ({"output_attentions": True}, "output_attentions=True"),
        ({"rule": "marian"}, "rule='marian'"),
        ({"alpha": float("nan")}, "alpha=nan"),
    ],
)
def test_what_it_does_not_offer_is_refused(batch, options, named):
    model = FAMILIES[0].model()
    with pytest.raises(ValueError, match=named):
        model.generate(**batch, custom_generate=beam_search, num_beams=2, **options)


def test_a_generation_config_decides_beams_and_alpha(batch):
    model = FAMILIES[0].model(torch.float64)
    options = {"custom_generate": beam_search, "return_dict_in_generate": True}
    config = GenerationConfig(
        num_beams=3, num_return_sequences=3, max_new_tokens=4, decoder_start_token_id=START, alpha=-1.0
    )
    found = model.generate(**batch, **options, generation_config=config)
    assert found.sequences.shape[0] == 12
    expected = model.generate(**batch, **options, generation_config=config, alpha=-1.0)
    assert torch.equal(found.sequences_scores, expected.sequences_scores)
    assert not torch.equal(
        found.sequences_scores, model.generate(**batch, **options, generation_config=config, alpha=0.0).sequences_scores
    )


@pytest.mark.parametrize("width", [2**18, 2**18 + 77])
@pytest.mark.parametrize("count", [1, 8])
def test_the_top_of_many_numbers_is_torchs(width, count):
    values = torch.randn(4, width)
    values[1, -1] = 100.0  # beyond the last whole block
    values[2, 5:9] = 100.0 + torch.arange(4.0)  # in one block
    values[3, 7] = torch.nan
    found, expected = top(values, count), values.topk(count)
    assert torch.equal(found[1], expected.indices)
    assert torch.equal(found[0].nan_to_num(), expected.values.nan_to_num())
