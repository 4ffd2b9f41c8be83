# SPDX-License-Identifier: Apache-2.0
"""The native engine for RNNs against the modules that it computes, and its search against PyTorch's."""

import pytest
import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutput

from tests.families import CROSS_ATTENTION, FAMILIES, PAD, START, Family
from tests.test_recurrent_decoder import RNNS, VARIANTS, varied
from vanilla_transformer.decoder import SupportsSelect, SupportsTopK
from vanilla_transformer.generation import DecodingError, beam_search
from vanilla_transformer.inference.native.rnn import NativeRecurrentDecoder
from vanilla_transformer.packed_linear import PRECISIONS

MODELS = VARIANTS | {
    "widths beyond a vector's": varied("luong", embedding_size=40, hidden_size=67, residual=True, vocab_size=700),
    "one layer, untied, with a bias": varied("at_once", num_layers=1, num_decoder_layers=1, tie_word_embeddings=False),
}


@pytest.fixture(params=MODELS.values(), ids=MODELS)
def family(request) -> Family:
    return request.param


def sources(count: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    """Padded at the end, at the beginning, in the middle, and nothing but padding."""
    ids = torch.randint(3, 31, (count, 8))
    if count >= 5:
        ids[0, 5:] = ids[1, :3] = ids[3, 2:5] = ids[4] = PAD
    return ids, ids.ne(PAD).long()


@pytest.mark.parametrize("count", [1, 5])
def test_encoder_equivalence(family, count):
    model, (ids, mask) = family.model(), sources(count)
    with torch.no_grad():
        expected = model.get_encoder()(ids, mask)
    found = NativeRecurrentDecoder(model).encode(ids, mask)
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize(("count", "beams"), [(1, 1), (5, 4)])
def test_decoder_equivalence_of_each_step(family, count, beams):
    """With beams that are reordered, and sentences that are removed."""
    model, has_attention = family.model(), CROSS_ATTENTION not in family.lacks
    with torch.no_grad():
        encoded = model.get_encoder()(*sources(count))
    native, expected = (
        decoder.begin(encoded, None, 20, beams, has_attention)
        for decoder in (NativeRecurrentDecoder(model), model.build_decoder())
    )
    sentences = count
    for length in range(8):
        alive = beams if length else 1
        tokens = torch.randint(3, 31, (sentences, alive))
        torch.testing.assert_close(native(tokens), expected(tokens), atol=1e-5, rtol=1e-5)
        if has_attention:
            torch.testing.assert_close(native.attention, expected.attention, atol=1e-5, rtol=1e-5)
        beam_indices = torch.randint(0, alive, (sentences, beams))
        for state in (native, expected):
            state.reorder(beam_indices)
            if length == 4 and count > 1:
                state.select(torch.tensor([4, 1, 0]))
        if length == 4 and count > 1:
            sentences = 3


@pytest.mark.parametrize("beams", [1, 4])
def test_search_equivalence_to_torch(family, beams):
    model, (ids, mask) = family.model(), sources()
    options = {"num_beams": beams, "max_new_tokens": 12, "alpha": 0.6, "return_dict_in_generate": True}
    options |= {"custom_generate": beam_search, "attention_mask": mask}
    expected = model.generate(ids, **options, decoder=model.build_decoder())
    native = NativeRecurrentDecoder(model)
    found = model.generate(ids, **options, decoder=native, encoder_outputs=native.encode(ids, mask))
    assert torch.equal(found.sequences, expected.sequences)
    if beams > 1:
        torch.testing.assert_close(found.sequences_scores, expected.sequences_scores, atol=1e-4, rtol=0)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("beams", [1, 4])
def test_batch_and_order_invariance(family, beams, precision):
    """Scores agree up to rounding, where an input of a product may round to another level."""
    model, (ids, mask) = family.model(), sources(20)
    decoder, order = NativeRecurrentDecoder(model, precision), torch.randperm(20)
    options = {"custom_generate": beam_search, "num_beams": beams, "max_new_tokens": 8, "output_scores": True}
    options |= {"return_dict_in_generate": True, "decoder": decoder}

    def log_probs(rows: torch.Tensor) -> torch.Tensor:
        """The logits of the first token, `(rows, vocab_size)`."""
        own = {"attention_mask": mask[rows], "encoder_outputs": decoder.encode(ids[rows], mask[rows])}
        return model.generate(ids[rows], **own, **options).scores[0][::beams].log_softmax(dim=-1)

    together = log_probs(torch.arange(20))
    tolerance = 1e-5 if precision == "float32" else 0.05
    torch.testing.assert_close(log_probs(order), together[order], atol=tolerance, rtol=0)
    for i in range(3):
        torch.testing.assert_close(log_probs(torch.tensor([i]))[0], together[i], atol=tolerance, rtol=0)


@pytest.mark.parametrize("eos_token_ids", [[], [5, 9]])
@pytest.mark.parametrize("count", [5, 20])  # with 20 sentences, hypotheses far behind are deferred
def test_topk_steps_ranks_as_the_logits_do(family, count, eos_token_ids):
    model = family.model()
    decoder = NativeRecurrentDecoder(model)
    encoded = decoder.encode(*sources(count))
    ranked, plain = (decoder.begin(encoded, None, 9, 4) for _ in range(2))
    vocab_size, eos = decoder.projection.outputs, torch.tensor(eos_token_ids, dtype=torch.long)
    for state in (ranked, plain):
        state.reorder(torch.zeros(count, 4, dtype=torch.long))
    for _ in range(3):
        tokens, totals = torch.randint(3, 31, (count, 4)), 3 * torch.randn(count, 4).sort(descending=True).values
        scores, beam_indices, next_tokens, _ = ranked.topk_steps(tokens, totals, 4, eos)
        everything = (totals[..., None] + plain(tokens).view(count, 4, -1).log_softmax(dim=-1)).flatten(1)
        expected, index = everything.topk(4 * (1 + len(eos)))
        continues = ~torch.isin(index % vocab_size, eos)
        is_wanted = continues.cumsum(dim=1) - continues.long() < 4
        torch.testing.assert_close(scores[is_wanted], expected[is_wanted], atol=1e-5, rtol=1e-5)
        assert torch.equal((beam_indices * vocab_size + next_tokens)[is_wanted], index[is_wanted])
        parents = index[continues & is_wanted].view(count, 4) // vocab_size  # hypotheses that are read, or have left
        for state in (ranked, plain):
            state.reorder(parents)


def test_output_scores_equal_those_of_torch(family):
    """Then the engine does not rank the tokens, and no sentence leaves the batch."""
    model, (ids, mask) = family.model(), sources()
    options = {"custom_generate": beam_search, "num_beams": 3, "max_new_tokens": 6, "return_dict_in_generate": True}
    options |= {"output_scores": True, "attention_mask": mask}
    expected = model.generate(ids, **options)
    found = model.generate(ids, **options, decoder=NativeRecurrentDecoder(model))
    assert torch.equal(found.sequences, expected.sequences)
    torch.testing.assert_close(found.scores, expected.scores, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("precision", "at_most"), [("bfloat16", 0.02), ("int8", 0.05)])
def test_each_precision_is_close_to_the_module(family, precision, at_most):
    model, (ids, mask) = family.model(), sources(4)
    with torch.no_grad():
        expected = model(ids, attention_mask=mask, decoder_input_ids=torch.full((4, 1), START)).logits[:, 0]
    native = NativeRecurrentDecoder(model, precision)
    found = native.begin(native.encode(ids, mask), mask, 5, 1)(torch.full((4, 1), START))
    assert 1e-6 < (found - expected).norm() / expected.norm() < at_most


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("beams", [1, 4])
@pytest.mark.parametrize("where", ["lm_head.bias", "model.decoder.stack.layers.1.recurrence.bias_hh_l0"])
def test_nan_ends_the_search_with_an_error(precision, beams, where):
    model, (ids, mask) = RNNS["at_once"].model(), sources()
    model.lm_head.bias = nn.Parameter(torch.zeros(37))
    with torch.no_grad():
        model.get_parameter(where)[4] = torch.nan
    options = {"custom_generate": beam_search, "num_beams": beams, "max_new_tokens": 9, "attention_mask": mask}
    with pytest.raises(DecodingError, match="NaN"):
        model.generate(ids, **options, decoder=NativeRecurrentDecoder(model, precision))


@pytest.mark.parametrize("threads", [1, 3])
def test_result_does_not_depend_on_the_number_of_threads(family, threads):
    model, (ids, mask) = family.model(), sources()
    with torch.no_grad():
        expected = model(ids, attention_mask=mask, decoder_input_ids=torch.full((5, 1), START)).logits[:, 0]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        native = NativeRecurrentDecoder(model)
        found = native.begin(native.encode(ids, mask), mask, 5, 1)(torch.full((5, 1), START))
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_output_attentions_without_attention_is_refused():
    decoder = NativeRecurrentDecoder(RNNS["sutskever"].model())
    with pytest.raises(ValueError, match="attention='none'"):
        decoder.begin(decoder.encode(*sources()), None, 5, 1, output_attentions=True)


def test_encoder_outputs_of_another_kind_are_refused():
    decoder = NativeRecurrentDecoder(RNNS["luong"].model())
    other = BaseModelOutput(last_hidden_state=decoder.encode(*sources()).last_hidden_state)
    with pytest.raises(ValueError, match="RNNSeq2SeqEncoderOutput.*not BaseModelOutput"):
        decoder.begin(other, None, 5, 1)


def test_token_outside_the_vocabulary_is_an_error():
    native = NativeRecurrentDecoder(RNNS["at_once"].model())
    state = native.begin(native.encode(*sources(2)), None, 5, 1)
    for token in (37, -1):
        with pytest.raises(IndexError, match=f"token {token} is not in a vocabulary of 37"):
            state(torch.tensor([[3], [token]]))


def test_later_changes_of_the_bridge_have_no_effect():
    model = FAMILIES[1].model()
    native = NativeRecurrentDecoder(model)
    encoded, start = native.encode(*sources()), torch.full((5, 1), START)
    before = native.begin(encoded, None, 5, 1)(start).clone()
    with torch.no_grad():
        for parameter in model.model.decoder.bridge.parameters():
            parameter.zero_()
    assert torch.equal(native.begin(encoded, None, 5, 1)(start), before)


def test_native_decoder_implements_the_protocol():
    decoder = NativeRecurrentDecoder(RNNS["luong"].model())
    state = decoder.begin(decoder.encode(*sources(1)), None, 5, 1)
    assert isinstance(state, SupportsTopK)
    assert isinstance(state, SupportsSelect)
    assert decoder.engine == "native"
    assert decoder.parallel_batches == torch.get_num_threads()
