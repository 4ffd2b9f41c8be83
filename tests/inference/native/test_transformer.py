# SPDX-License-Identifier: Apache-2.0
"""The compiled loops against the modules that they stand for, and their search against exact decoding."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from tests.families import FAMILIES
from vanilla_transformer.generation import DecodingError, beam_search
from vanilla_transformer.inference.native import compiler
from vanilla_transformer.inference.native.transformer import BLOCK, NativeDecoder

# What the loops have a branch for: norms, biases, widths that fill no vector, widths that fill several, positions.
SHAPES = {
    "paper": {},
    "pre-norm with biases": {"norm_position": "pre", "attention_bias": True},
    "a norm at the end": {"final_layer_norm": True},
    "odd widths": {"d_k": 3, "d_v": 11, "d_ff": 37},
    "whole vectors": {"d_model": 64, "num_heads": 2, "d_ff": 600},  # more inputs than are multiplied at once
    "learned positions": {"position_embedding": "learned", "max_position_embeddings": 80},
    "one layer, unscaled": {"num_layers": 1, "num_decoder_layers": 1, "scale_embedding": False},
    "untied": {"tie_word_embeddings": False},
}


def model_with(**fields):
    model = FAMILIES[0].model(**fields)
    with torch.no_grad():  # norms and biases that do something
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return model


@pytest.fixture(params=SHAPES.values(), ids=SHAPES)
def model(request):
    return model_with(**request.param)


def sources(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(3, 31, (count, 9))
    mask = torch.ones_like(ids)
    mask[1:, 5:] = 0
    return ids * mask, mask


@pytest.mark.parametrize("count", [1, 3, 40])  # 40 sources: more rows than pass at once
def test_it_encodes_as_the_encoder(model, count):
    ids, mask = sources(count)
    expected = model.get_encoder()(ids, mask).last_hidden_state
    found = NativeDecoder(model).encode(ids, mask)
    assert torch.equal(found.attention_mask, mask)
    torch.testing.assert_close(found.last_hidden_state * mask[..., None], expected * mask[..., None])


@pytest.mark.parametrize(("count", "beams"), [(1, 1), (1, 3), (3, 4), (70, 4)])  # 280 rows: more than pass at once
def test_each_step_has_the_decoders_logits(model, count, beams):
    """Over hypotheses that change places, sentences that leave, and more tokens than a block of the cache holds."""
    encoded = model.get_encoder()(*sources(count))
    decoders = NativeDecoder(model), model.build_decoder()
    ours, theirs = (one.begin(encoded, encoded.attention_mask, BLOCK + 5, beams, True) for one in decoders)
    left = count
    for length in range(BLOCK + 5):
        live = beams if length else 1
        tokens = torch.randint(3, 31, (left, live))
        torch.testing.assert_close(ours(tokens), theirs(tokens))
        torch.testing.assert_close(ours.attention, theirs.attention)
        parents = torch.randint(0, live, (left, beams))
        ours.reorder(parents)
        theirs.reorder(parents)
        if length == 7 and count > 1:
            rows = torch.tensor([left - 1, 0])  # the last one takes the first place
            ours.select(rows)
            theirs.select(rows)
            left = 2


@pytest.mark.parametrize("count", [3, 70])  # of 70 the two better hypotheses are read first, and then who is needed
@pytest.mark.parametrize("ends", [[], [5], [5, 9]])
def test_the_best_continuations_are_those_of_the_logits(model, count, ends):
    encoded = model.get_encoder()(*sources(count))
    decoder = NativeDecoder(model)
    ranking, steps = (decoder.begin(encoded, encoded.attention_mask, 5, beams=4) for _ in range(2))
    tokens, totals = torch.randint(3, 31, (count, 4)), 3 * torch.randn(count, 4).sort(descending=True).values
    scores, beams, found = ranking.topk_step(tokens, totals, 4, torch.tensor(ends, dtype=torch.long))
    logits = steps(tokens).view(count, 4, -1).log_softmax(dim=-1)
    everything = (totals[..., None] + logits).flatten(1)  # (sentences, beams * vocab_size)
    expected, index = everything.topk(4 * (1 + len(ends)))
    going_on = ~torch.isin(index % 31, torch.tensor(ends))
    is_sought = going_on.cumsum(dim=1) - going_on.long() < 4
    assert scores.shape == expected.shape
    torch.testing.assert_close(scores[is_sought], expected[is_sought])
    assert torch.equal((beams * 31 + found)[is_sought], index[is_sought])
    last = expected.masked_fill(~(going_on & is_sought), torch.inf).amin(dim=1, keepdim=True)
    if count == 70:
        assert (totals[:, 2:] < last).any()
        assert (totals[:, 2:] > last).any()


def test_greedy_decoding_has_the_largest_logit(model):
    encoded = model.get_encoder()(*sources(3))
    decoder = NativeDecoder(model)
    ranking, steps = (decoder.begin(encoded, encoded.attention_mask, 5, beams=1) for _ in range(2))
    tokens = torch.randint(3, 31, (3, 1))
    scores, beams, found = ranking.topk_step(tokens, None, 1, torch.tensor([], dtype=torch.long))
    expected, index = steps(tokens).max(dim=1)
    torch.testing.assert_close(scores[:, 0], expected)
    assert torch.equal(found[:, 0], index)
    assert not beams.any()


def test_more_than_there_is_gives_what_there_is():
    model = model_with()
    encoded = model.get_encoder()(*sources(1))
    scores, beams, found = (
        NativeDecoder(model)
        .begin(encoded, None, 5, beams=2)
        .best(torch.tensor([[3, 4]]), torch.zeros(1, 2), 100, torch.tensor([2]))
    )
    assert scores.shape == (1, 2 * 31)
    assert sorted((beams * 31 + found)[0].tolist()) == list(range(2 * 31))


@pytest.mark.parametrize("vocab_size", [31, 700])  # in 700 nearly all is passed over a block at a time
@pytest.mark.parametrize("beams", [1, 4])
def test_a_search_finds_what_it_finds_in_torch(vocab_size, beams):
    model = model_with(vocab_size=vocab_size)
    ids, mask = sources(6)
    options = {"custom_generate": beam_search, "num_beams": beams, "max_new_tokens": 2 * BLOCK, "alpha": 0.6}
    expected = model.generate(ids, attention_mask=mask, **options)
    native = NativeDecoder(model)
    encoded = native.encode(ids, mask)
    found = model.generate(ids, attention_mask=mask, encoder_outputs=encoded, decoder=native, **options)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("beams", [1, 3])
def test_scores_of_every_step_are_those_of_torch_and_change_no_token(beams):
    """The loops do not rank the tokens then, and use their memory again."""
    model = model_with()
    ids, mask = sources(4)
    options = {"custom_generate": beam_search, "num_beams": beams, "max_new_tokens": 9, "return_dict_in_generate": True}
    plain = model.generate(ids, attention_mask=mask, **options, decoder=NativeDecoder(model))
    options |= {"output_scores": True, "output_logits": True}
    expected = model.generate(ids, attention_mask=mask, **options)
    found = model.generate(ids, attention_mask=mask, **options, decoder=NativeDecoder(model))
    assert torch.equal(found.sequences, plain.sequences)
    for name in ("scores", "logits"):
        torch.testing.assert_close(found[name], expected[name])
    if beams > 1:
        assert torch.equal(found.beam_indices, expected.beam_indices)


@pytest.mark.parametrize("d_model", [16, 64])
def test_int8_is_the_model_with_rounded_weights(d_model):
    """What remains is the rounding of what is multiplied, to about 13 bits."""
    model = model_with(d_model=d_model, d_ff=37)
    native = NativeDecoder(model, "int8")
    table = model.model.encoder.embed_tokens.weight.clone()  # tied to the projection, and not rounded as a table
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear):
                scale = module.weight.abs().amax(dim=1, keepdim=True) / 127
                module.weight = nn.Parameter((module.weight / scale).round() * scale)
    model.model.encoder.embed_tokens.weight = model.model.decoder.embed_tokens.weight = nn.Parameter(table)
    ids, mask = sources(40)
    encoded = model.get_encoder()(ids, mask)
    close = {"atol": 5e-3, "rtol": 1e-3}
    torch.testing.assert_close(
        native.encode(ids, mask).last_hidden_state * mask[..., None],
        encoded.last_hidden_state * mask[..., None],
        **close,
    )
    steps, expected = (one.begin(encoded, mask, 3, beams=4) for one in (native, model.build_decoder()))
    tokens = torch.randint(3, 31, (40, 4))
    torch.testing.assert_close(steps(tokens), expected(tokens), **close)


def test_a_source_of_padding_alone_is_finite():
    native = NativeDecoder(model_with())
    mask = torch.tensor([[1, 1, 0], [0, 0, 0]])
    encoded = native.encode(torch.tensor([[5, 6, 0], [0, 0, 0]]), mask)
    assert native.begin(encoded, mask, 5, beams=1)(torch.tensor([[1], [1]])).isfinite().all()


@pytest.mark.parametrize("precision", ["float32", "int8"])
@pytest.mark.parametrize("beams", [1, 4])
@pytest.mark.parametrize("where", ["lm_head.bias", "model.decoder.layers.1.feed_forward.linear_1.bias"])
def test_what_is_no_number_ends_the_search_with_an_error(precision, beams, where):
    model = model_with()
    if where == "lm_head.bias":
        model.lm_head.bias = nn.Parameter(torch.zeros(31))
    with torch.no_grad():
        model.get_parameter(where)[4] = torch.nan
    ids, mask = sources(2)
    with pytest.raises(DecodingError, match="NaN"):
        model.generate(
            ids,
            attention_mask=mask,
            custom_generate=beam_search,
            num_beams=beams,
            max_new_tokens=9,
            decoder=NativeDecoder(model, precision),
        )


def test_what_a_bias_forbids_is_not_said():
    model = model_with()
    model.lm_head.bias = nn.Parameter(torch.full((31,), -torch.inf))
    with torch.no_grad():
        model.lm_head.bias[[7, 9]] = 0
    ids, mask = sources(2)
    found = model.generate(
        ids,
        attention_mask=mask,
        custom_generate=beam_search,
        num_beams=3,
        max_new_tokens=9,
        decoder=NativeDecoder(model),
    )
    assert set(found[:, 1:].flatten().tolist()) <= {7, 9}


def test_later_changes_of_the_weights_have_no_effect():
    model = model_with()
    native, (ids, mask) = NativeDecoder(model), sources(2)
    before = native.encode(ids, mask).last_hidden_state
    with torch.no_grad():
        for layer in model.model.encoder.layers:
            layer.feed_forward.linear_1.weight.zero_()
    assert torch.equal(native.encode(ids, mask).last_hidden_state, before)
    assert not torch.allclose(model.get_encoder()(ids, mask).last_hidden_state, before)


@pytest.mark.parametrize("threads", [1, 3])
def test_any_number_of_threads_computes_the_same(threads):
    model = model_with(d_model=64, num_heads=2)
    ids, mask = sources(5)
    expected = model.get_encoder()(ids, mask).last_hidden_state
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = NativeDecoder(model).encode(ids, mask).last_hidden_state
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(found * mask[..., None], expected * mask[..., None])


def test_a_machine_without_wide_vectors_computes_the_same(tmp_path, monkeypatch):
    """That it is another machine, only the compiler is told."""
    model = model_with(d_model=64, num_heads=2, d_ff=37)
    ids, mask = sources(5)
    wide = {one: NativeDecoder(model, one) for one in ("float32", "int8")}
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(compiler, "FLAGS", [flag for flag in compiler.FLAGS if flag != "-march=native"])
    compiler.library.cache_clear()
    try:
        for precision, expected in wide.items():
            found = NativeDecoder(model, precision)
            close = {"atol": 1e-5 if precision == "float32" else 1e-3, "rtol": 0}  # a number of int8 may round up
            torch.testing.assert_close(found.encode(ids, mask), expected.encode(ids, mask), **close)
    finally:
        compiler.library.cache_clear()


def test_a_target_beyond_learned_positions_is_refused():
    model = model_with(position_embedding="learned", max_position_embeddings=10)
    encoded = model.get_encoder()(*sources(1))
    for decoder in (NativeDecoder(model), model.build_decoder()):
        with pytest.raises(ValueError, match="longer than the learned positions reach"):
            decoder.begin(encoded, None, 11, beams=1)


def test_a_decoder_serves_searches_at_once():
    """Each has its own memory, and what is used again is as good as new."""
    model = model_with()
    decoder = NativeDecoder(model)
    options = {"custom_generate": beam_search, "num_beams": 3, "max_new_tokens": 20}
    batches = [sources(count) for count in (1, 4, 9, 2)]
    expected = [model.generate(ids, attention_mask=mask, **options) for ids, mask in batches]

    def decode(batch):
        ids, mask = batch
        encoded = decoder.encode(ids, mask)
        return model.generate(ids, attention_mask=mask, encoder_outputs=encoded, decoder=decoder, **options)

    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(decode, batches * 3))
    assert all(map(torch.equal, found, expected * 3))


def test_a_token_outside_of_the_vocabulary_is_named():
    native = NativeDecoder(model_with())
    steps = native.begin(native.encode(*sources(2)), None, 5, beams=1)
    for token in (31, -1):
        with pytest.raises(IndexError, match=f"token {token} is not in a vocabulary of 31"):
            steps(torch.tensor([[3], [token]]))
