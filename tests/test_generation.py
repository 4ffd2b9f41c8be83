# SPDX-License-Identifier: Apache-2.0
"""Section 6.1: the paper's beam search, against exhaustive search, transformers' own, and teacher forcing."""

import itertools

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers.generation import GenerationConfig, MaxTimeCriteria, StoppingCriteriaList

from tests.families import CROSS_ATTENTION, FAMILIES, Family
from vanilla_transformer.generation import DecodingError, beam_search, length_penalty
from vanilla_transformer.transformers_differences import CACHE

PAD, START, END = 0, 1, 2


@pytest.fixture(params=FAMILIES, ids=lambda family: family.name)
def family(request) -> Family:
    return request.param


@pytest.fixture(params=["build_decoder", "model"])
def decodes(request, monkeypatch) -> str:
    """With weights laid out for decoding, or by the model's own forward pass."""
    if request.param == "model":
        for family in FAMILIES:
            monkeypatch.setattr(family.seq2seq_class, "can_build_decoder", lambda self: False)
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
def test_rule_transformers_finds_what_transformers_finds(family, decodes, early_stopping, length_penalty):
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
def test_coverage_penalty_equals_that_of_teacher_forcing(family, decodes, batch):
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


@pytest.mark.parametrize("use_cache", [True, False])
def test_coverage_penalty_needs_attention(batch, use_cache):
    model, options = FAMILIES[4].model(), {"num_beams": 2, "max_new_tokens": 4, "use_cache": use_cache}
    with pytest.raises(ValueError, match="attention"):
        model.generate(**batch, custom_generate=beam_search, coverage_penalty=0.2, **options)


@pytest.mark.parametrize("beams", [1, 3])
def test_coverage_penalty_names_the_remedy_for_a_backend_without_weights(batch, beams):
    model = FAMILIES[0].model(torch.float64)
    options = {"num_beams": beams, "max_new_tokens": 6, "custom_generate": beam_search, "coverage_penalty": 0.2}
    expected = model.generate(**batch, **options)
    with pytest.raises(ValueError, match=r"'sdpa'.*set_attn_implementation\('eager'\)"):
        model.generate(**batch, **options, use_cache=False)
    model.set_attn_implementation("eager")
    assert torch.equal(model.generate(**batch, **options, use_cache=False), expected)


def test_coverage_penalty_includes_the_prompt_and_infers_the_source_mask(family, decodes, batch):
    """Each is counted once, however the decoder reads them."""
    if CROSS_ATTENTION in family.lacks:
        pytest.skip(family.lacks[CROSS_ATTENTION])
    model, beta, prompt = family.model(torch.float64), 0.3, torch.tensor([[START, 7, 8]] * 4)
    model.set_attn_implementation("eager")
    options = {"num_beams": 3, "max_new_tokens": 5, "decoder_input_ids": prompt, "return_dict_in_generate": True}
    found = model.generate(batch["input_ids"], **options, custom_generate=beam_search, alpha=0.0, coverage_penalty=beta)
    for i, (target, score) in enumerate(zip(found.sequences.tolist(), found.sequences_scores.tolist(), strict=True)):
        target, source = without_padding(target), row(batch, i)["input_ids"]
        ids = torch.tensor([target])
        with torch.no_grad():
            output = model(source, decoder_input_ids=ids[:, :-1], output_attentions=True)
        chosen = output.logits.log_softmax(-1).gather(2, ids[:, 1:, None])[0, 2:]
        attended = output.cross_attentions[-1][0].mean(dim=0).sum(dim=0)  # (source_length)
        assert score == pytest.approx(chosen.sum().item() + beta * attended.clamp(max=1).log().sum().item(), abs=1e-5)


@pytest.mark.parametrize("given", [CACHE, "decoder_attention_mask"])
def test_coverage_penalty_with_a_cache_or_a_masked_prompt_is_refused(batch, given):
    model = FAMILIES[0].model()
    model.set_attn_implementation("eager")
    prompt = torch.tensor([[PAD, START, 8]] * 3 + [[START, 7, 8]])
    options: dict = {"decoder_input_ids": prompt, "decoder_attention_mask": prompt.ne(PAD).long()}
    if given == CACHE:
        prompt = prompt[:, 1:]
        cache = model(**batch, decoder_input_ids=prompt[:, :1], use_cache=True).cache
        options = {"decoder_input_ids": prompt, "decoder_attention_mask": torch.ones_like(prompt), CACHE: cache}
    with pytest.raises(ValueError, match=f"coverage_penalty=0.2 needs whole targets; leave {given} out"):
        model.generate(**batch, **options, custom_generate=beam_search, coverage_penalty=0.2, max_new_tokens=4)


def test_prompt_is_kept_and_not_counted(family, decodes, batch):
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
def test_batch_invariance(family, beams):
    model, batch = family.model(), sources(64)
    options = {"custom_generate": beam_search, "num_beams": beams, "max_new_tokens": 12}
    expected = [
        without_padding(model.generate(**row(batch, i), **options)[0].tolist()) for i in range(len(batch["input_ids"]))
    ]
    for size, order in ((64, torch.randperm(64)), (7, torch.arange(64))):
        for rows in order.split(size):
            found = model.generate(**{name: tensor[rows] for name, tensor in batch.items()}, **options)
            assert [without_padding(target) for target in found.tolist()] == [expected[i] for i in rows.tolist()]


def test_max_tokens_beyond_source_is_relative_to_each_source(family, decodes, batch):
    model = family.model()
    model.generation_config.max_tokens_beyond_source = 3
    model.generation_config.eos_token_id = None  # nothing ends before
    for beams in (1, 2):
        found = model.generate(**batch, custom_generate=beam_search, num_beams=beams, suppress_tokens=[PAD])
        lengths = (found != PAD).sum(dim=1) - 1  # the start token is not counted
        assert lengths.tolist() == (batch["attention_mask"].sum(dim=1) + 3).tolist()


def test_max_new_tokens_overrides_max_tokens_beyond_source(batch):
    model = FAMILIES[0].model()
    model.generation_config.max_tokens_beyond_source = 3
    model.generation_config.eos_token_id = None
    found = model.generate(**batch, custom_generate=beam_search, num_beams=2, max_new_tokens=20)
    assert found.shape[1] == 21


def test_learned_positions_bound_the_length(batch):
    model = FAMILIES[0].model(position_embedding="learned", max_position_embeddings=10)
    model.generation_config.max_tokens_beyond_source = 50
    model.generation_config.eos_token_id = None
    assert model.generate(**batch, custom_generate=beam_search, num_beams=2).shape[1] == 10
    with pytest.raises(ValueError, match="max_position_embeddings=10"):
        model.generate(**batch, custom_generate=beam_search, num_beams=2, max_new_tokens=11)


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize(
    "prompt", [[[START, 7, 8]] * 4, [[PAD, START, 8]] * 3 + [[START, 7, 8]]], ids=["whole", "padded"]
)
def test_decoder_attention_mask_of_a_prompt_is_honoured(family, beams, prompt, batch):
    model, prompt = family.model(torch.float64), torch.tensor(prompt)
    options = {"num_beams": beams, "max_new_tokens": 6, "decoder_input_ids": prompt}
    options |= {"decoder_attention_mask": prompt.ne(PAD).long()}
    expected = model.generate(**batch, **options)
    found = model.generate(**batch, **options, custom_generate=beam_search, rule="transformers")
    assert [without_padding(row) for row in found.tolist()] == [without_padding(row) for row in expected.tolist()]
    if bool((prompt == PAD).any()):
        with pytest.raises(ValueError, match="decoder_attention_mask"):
            model.generate(**batch, **options, custom_generate=beam_search, decoder=model.build_decoder())


@pytest.mark.parametrize("beams", [1, 3])
def test_source_mask_is_the_encoders_where_none_is_given(family, decodes, batch, beams):
    model = family.model(torch.float64)
    model.generation_config.max_tokens_beyond_source = 3  # of each source's own tokens
    options = {"custom_generate": beam_search, "num_beams": beams}
    assert torch.equal(model.generate(batch["input_ids"], **options), model.generate(**batch, **options))


# -- what it returns beside the targets


@pytest.mark.parametrize("beams", [1, 3])
def test_scores_logits_and_beam_indices_equal_those_of_transformers(family, decodes, batch, beams):
    model = family.model(torch.float64)
    options = {"num_beams": beams, "num_return_sequences": min(beams, 2), "max_new_tokens": 7}
    options |= {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}
    expected = model.generate(**batch, **options)
    found = model.generate(**batch, **options, custom_generate=beam_search, rule="transformers")
    assert len(found.scores) == len(expected.scores) == len(found.logits)
    for name in ("scores", "logits"):
        for ours, theirs in zip(found[name], expected[name], strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    if beams > 1:
        assert found.beam_indices.tolist() == expected.beam_indices.tolist()
        torch.testing.assert_close(found.sequences_scores, expected.sequences_scores)
    is_greedy = beams == 1
    transitions = [
        model.compute_transition_scores(
            item.sequences, item.scores, item.get("beam_indices"), normalize_logits=is_greedy
        )
        for item in (found, expected)
    ]
    # Greedily, transformers goes on after the end by other padding.
    until_end = (found.sequences[:, 1:] == END).cumsum(dim=1) - (found.sequences[:, 1:] == END).long() == 0
    torch.testing.assert_close(*(transition * until_end for transition in transitions), atol=1e-5, rtol=0)


def test_transition_scores_sum_up_to_what_a_target_scores(family, decodes):
    model, batch, alpha = family.model(torch.float64), sources(12), 0.6
    model.generation_config.max_tokens_beyond_source = 3  # sentences are done at different lengths
    options = {"num_beams": 4, "num_return_sequences": 3, "custom_generate": beam_search, "alpha": alpha}
    plain = model.generate(**batch, **options, return_dict_in_generate=True)
    found = model.generate(**batch, **options, return_dict_in_generate=True, output_scores=True)
    assert torch.equal(found.sequences, plain.sequences)
    assert (plain.get("scores"), plain.get("beam_indices")) == (None, None)  # nobody asked
    assert {tuple(step.shape) for step in found.scores} == {(12 * 4, family.target_vocab_size)}
    lengths = (found.beam_indices >= 0).sum(dim=1)
    assert lengths.unique().numel() > 1
    transitions = model.compute_transition_scores(found.sequences, found.scores, found.beam_indices)
    expected = found.sequences_scores * length_penalty(lengths, alpha)
    torch.testing.assert_close(transitions.sum(dim=1), expected, atol=1e-4, rtol=0)


def test_scores_are_after_logits_processors(family, batch):
    model = family.model(torch.float64)
    options = {"num_beams": 3, "max_new_tokens": 4, "suppress_tokens": [5, 9], "return_dict_in_generate": True}
    found = model.generate(**batch, **options, output_scores=True, output_logits=True, custom_generate=beam_search)
    assert all(step[:, [5, 9]].isneginf().all() for step in found.scores)
    assert all(step.isfinite().all() for step in found.logits)


@pytest.mark.parametrize("beams", [1, 3])
def test_logits_processors_apply(family, decodes, batch, beams):
    model = family.model(torch.float64)
    options = {"num_beams": beams, "max_new_tokens": 8, "min_new_tokens": 8, "suppress_tokens": [5, 9]}
    options |= {"no_repeat_ngram_size": 2, "encoder_no_repeat_ngram_size": 2}
    if beams > 1:
        options |= {"length_penalty": 1.0, "early_stopping": "never"}
    expected = model.generate(**batch, **options)
    found = model.generate(**batch, **options, custom_generate=beam_search, rule="transformers")
    assert torch.equal(found, expected)


def test_stopping_criteria_apply(batch):
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
    options = {"num_beams": 2, "max_new_tokens": 9}
    expected = adapted.generate(**batch, **options, length_penalty=0.0)
    found = adapted.generate(**batch, **options, custom_generate=beam_search, alpha=0.0)
    assert [without_padding(row) for row in found.tolist()] == [without_padding(row) for row in expected.tolist()]
    assert not torch.equal(found, plain)
    with pytest.raises(ValueError, match="merge_and_unload"):
        model.build_decoder()


def test_a_decoder_built_once_serves_many_calls(family, batch):
    model = family.model()
    decoder = model.build_decoder()
    for beams in (1, 3):
        options = {"custom_generate": beam_search, "num_beams": beams, "max_new_tokens": 9}
        assert torch.equal(model.generate(**batch, **options, decoder=decoder), model.generate(**batch, **options))


@pytest.mark.parametrize("beams", [1, 2, 40])
def test_one_usable_token_is_repeated_to_the_end(family, beams, batch):
    model = family.model()
    others = [token for token in range(family.target_vocab_size) if token != 7]
    found = model.generate(
        **batch,
        custom_generate=beam_search,
        num_beams=beams,
        num_return_sequences=min(beams, 2),
        max_new_tokens=4,
        suppress_tokens=others,
    )
    assert found[:: min(beams, 2)].tolist() == [[START, 7, 7, 7, 7]] * 4


def test_missing_hypotheses_score_minus_infinity():
    model = FAMILIES[0].model(vocab_size=4)
    options = {"num_beams": 8, "num_return_sequences": 8, "max_new_tokens": 1, "return_dict_in_generate": True}
    found = model.generate(torch.tensor([[3, 2]]), custom_generate=beam_search, **options)
    assert found.sequences_scores.isfinite().tolist() == [True] * 4 + [False] * 4
    assert sorted(found.sequences[:4, 1].tolist()) == [0, 1, 2, 3]


@pytest.mark.parametrize("beams", [1, 3])
def test_all_tokens_forbidden_is_an_error(batch, beams):
    options = {"num_beams": beams, "max_new_tokens": 4, "suppress_tokens": list(range(31))}
    with pytest.raises(DecodingError, match="every token is forbidden"):
        FAMILIES[0].model().generate(**batch, custom_generate=beam_search, **options)


@pytest.mark.parametrize("beams", [1, 3])
def test_nan_logits_are_an_error_that_names_the_sentence(family, decodes, batch, beams):
    model = family.model()
    bad = int((set(range(3, 31)) - set(batch["input_ids"].flatten().tolist())).pop())
    batch["input_ids"][2, 0] = bad
    model.model.encoder.embed_tokens = torch.nn.Embedding.from_pretrained(model.get_input_embeddings().weight.clone())
    model.model.encoder.embed_tokens.weight[bad] = torch.nan
    with pytest.raises(DecodingError, match="the logits are NaN") as caught:
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
        ({"coverage_penalty": float("inf")}, "coverage_penalty=inf"),
        ({"coverage_penalty": -0.1}, "coverage_penalty=-0.1 must be a finite number, at least 0"),
        ({"rule": "transformers", "length_penalty": float("nan")}, "length_penalty=nan"),
        ({"length_penalty": 2.0}, "length_penalty=2.0 has no part in rule='gnmt'; use alpha"),
        ({"rule": "transformers", "alpha": 0.5}, "alpha=0.5 has no part in rule='transformers'; use length_penalty"),
    ],
)
def test_unsupported_arguments_are_refused(batch, options, named):
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
