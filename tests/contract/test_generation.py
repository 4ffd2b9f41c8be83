# SPDX-License-Identifier: Apache-2.0
"""`generate()` in each mode that transformers offers for encoder-decoders; each behaviour once, for each model."""

import itertools

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, GenerationConfig
from transformers.cache_utils import DynamicCache, EncoderDecoderCache
from transformers.generation.streamers import BaseStreamer

from tests import families
from tests.families import END, FAMILIES, START
from vanilla_transformer.transformers_differences import CACHE

MODES = {
    "greedy": {},
    "beam": {"num_beams": 3},
    "sampling": {"do_sample": True},
    "beam sampling": {"do_sample": True, "num_beams": 2},
    "n-best": {"num_beams": 3, "num_return_sequences": 3},
}


@pytest.mark.parametrize("mode", MODES)
def test_generation_with_cache_equals_generation_without(family, batch, mode):
    model = family.model(torch.float64)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    outputs = []
    for use_cache in (True, False):
        torch.manual_seed(5)
        outputs.append(model.generate(**inputs, **MODES[mode], max_new_tokens=9, use_cache=use_cache))
    assert torch.equal(*outputs)


@pytest.mark.parametrize("mode", ["greedy", "beam"])
def test_generation_without_a_mask_infers_it(family, batch, mode):
    model = family.model(torch.float64)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    expected = model.generate(**inputs, **MODES[mode], max_new_tokens=9)
    assert torch.equal(model.generate(batch["input_ids"], **MODES[mode], max_new_tokens=9), expected)


def test_greedy_generation_follows_the_logits(family, batch):
    model = family.model(torch.float64)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    generated = model.generate(**inputs, max_new_tokens=7, min_new_tokens=7)
    logits = model(**inputs, decoder_input_ids=generated[:, :-1]).logits
    logits[..., END] = -torch.inf  # min_new_tokens forbids it
    assert torch.equal(logits.argmax(-1), generated[:, 1:])


def test_static_cache_equals_dynamic_cache(family, batch):
    model = family.model(torch.float64)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    options = {"num_beams": 3, "max_new_tokens": 6}
    expected = model.generate(**inputs, **options)
    assert torch.equal(
        model.generate(**inputs, **options, cache_implementation="static", disable_compile=True), expected
    )


def test_max_length_is_relative_to_the_source(family, batch):
    model = family.model()
    model.generation_config.max_tokens_beyond_source = 4
    generated = model.generate(batch["input_ids"], min_new_tokens=500)
    assert generated.shape[1] == 1 + batch["input_ids"].shape[1] + 4


def test_generation_config_with_the_relative_length_survives_saving(family, tmp_path):
    model = family.model()
    model.generation_config = GenerationConfig(max_tokens_beyond_source=4, decoder_start_token_id=START)
    model.save_pretrained(tmp_path)
    assert AutoModelForSeq2SeqLM.from_pretrained(tmp_path).generation_config.max_tokens_beyond_source == 4


# -- what generation returns


def test_streamed_tokens_are_those_of_greedy_generation(family, batch):
    model, one = family.model(torch.float64), batch["input_ids"][1:2]
    events = []

    class Streamer(BaseStreamer):
        def put(self, value):
            events.append(value.flatten().tolist())

        def end(self):
            events.append("end")

    generated = model.generate(one, max_new_tokens=6, streamer=Streamer())
    assert events == [[token] for token in generated[0].tolist()] + ["end"]


@pytest.mark.parametrize("beams", [1, 3])
def test_generation_returns_scores_layers_and_maps_of_every_step(family, source, beams):
    model = family.model(torch.float64)
    model.set_attn_implementation("eager")
    asked = ("output_scores", "output_logits", "output_attentions", "output_hidden_states", "return_dict_in_generate")
    options = {"num_beams": beams, "max_new_tokens": 4, "min_new_tokens": 4} | dict.fromkeys(asked, True)
    output = model.generate(**source, **options)
    assert output.sequences.shape == (3, 5)
    shapes = [(3 * beams, family.target_vocab_size)] * 4
    assert [step.shape for step in output.scores] == [step.shape for step in output.logits] == shapes
    assert isinstance(output[CACHE], type(family.new_cache()))

    def of_step(shape: tuple[int, ...], of_maps: bool) -> tuple[int, ...]:
        """A shape of `family.shapes` for one token of each beam."""
        return (3 * beams, shape[1], 1, *shape[3:]) if of_maps else (3 * beams, 1, *shape[2:])

    for name in ("decoder_hidden_states", "cross_attentions"):
        for step in output[name] or ():
            expected = [of_step(shape, name == "cross_attentions") for shape in family.shapes[name] or ()]
            assert [layer.shape for layer in step or ()] == expected
    encoder = [(3, *shape[1:]) for shape in family.shapes["encoder_hidden_states"]]
    assert [layer.shape for layer in output.encoder_hidden_states] == encoder
    if families.SELF_ATTENTION not in family.lacks:
        assert [step[0].shape[2:] for step in output.decoder_attentions] == [(1, length) for length in range(1, 5)]


@pytest.mark.parametrize("mode", ["greedy", "beam", "sampling", "n-best"])
def test_transition_scores_are_the_log_probabilities_of_one_forward_pass(family, source, mode):
    model = family.model(torch.float64)
    output = model.generate(**source, **MODES[mode], max_new_tokens=6, return_dict_in_generate=True, output_scores=True)
    beams = output.get("beam_indices")
    found = model.compute_transition_scores(output.sequences, output.scores, beams, normalize_logits=beams is None)
    copies = output.sequences.shape[0] // 3
    repeated = {name: tensor.repeat_interleave(copies, dim=0) for name, tensor in source.items()}
    logits = model(**repeated, decoder_input_ids=output.sequences[:, :-1]).logits.log_softmax(-1)
    expected = logits.gather(2, output.sequences[:, 1:, None])[:, :, 0]
    ended = (output.sequences[:, 1:] == END).cumsum(dim=1) - (output.sequences[:, 1:] == END).long() > 0
    assert (found - expected)[~ended].abs().max() < 1e-6
    assert (~ended).sum() > 6


def test_scores_of_beams_are_sums_of_transition_scores(family, source):
    model = family.model(torch.float64)
    options = {"num_beams": 3, "num_return_sequences": 3, "max_new_tokens": 6, "length_penalty": 1.0}
    output = model.generate(**source, **options, return_dict_in_generate=True, output_scores=True)
    scores = model.compute_transition_scores(output.sequences, output.scores, output.beam_indices)
    lengths = (output.beam_indices >= 0).sum(dim=1)
    assert torch.allclose(scores.sum(dim=1) / lengths, output.sequences_scores, atol=1e-5)


# -- what generation is told


def test_generation_continues_from_the_cache_of_a_generation(family, source):
    model = family.model(torch.float64)
    whole = model.generate(**source, max_new_tokens=8, min_new_tokens=8)
    begun = model.generate(**source, max_new_tokens=3, min_new_tokens=3, return_dict_in_generate=True)
    assert torch.equal(begun.sequences, whole[:, :4])
    continued = model.generate(
        **source,
        decoder_input_ids=begun.sequences,
        decoder_attention_mask=torch.ones_like(begun.sequences),  # transformers' sign that this is the whole target
        **{CACHE: begun[CACHE]},
        max_new_tokens=5,
        min_new_tokens=5,
    )
    assert torch.equal(continued, whole)
    assert begun[CACHE].get_seq_length() == 8  # nothing was read twice


def test_generation_continues_from_the_cache_of_a_forward_pass(family, source):
    model = family.model(torch.float64)
    whole = model.generate(**source, max_new_tokens=8, min_new_tokens=8)
    with torch.no_grad():
        cache = model(**source, decoder_input_ids=whole[:, :3], use_cache=True).cache
    target = whole[:, :6]  # three of which the cache does not have
    options = {"decoder_input_ids": target, "decoder_attention_mask": torch.ones_like(target), CACHE: cache}
    assert torch.equal(model.generate(**source, **options, max_new_tokens=3, min_new_tokens=3), whole)


@pytest.mark.parametrize("mode", MODES)
def test_prompt_is_kept_and_continued(family, source, mode):
    model = family.model(torch.float64)
    beginning = torch.tensor([[START, 7, 8], [START, 9, 10], [START, 11, 12]])
    outputs = []
    for use_cache in (True, False):
        torch.manual_seed(5)
        options = MODES[mode] | {"max_new_tokens": 4, "use_cache": use_cache}
        outputs.append(model.generate(**source, decoder_input_ids=beginning, **options))
    assert torch.equal(*outputs)
    assert torch.equal(outputs[0][:, :3], beginning.repeat_interleave(outputs[0].shape[0] // 3, dim=0))


@pytest.mark.parametrize("mode", ["greedy", "beam"])
def test_logits_processors_apply(family, source, mode):
    model = family.model(torch.float64)
    options = {"max_new_tokens": 12, "min_new_tokens": 12, "no_repeat_ngram_size": 2, "suppress_tokens": [5, 9]}
    for row in model.generate(**source, **MODES[mode], **options).tolist():
        pairs = list(itertools.pairwise(row))
        assert len(pairs) == len(set(pairs)) == 12
        assert not {5, 9} & set(row)


def test_encoder_outputs_stand_for_the_source_in_generation(family, source):
    model = family.model(torch.float64)
    encoded = model.get_encoder()(**source)
    expected = model.generate(**source, num_beams=2, max_new_tokens=6)
    assert torch.equal(model.generate(encoder_outputs=encoded, num_beams=2, max_new_tokens=6), expected)


@pytest.mark.parametrize("mode", ["greedy", "beam"])
def test_batch_invariance_of_generation(family, source, mode):
    model = family.model(torch.float64)
    options = MODES[mode] | {"max_new_tokens": 7, "min_new_tokens": 7}
    together = model.generate(**source, **options)
    for i in range(3):
        alone = model.generate(**{name: tensor[i : i + 1] for name, tensor in source.items()}, **options)
        assert torch.equal(together[i], alone[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("mode", ["greedy", "beam"])
def test_half_precision_generates(family, source, mode, dtype):
    generated = family.model(dtype).generate(**source, **MODES[mode], max_new_tokens=5, min_new_tokens=5)
    assert generated.shape == (3, 6)
    assert generated.max() < family.target_vocab_size


# -- assisted generation and caches


@pytest.mark.parametrize("how", ["a smaller model", "the same model", "the prompt"])
def test_assisted_generation_gives_what_greedy_gives_or_is_refused(family, batch, how):
    model, one = family.model(torch.float64), batch["input_ids"][1:2]
    options = {
        "a smaller model": {"assistant_model": family.model(torch.float64, num_layers=1, num_decoder_layers=1)},
        "the same model": {"assistant_model": family.model(torch.float64)},
        "the prompt": {"prompt_lookup_num_tokens": 2},
    }[how]
    if families.ASSISTED_GENERATION in family.lacks:
        with pytest.raises(ValueError, match="assisted generation is not supported with stateful models"):
            model.generate(one, max_new_tokens=9, **options)
    else:
        assert torch.equal(model.generate(one, max_new_tokens=9, **options), model.generate(one, max_new_tokens=9))


def test_the_cache_is_keys_and_values_or_a_state(family, source):
    model = family.model(torch.float64)
    output = model.generate(**source, max_new_tokens=5, min_new_tokens=5, return_dict_in_generate=True)
    assert output[CACHE].get_seq_length() == 5
    if families.KEYS_AND_VALUES in family.lacks:
        sizes = {name: tensor.shape for name, tensor in output[CACHE].state.tensors.items()}
        longer = model.generate(**source, max_new_tokens=9, min_new_tokens=9, return_dict_in_generate=True)
        assert {name: tensor.shape for name, tensor in longer[CACHE].state.tensors.items()} == sizes
        with pytest.raises(TypeError, match="a recurrent state has no keys and values"):
            output[CACHE].update(torch.zeros(1), torch.zeros(1), 0)
        of_keys_and_values = EncoderDecoderCache(DynamicCache(), DynamicCache())
        with pytest.raises(ValueError, match="the cache of an RNN is a RecurrentCache"):
            model(**source, decoder_input_ids=source["input_ids"], cache=of_keys_and_values)
    else:
        assert [layer.keys.shape[2] for layer in output[CACHE].self_attention_cache.layers] == [5] * 3
        assert [layer.keys.shape[2] for layer in output[CACHE].cross_attention_cache.layers] == [8] * 3


@pytest.mark.parametrize("kind", ["offloaded", "quantized"])
@pytest.mark.parametrize(
    "stateful", [item for item in FAMILIES if families.OTHER_CACHES in item.lacks], ids=lambda family: family.name
)
def test_caches_of_keys_and_values_are_refused_by_a_state(stateful, source, kind):
    with pytest.raises(ValueError, match=f"cache_implementation='{kind}': an RNN has a state"):
        stateful.model().generate(**source, cache_implementation=kind)
