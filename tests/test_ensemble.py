# SPDX-License-Identifier: Apache-2.0
"""Ensembles against a computation by hand: each member's forward pass of the whole target, and the mean of them."""

import pytest
import torch

from tests.families import FAMILIES, tiny_batch
from vanilla_transformer.ensemble import EnsembleDecoder, check_members
from vanilla_transformer.generation import beam_search
from vanilla_transformer.inference.native.transformer import NativeDecoder

SEARCH = {"custom_generate": beam_search, "num_beams": 4, "max_new_tokens": 7, "return_dict_in_generate": True}

ONE_VOCABULARY = [family for family in FAMILIES[1:] if family.config().decoder_vocab_size is None]


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in tiny_batch().items() if name != "labels"}


def search(model, batch, decoder, **options):
    encoded = decoder.encode(**batch)
    return model.generate(**batch, **SEARCH, decoder=decoder, encoder_outputs=encoded, **options)


@torch.no_grad()
def log_probs_of(model, batch, sequences: torch.Tensor) -> torch.Tensor:
    """By one forward pass: `(sentences, target_length, vocab_size)`."""
    return model(**batch, decoder_input_ids=sequences[:, :-1]).logits.log_softmax(dim=-1)


def sums(log_probs: torch.Tensor, sequences: torch.Tensor, model) -> torch.Tensor:
    """Log-probability of each sequence up to its first EOS token, `(sentences)`."""
    tokens = sequences[:, 1:]
    is_end = tokens == model.config.eos_token_id
    is_real = is_end.cumsum(dim=1) - is_end.int() == 0
    return (log_probs.gather(2, tokens[..., None])[..., 0] * is_real).sum(dim=1)


@pytest.mark.parametrize("mean", ["probabilities", "log_probabilities"])
@pytest.mark.parametrize("family", ONE_VOCABULARY, ids=lambda family: family.name)
def test_scores_of_two_models_equal_those_by_hand(family, mean, batch):
    models = [FAMILIES[0].model(torch.float64), family.model(torch.float64)]
    decoder = EnsembleDecoder([model.build_decoder() for model in models], [3, 1], mean)
    found = search(models[0], batch, decoder, alpha=0.0)
    first, second = (log_probs_of(model, batch, found.sequences) for model in models)
    if mean == "probabilities":
        expected = (0.75 * first.exp() + 0.25 * second.exp()).log()
    else:
        expected = (0.75 * first + 0.25 * second).log_softmax(dim=-1)
    torch.testing.assert_close(found.sequences_scores.double(), sums(expected, found.sequences, models[0]))
    alone = [search(model, batch, model.build_decoder(), alpha=0.0).sequences_scores for model in models]
    assert all((found.sequences_scores - scores).abs().max() > 1e-2 for scores in alone)


def test_native_and_torch_members_find_the_same(batch):
    models = [FAMILIES[0].model(), FAMILIES[1].model()]
    second = models[1].build_decoder()
    native = EnsembleDecoder([NativeDecoder(models[0]), second])
    assert (native.engine, native.parallel_batches) == ("torch", 1)
    found = search(models[0], batch, native)
    expected = search(models[0], batch, EnsembleDecoder([models[0].build_decoder(), second]))
    assert torch.equal(found.sequences, expected.sequences)
    torch.testing.assert_close(found.sequences_scores, expected.sequences_scores, rtol=0, atol=1e-5)


@pytest.mark.parametrize("new_decoder", [NativeDecoder, lambda model: model.build_decoder()])
def test_ensemble_of_one_is_the_model_to_the_bit(batch, new_decoder):
    model = FAMILIES[0].model()
    found = search(model, batch, EnsembleDecoder([new_decoder(model)]))
    expected = search(model, batch, new_decoder(model))
    assert torch.equal(found.sequences, expected.sequences)
    assert torch.equal(found.sequences_scores, expected.sequences_scores)


def test_attention_is_the_weighted_mean_of_the_members(batch):
    models = [FAMILIES[0].model(torch.float64), FAMILIES[1].model(torch.float64)]
    decoders = [model.build_decoder() for model in models]
    mask, tokens = batch["attention_mask"], torch.full((3, 1), 5)

    def attention(decoder) -> torch.Tensor:
        state = decoder.begin(decoder.encode(**batch), mask, 4, 1, output_attentions=True)
        state(tokens)
        return state.attention

    first, second = map(attention, decoders)
    found = attention(EnsembleDecoder(decoders, [1, 3]))
    torch.testing.assert_close(found, 0.25 * first + 0.75 * second)


def test_the_published_decoding_takes_an_ensemble(batch, tmp_path):
    model, other = FAMILIES[0].model(torch.float64), FAMILIES[1].model(torch.float64)
    model.save_pretrained(tmp_path)
    expected = search(model, batch, EnsembleDecoder([model.build_decoder(), other.build_decoder()]))
    options = SEARCH | {"custom_generate": str(tmp_path), "trust_remote_code": True}
    found = model.generate(batch["input_ids"], ensemble=[other], **options)
    assert torch.equal(found.sequences, expected.sequences)
    assert torch.equal(found.sequences_scores, expected.sequences_scores)
    alone = model.generate(batch["input_ids"], **options)
    assert (found.sequences_scores - alone.sequences_scores).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("weights", "mean", "said"),
    [
        ([1.0], "probabilities", "weights has 1 values for 2 models; give one for each"),
        ([1.0, 0.0], "probabilities", r"weights=\[1.0, 0.0\] must be greater than 0, and finite"),
        (None, "logits", "mean='logits' must be one of probabilities, log_probabilities"),
    ],
)
def test_invalid_weights_and_means_are_refused(weights, mean, said: str):
    decoder = FAMILIES[0].model().build_decoder()
    with pytest.raises(ValueError, match=said):
        EnsembleDecoder([decoder, decoder], weights, mean)


def test_encoder_outputs_of_one_model_are_refused(batch):
    model = FAMILIES[0].model()
    with pytest.raises(ValueError, match=r"give encoder_outputs=decoder.encode\(input_ids, mask\)"):
        model.generate(**batch, **SEARCH, decoder=EnsembleDecoder([model.build_decoder()] * 2))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"vocab_size": 32}, "vocab_size=32, not 31"),
        ({"decoder_start_token_id": 5}, "decoder_start_token_id=5, not 1"),
    ],
)
def test_members_with_other_vocabularies_are_refused(changes, said: str):
    with pytest.raises(ValueError, match=f"members of an ensemble share one vocabulary: {said}"):
        check_members([FAMILIES[0].model(), FAMILIES[0].model(**changes)])
