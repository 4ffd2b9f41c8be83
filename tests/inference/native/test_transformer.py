# SPDX-License-Identifier: Apache-2.0
"""The native engine against the modules that it computes, and its search against exact decoding."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from tests.families import FAMILIES
from vanilla_transformer.decoder import SupportsSelect, SupportsTopK
from vanilla_transformer.generation import DecodingError, beam_search
from vanilla_transformer.inference.native import compiler
from vanilla_transformer.inference.native.engine import native_decoder
from vanilla_transformer.inference.native.memory import BufferPool
from vanilla_transformer.inference.native.transformer import NativeDecoder
from vanilla_transformer.packed_linear import PRECISIONS, Precision

# The kernels have a branch for each: norms, biases, widths below and above a vector's, positions.
SHAPES = {
    "paper": {},
    "pre-norm with biases": {"norm_position": "pre", "attention_bias": True},
    "final norm": {"final_layer_norm": True},
    "odd widths": {"d_k": 3, "d_v": 11, "d_ff": 37},
    "full vectors": {"d_model": 64, "num_heads": 2, "d_ff": 600},  # more than KC inputs
    "learned positions": {"position_embedding": "learned", "max_position_embeddings": 80},
    "one layer, unscaled": {"num_layers": 1, "num_decoder_layers": 1, "scale_embedding": False},
    "untied": {"tie_word_embeddings": False},
    "embedding norm and bias of the projection": {"embedding_layer_norm": True, "projection_bias": True},
    "positions of fairseq": {"sinusoid_layout": "concatenated", "sinusoid_exponent": "tensor2tensor"}
    | {"position_offset": 2},
}


STEPS = 37  # more tokens than a block of the cache holds


def model_with(**fields):
    model = FAMILIES[0].model(**fields)
    with torch.no_grad():  # norms and biases that have an effect
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


@pytest.mark.parametrize("count", [1, 3, 40])  # 40 sources: several passes
def test_encoder_equivalence(model, count):
    ids, mask = sources(count)
    expected = model.get_encoder()(ids, mask).last_hidden_state
    found = NativeDecoder(model).encode(ids, mask)
    assert torch.equal(found.attention_mask, mask)
    torch.testing.assert_close(found.last_hidden_state * mask[..., None], expected * mask[..., None])


@pytest.mark.parametrize(("count", "beams"), [(1, 1), (1, 3), (3, 4), (70, 4)])  # 280 rows: several passes
def test_decoder_equivalence_of_each_step(model, count, beams):
    """With beams that are reordered, sentences that are removed, and several blocks of the cache."""
    encoded = model.get_encoder()(*sources(count))
    decoder = NativeDecoder(model)
    assert decoder.decoder.constants.cache_block < STEPS
    native, fused = (
        engine.begin(encoded, encoded.attention_mask, STEPS, beams, True) for engine in (decoder, model.build_decoder())
    )
    sentences = count
    for length in range(STEPS):
        alive = beams if length else 1
        tokens = torch.randint(3, 31, (sentences, alive))
        torch.testing.assert_close(native(tokens), fused(tokens))
        torch.testing.assert_close(native.attention, fused.attention)
        beam_indices = torch.randint(0, alive, (sentences, beams))
        batch_indices = torch.tensor([sentences - 1, 0])  # the last one takes the first place
        for state in (native, fused):
            state.reorder(beam_indices)
            if length == 7 and count > 1:
                state.select(batch_indices)
        if length == 7 and count > 1:
            sentences = 2


@pytest.mark.parametrize("count", [3, 70])  # of 70 sentences the hypotheses that are far behind are deferred
@pytest.mark.parametrize("eos_token_ids", [[], [5], [5, 9]])
def test_topk_steps_ranks_as_the_logits_do(model, count, eos_token_ids):
    encoded = model.get_encoder()(*sources(count))
    decoder = NativeDecoder(model)
    ranked, plain = (decoder.begin(encoded, encoded.attention_mask, 5, 4) for _ in range(2))
    tokens, totals = torch.randint(3, 31, (count, 4)), 3 * torch.randn(count, 4).sort(descending=True).values
    eos = torch.tensor(eos_token_ids, dtype=torch.long)
    scores, beam_indices, next_tokens, _ = ranked.topk_steps(tokens, totals, 4, eos)
    logits = plain(tokens).view(count, 4, -1).log_softmax(dim=-1)
    everything = (totals[..., None] + logits).flatten(1)  # (sentences, beams * vocab_size)
    expected, index = everything.topk(4 * (1 + len(eos)))
    continues = ~torch.isin(index % 31, eos)
    is_wanted = continues.cumsum(dim=1) - continues.long() < 4
    assert scores.shape == expected.shape
    torch.testing.assert_close(scores[is_wanted], expected[is_wanted])
    assert torch.equal((beam_indices * 31 + next_tokens)[is_wanted], index[is_wanted])
    last = expected.masked_fill(~(continues & is_wanted), torch.inf).amin(dim=1, keepdim=True)
    if count == 70:  # some deferred hypotheses are needed, others not
        assert (totals[:, 2:] < last).any()
        assert (totals[:, 2:] > last).any()


@pytest.mark.parametrize("build", [FAMILIES[0].model, FAMILIES[1].model], ids=["Transformer", "RNN"])
def test_topk_steps_does_not_read_a_hypothesis_of_score_minus_infinity(monkeypatch, build):
    """A larger batch defers hypotheses, and those that it skips have undefined memory as their state."""
    take = BufferPool.take

    def take_nan(*arguments, **options):
        memory = take(*arguments, **options)
        memory.view(torch.uint8).fill_(255)  # NaN as floats
        return memory

    monkeypatch.setattr(BufferPool, "take", take_nan)
    decoder, eos = native_decoder(build(), "float32", "native"), torch.tensor([2])
    assert decoder is not None
    state = decoder.begin(decoder.encode(*sources(20)), None, 9, 4)
    state.topk_steps(torch.randint(3, 31, (20, 1)), torch.zeros(20, 1), 4, eos)
    state.reorder(torch.zeros(20, 4, dtype=torch.long))
    totals = torch.tensor([[0, -1, -2, -torch.inf]]).expand(20, -1)
    for count in (20, 20, 5):
        state.select(torch.arange(count))
        scores, beam_indices, _, _ = state.topk_steps(torch.randint(3, 31, (count, 4)), totals[:count], 4, eos)
        assert scores.isfinite().all()
        assert (beam_indices < 3).all()
        state.reorder(torch.arange(4).expand(count, -1))


def test_greedy_topk_steps_has_the_largest_logit(model):
    encoded = model.get_encoder()(*sources(3))
    decoder = NativeDecoder(model)
    ranked, plain = (decoder.begin(encoded, encoded.attention_mask, 5, 1) for _ in range(2))
    tokens = torch.randint(3, 31, (3, 1))
    scores, beam_indices, next_tokens, _ = ranked.topk_steps(tokens, None, 1, torch.tensor([], dtype=torch.long))
    expected, index = plain(tokens).max(dim=1)
    torch.testing.assert_close(scores[:, 0], expected)
    assert torch.equal(next_tokens[:, 0], index)
    assert not beam_indices.any()


def test_topk_steps_with_a_k_larger_than_the_vocabulary_returns_every_continuation():
    model = model_with()
    state = NativeDecoder(model).begin(model.get_encoder()(*sources(1)), None, 5, 2)
    tokens, totals = torch.tensor([[3, 4]]), torch.zeros(1, 2)
    scores, beam_indices, next_tokens, _ = state.topk_steps(tokens, totals, 100, torch.tensor([2]))
    assert scores.shape == (1, 2 * 31)
    assert sorted((beam_indices * 31 + next_tokens)[0].tolist()) == list(range(2 * 31))


@pytest.mark.parametrize("vocab_size", [31, 700])  # of 700 most are skipped by their block's maximum
@pytest.mark.parametrize("beams", [1, 4])
def test_beam_search_equivalence_to_torch(vocab_size, beams):
    model = model_with(vocab_size=vocab_size)
    ids, mask = sources(6)
    options = {"custom_generate": beam_search, "num_beams": beams, "max_new_tokens": 64, "alpha": 0.6}
    expected = model.generate(ids, attention_mask=mask, **options)
    native = NativeDecoder(model)
    encoded = native.encode(ids, mask)
    found = model.generate(ids, attention_mask=mask, encoder_outputs=encoded, decoder=native, **options)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("beams", [1, 3])
def test_output_scores_and_logits_equal_those_of_torch_and_change_no_token(beams):
    """Then the engine does not rank the tokens, and overwrites its logits at each step."""
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


def rounded_to_levels(inputs: torch.Tensor) -> torch.Tensor:
    """Each row to 256 levels from its minimum to its maximum, with 0 among them."""
    low, high = inputs.amin(dim=-1, keepdim=True).clamp(max=0), inputs.amax(dim=-1, keepdim=True).clamp(min=0)
    step = (high - low) / 255
    zero_point = (0.5 - low / step).floor()
    return ((inputs / step + zero_point + 0.5).floor().clamp(max=255) - zero_point) * step


def rounded_by_output(weight: torch.Tensor) -> torch.Tensor:
    scale = weight.abs().amax(dim=1, keepdim=True) / 127
    return (weight / scale).round() * scale


ROUNDING: dict[Precision, tuple] = {  # of weights, and of what they are multiplied with
    "int8": (rounded_by_output, rounded_to_levels),
    "bfloat16": (lambda weight: weight.bfloat16().float(), lambda inputs: inputs.bfloat16().float()),
}


@pytest.mark.parametrize("d_model", [16, 64])
@pytest.mark.parametrize("precision", ROUNDING)
def test_precision_equals_the_model_with_rounded_weights_and_inputs(d_model, precision):
    """Up to an input that lies between two levels and goes the other way."""
    model = model_with(d_model=d_model, d_ff=37, d_k=16)  # 1 / sqrt(16) does not change how the queries' weights round
    native = NativeDecoder(model, precision)
    embedding = model.model.encoder.embed_tokens.weight.clone()  # tied to the projection, but not rounded itself
    round_weight, round_inputs = ROUNDING[precision]
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear):
                module.weight = nn.Parameter(round_weight(module.weight))
                module.register_forward_pre_hook(lambda _, inputs: round_inputs(inputs[0]))
    model.model.encoder.embed_tokens.weight = model.model.decoder.embed_tokens.weight = nn.Parameter(embedding)
    ids, mask = sources(40)
    encoded = model.get_encoder()(ids, mask)
    tokens = torch.randint(3, 31, (40, 4))
    rows, row_mask = (part.repeat_interleave(4, dim=0) for part in (encoded.last_hidden_state, mask))
    logits = model(encoder_outputs=(rows,), attention_mask=row_mask, decoder_input_ids=tokens.view(-1, 1)).logits[:, 0]
    for found, expected in (
        (native.encode(ids, mask).last_hidden_state[mask.bool()], encoded.last_hidden_state[mask.bool()]),
        (native.begin(encoded, mask, 3, 4)(tokens), logits),
    ):
        assert ((found - expected).abs() < 1e-4).float().mean() > 0.9
        torch.testing.assert_close(found, expected, atol=0.1, rtol=0)


def test_source_of_padding_alone_has_finite_logits():
    native = NativeDecoder(model_with())
    mask = torch.tensor([[1, 1, 0], [0, 0, 0]])
    encoded = native.encode(torch.tensor([[5, 6, 0], [0, 0, 0]]), mask)
    assert native.begin(encoded, mask, 5, 1)(torch.tensor([[1], [1]])).isfinite().all()


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("beams", [1, 4])
@pytest.mark.parametrize("where", ["lm_head.bias", "model.decoder.layers.1.feed_forward.linear_1.bias"])
def test_nan_ends_the_search_with_an_error(precision, beams, where):
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


def test_token_with_an_infinite_negative_bias_is_never_chosen():
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
def test_result_does_not_depend_on_the_number_of_threads(threads):
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


def test_result_does_not_depend_on_the_width_of_vectors(tmp_path, monkeypatch):
    """Without -march=native the compiler assumes the oldest CPU."""
    model = model_with(d_model=64, num_heads=2, d_ff=37)
    ids, mask = sources(5)
    wide = {precision: NativeDecoder(model, precision) for precision in PRECISIONS}
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(compiler, "FLAGS", [flag for flag in compiler.FLAGS if flag != "-march=native"])
    compiler.library.cache_clear()
    try:
        for precision, expected in wide.items():
            found = NativeDecoder(model, precision)
            close = {
                "atol": 1e-5 if precision == "float32" else 1e-3,
                "rtol": 0,
            }  # an input may round the other way
            torch.testing.assert_close(found.encode(ids, mask), expected.encode(ids, mask), **close)
    finally:
        compiler.library.cache_clear()


def test_target_longer_than_learned_positions_is_an_error():
    model = model_with(position_embedding="learned", max_position_embeddings=10)
    encoded = model.get_encoder()(*sources(1))
    for decoder in (NativeDecoder(model), model.build_decoder()):
        with pytest.raises(ValueError, match="longer than the learned positions reach"):
            decoder.begin(encoded, None, 11, 1)


def test_parallel_searches_on_one_decoder():
    """Each has its own buffers, and reused ones leave no trace."""
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


def test_token_outside_the_vocabulary_is_an_error():
    native = NativeDecoder(model_with())
    state = native.begin(native.encode(*sources(2)), None, 5, 1)
    for token in (31, -1):
        with pytest.raises(IndexError, match=f"token {token} is not in a vocabulary of 31"):
            state(torch.tensor([[3], [token]]))


def test_native_decoder_implements_the_protocol():
    decoder = NativeDecoder(model_with())
    state = decoder.begin(decoder.encode(*sources(1)), None, 5, 1)
    assert isinstance(state, SupportsTopK)
    assert isinstance(state, SupportsSelect)
    assert decoder.engine == "native"
    assert decoder.parallel_batches == torch.get_num_threads()
