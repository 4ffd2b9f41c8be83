# SPDX-License-Identifier: Apache-2.0
"""The RNN's decoder laid out for decoding: the same function as the module, whatever becomes of the hypotheses."""

from dataclasses import replace

import pytest
import torch
from transformers.modeling_outputs import BaseModelOutput

from tests.families import CROSS_ATTENTION, FAMILIES, PAD, START, Family
from vanilla_transformer import RNNSeq2SeqConfig
from vanilla_transformer.generation import beam_search

RNNS = {item.name.removeprefix("rnn_seq2seq-"): item for item in FAMILIES if item.config_class is RNNSeq2SeqConfig}


def varied(name: str, **changes) -> Family:
    return replace(RNNS[name], tiny=RNNS[name].tiny | changes)


VARIANTS = RNNS | {
    "the readout is the state, and the lowest layer has a residual": varied(
        "sutskever", embedding_size=10, residual=True
    ),
    "Bahdanau's with LSTMs and residuals": varied("bahdanau", cell="lstm", residual=True),
    "JoeyNMT's": varied("luong", bridge="top", readout_bias=True, num_decoder_layers=3),
    "Luong's with GRUs": varied("luong", cell="gru", num_decoder_layers=1),
    "tanh, feeding the context": varied("bahdanau", cell="tanh", attention="multiplicative"),
    "the lowest layer has a residual over what is fed": varied("luong", hidden_size=24, residual=True),
}


@pytest.fixture(params=RNNS.values(), ids=list(RNNS))
def family(request) -> Family:
    return request.param


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    """Of all kinds: padded at the end, at the beginning, not at all, in the middle, and nothing but padding."""
    torch.manual_seed(2)
    source = torch.randint(3, 31, (5, 8))
    source[0, 5:] = source[1, :3] = source[3, 2:5] = source[4] = PAD
    return {"input_ids": source, "attention_mask": source.ne(PAD).long()}


class Compared:
    """Steps beside the module, which reads every hypothesis from its beginning."""

    def __init__(self, model, batch: dict[str, torch.Tensor], output_attentions: bool):
        self.model, self.batch = model, batch
        self.mask = batch["attention_mask"]
        encoded = model.get_encoder()(**batch)
        self.steps = model.build_decoder().begin(encoded, self.mask, 20, beams=4, output_attentions=output_attentions)
        self.targets = torch.empty(len(self.mask), 1, 0, dtype=torch.long)  # (sentences, beams, length)

    def read(self) -> tuple[float, float]:
        """Read a token of each hypothesis; how far logits and attention are from the module's, at most."""
        sentences, beams = self.targets.shape[:2]
        tokens = torch.randint(3, 31, (sentences, beams))
        self.targets = torch.cat([self.targets, tokens[..., None]], dim=2)
        logits = self.steps(tokens)
        sources = {name: tensor.repeat_interleave(beams, dim=0) for name, tensor in self.batch.items()}
        with torch.no_grad():
            expected = self.model(**sources, decoder_input_ids=self.targets.flatten(0, 1), output_attentions=True)
        assert logits.shape == (sentences * beams, expected.logits.shape[-1])
        apart = (logits - expected.logits[:, -1]).abs().max().item()
        if self.steps.attention is None:
            return apart, 0.0
        assert self.steps.attention.shape == (sentences, beams, 8)
        weights = expected.cross_attentions[-1][:, 0, -1]  # (sentences * beams, source_length)
        return apart, (self.steps.attention.flatten(0, 1) - weights).abs().max().item()

    def reorder(self, parents: list[int]) -> None:
        """The same in each sentence, but turned by its number."""
        sentences, beams = self.targets.shape[:2]
        turned = [[(parent + i) % beams for parent in parents] for i in range(sentences)]
        index = torch.tensor(turned)
        self.targets = torch.stack([own[which] for own, which in zip(self.targets, index, strict=True)])
        self.steps.reorder(index)

    def select(self, rows: list[int]) -> None:
        self.batch = {name: tensor[rows] for name, tensor in self.batch.items()}
        self.targets = self.targets[rows]
        self.steps.select(torch.tensor(rows))


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=list(VARIANTS))
def test_steps_are_those_of_one_forward_pass(variant, batch):
    has_attention = CROSS_ATTENTION not in variant.lacks
    compared = Compared(variant.model(torch.float64), batch, output_attentions=has_attention)
    apart = [compared.read(), compared.read()]
    compared.reorder([0, 0, 0])
    apart += [compared.read()]
    compared.reorder([2, 0, 0, 1])  # wider
    apart += [compared.read()]
    compared.select([4, 1, 3, 0])  # the second stays where it is
    apart += [compared.read()]
    compared.reorder([3, 1])  # narrower
    apart += [compared.read()]
    compared.select([0, 2])
    compared.reorder([1, 1, 0])
    apart += [compared.read(), compared.read()]
    assert max(logits for logits, _ in apart) < 1e-10
    assert max(weights for _, weights in apart) < 1e-10
    assert (compared.steps.attention is not None) == has_attention


def test_reorder_before_the_first_token(family, batch):
    compared = Compared(family.model(torch.float64), batch, output_attentions=False)
    compared.reorder([0, 0])
    assert compared.read()[0] < 1e-10


def test_source_mask_is_the_encoders_where_none_is_given(family, batch):
    model = family.model(torch.float64)
    encoded, start = model.get_encoder()(**batch), torch.full((5, 1), START)
    decoder = model.build_decoder()
    expected = decoder.begin(encoded, batch["attention_mask"], 5, beams=1)(start)
    assert torch.equal(decoder.begin(encoded, None, 5, beams=1)(start), expected)


def test_encoder_outputs_are_not_modified(family, batch):
    model = family.model(torch.float64)
    encoded = model.get_encoder()(**batch)
    before = {name: tensor.clone() for name, tensor in encoded.items()}
    steps = model.build_decoder().begin(encoded, encoded.attention_mask, 5, beams=1)
    steps(torch.full((5, 1), START))
    steps.select(torch.tensor([3, 4, 1]))
    steps(torch.full((3, 1), START))
    assert all(torch.equal(encoded[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize(("beams", "kept"), [(1, 1), (4, 3)], ids=["greedy", "beams"])
def test_search_finds_what_the_module_finds(family, batch, beams, kept, monkeypatch):
    model = family.model(torch.float64)
    options = {"custom_generate": beam_search, "num_beams": beams, "num_return_sequences": kept, "max_new_tokens": 12}
    given = model.generate(**batch, **options, decoder=model.build_decoder())
    made_for_the_call = model.generate(**batch, **options)
    monkeypatch.setattr(type(model), "can_build_decoder", lambda self: False)
    expected = model.generate(**batch, **options, decoder=None)
    assert torch.equal(given, expected)
    assert torch.equal(made_for_the_call, expected)


@pytest.mark.parametrize("beams", [1, 4])
def test_batch_and_padding_invariance(family, batch, beams):
    model = family.model(torch.float64)
    options = {"custom_generate": beam_search, "num_beams": beams, "max_new_tokens": 12}
    decoder = model.build_decoder()
    together = model.generate(**batch, **options, decoder=decoder)
    for i in range(4):  # the last has nothing to be without its padding
        alone = batch["input_ids"][i : i + 1, batch["attention_mask"][i].bool()]
        found = model.generate(alone, **options, decoder=decoder)[0]
        assert torch.equal(together[i, : len(found)], found)
        assert not together[i, len(found) :].any()  # PAD


def far(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found.float() - expected.float()).norm() / expected.float().norm()).item()


@pytest.mark.parametrize(
    ("precision", "dtype", "at_most"),
    [("float32", torch.float32, 1e-5), ("bfloat16", torch.bfloat16, 0.03), ("int8", torch.float32, 0.06)],
    ids=["float32", "bfloat16", "int8"],
)
@pytest.mark.parametrize("sentences", [1, 2])
def test_each_precision_is_close_to_the_module(family, precision, dtype, at_most, sentences):
    # Large enough for layouts of their own.
    model = family.model(torch.float32, vocab_size=2000, embedding_size=96, hidden_size=128)
    ids, start = torch.randint(3, 2000, (sentences, 7)), torch.full((sentences, 1), START)
    with torch.no_grad():
        expected = model(ids, decoder_input_ids=start).logits[:, 0]
    model = model.to(dtype)
    with torch.no_grad():
        encoded = model.get_encoder()(ids)
    found = model.build_decoder(precision).begin(encoded, None, 5, beams=1)(start)
    assert far(found, expected) < at_most


@pytest.mark.parametrize("beams", [1, 3])
def test_int8_decodes(family, batch, beams):
    model = family.model()
    decoder = model.build_decoder("int8")
    options = {"num_beams": beams, "max_new_tokens": 6, "custom_generate": beam_search}
    found = model.generate(**batch, **options, decoder=decoder)
    assert found.shape[0] == 5
    assert found.max() < 31


def test_output_attentions_without_attention_is_refused(batch):
    model = RNNS["sutskever"].model()
    decoder, encoded = model.build_decoder(), model.get_encoder()(**batch)
    with pytest.raises(ValueError, match="attention='none'"):
        decoder.begin(encoded, batch["attention_mask"], 5, beams=1, output_attentions=True)


def test_encoder_outputs_of_another_kind_are_refused(family, batch):
    model = family.model()
    other = BaseModelOutput(last_hidden_state=model.get_encoder()(**batch).last_hidden_state)
    with pytest.raises(ValueError, match="RNNSeq2SeqEncoderOutput.*not BaseModelOutput"):
        model.build_decoder().begin(other, batch["attention_mask"], 5, beams=1)


def test_hooks_prevent_building_a_decoder(family):
    model = family.model()
    model.model.decoder.stack.layers[0].register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match="build_decoder needs the decoder as this package made it"):
        model.build_decoder()
