# SPDX-License-Identifier: Apache-2.0
"""The `Decoder` protocol: every engine finds what transformers' own search finds, and a further engine is one class."""

from typing import Any

import pytest
import torch
from transformers import GenerationConfig, MarianConfig, MarianMTModel
from transformers.modeling_outputs import BaseModelOutput

from tests.families import END, FAMILIES, START, tiny_batch
from vanilla_transformer import Translator
from vanilla_transformer.data.tokenizer import TokenizerConfig, train_tokenizer
from vanilla_transformer.decoder import ModelDecoder, SupportsSelect, compact_rows
from vanilla_transformer.generation import beam_search
from vanilla_transformer.inference.native.engine import fast_decoder, native_decoder
from vanilla_transformer.inference.translate import translate_lines
from vanilla_transformer.packed_linear import PackedLinear

ENGINES = {
    "model": ModelDecoder,
    "build_decoder": lambda model: model.build_decoder(),
    "native": lambda model: native_decoder(model, "float32", "native"),
}
ENGINES_OF_FAMILIES = [(engine, item) for engine in ENGINES for item in FAMILIES]


@pytest.fixture
def source() -> dict[str, torch.Tensor]:
    batch = tiny_batch()
    return {name: batch[name] for name in ("input_ids", "attention_mask")}


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize(("engine", "family"), ENGINES_OF_FAMILIES, ids=lambda value: getattr(value, "name", value))
def test_every_engine_finds_what_transformers_finds(engine, family, source, beams):
    model = family.model(torch.float32 if engine == "native" else torch.float64)
    decoder = ENGINES[engine](model)
    options = {"num_beams": beams, "max_new_tokens": 7}
    expected = model.generate(**source, **options)
    own = {"custom_generate": beam_search, "rule": "transformers", "decoder": decoder}
    found = model.generate(**source, **options, **own, encoder_outputs=decoder.encode(**source))
    assert [row[: row.index(END) + 1] if END in row else row for row in found.tolist()] == [
        row[: row.index(END) + 1] if END in row else row for row in expected.tolist()
    ]


@pytest.mark.parametrize(("engine", "family"), ENGINES_OF_FAMILIES, ids=lambda value: getattr(value, "name", value))
def test_steps_are_those_of_one_forward_pass(engine, family, source):
    model = family.model()
    decoder = ENGINES[engine](model)
    state = decoder.begin(decoder.encode(**source), source["attention_mask"], max_length=5, beams=2)
    targets = torch.tensor([[[START, 5, 9, 7], [START, 6, 8, 4]]] * 3)  # (sentences, beams, length)
    state.reorder(torch.zeros(3, 2, dtype=torch.long))  # two hypotheses from the one at the beginning
    for length in range(1, 5):
        logits = state(targets[:, :, length - 1])
        assert logits.shape == (6, family.target_vocab_size)
    repeated = {name: tensor.repeat_interleave(2, dim=0) for name, tensor in source.items()}
    with torch.no_grad():
        expected = model(**repeated, decoder_input_ids=targets.flatten(0, 1)).logits[:, -1]
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


def marian() -> MarianMTModel:
    sizes = {"d_model": 16, "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 16}
    sizes |= {"decoder_ffn_dim": 16, "encoder_layers": 1, "decoder_layers": 1, "max_position_embeddings": 64}
    tokens = {"pad_token_id": 0, "eos_token_id": END, "decoder_start_token_id": START, "forced_eos_token_id": None}
    return MarianMTModel(MarianConfig(vocab_size=31, init_std=1.0, **sizes, **tokens)).eval()


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("beams", [1, 3])
def test_models_of_other_packages_decode_by_their_own_forward_pass(source, beams, given):
    model = marian()
    model.generation_config = GenerationConfig(pad_token_id=30, eos_token_id=END, decoder_start_token_id=START)
    options = {"num_beams": beams, "max_new_tokens": 7}
    expected = model.generate(**source, **options)
    own: dict[str, Any] = {"decoder": ModelDecoder(model)} if given else {}
    found = model.generate(**source, **options, **own, custom_generate=beam_search, rule="transformers")
    assert torch.equal(found, expected)


class Recomputing:
    """An engine of the simplest kind: it reads every target anew at each step."""

    engine, parallel_batches = "recomputing", 2

    def __init__(self, model):
        self.model, self.encoded = model, 0

    def encode(self, input_ids, attention_mask):
        self.encoded += len(input_ids)
        with torch.no_grad():
            return BaseModelOutput(self.model.get_encoder()(input_ids, attention_mask=attention_mask)[0])

    def begin(self, encoder_outputs, attention_mask, max_length, beams, output_attentions=False):
        return RecomputingState(self.model, encoder_outputs.last_hidden_state, attention_mask)


class RecomputingState:
    attention = None

    def __init__(self, model, encoded, mask):
        self.model, self.encoded, self.mask = model, encoded, mask
        self.targets = torch.empty(len(encoded), 1, 0, dtype=torch.long)

    def __call__(self, tokens):
        self.targets = torch.cat([self.targets.expand(-1, tokens.shape[1], -1), tokens[..., None]], dim=2)
        repeat = {"repeats": tokens.shape[1], "dim": 0}
        encoded = BaseModelOutput(self.encoded.repeat_interleave(**repeat))
        mask = self.mask.repeat_interleave(**repeat)
        ids = self.targets.flatten(0, 1)
        with torch.no_grad():
            return self.model(encoder_outputs=encoded, attention_mask=mask, decoder_input_ids=ids).logits[:, -1]

    def reorder(self, beam_indices):
        self.targets = self.targets.gather(1, beam_indices[..., None].expand(-1, -1, self.targets.shape[2]))


@pytest.mark.parametrize("beams", [1, 3])
def test_a_further_engine_is_one_class_for_search_and_translation(beams):
    words = [f"w{i}" for i in range(27)]
    tokenizer = train_tokenizer([" ".join(words)], TokenizerConfig(kind="symbols"))
    model = FAMILIES[0].model(pad_token_id=0, eos_token_id=END, decoder_start_token_id=START)
    lines = [" ".join(words[i : i + 1 + i % 5]) for i in range(20)] * 2
    options = {"num_beams": beams, "max_new_tokens": 6}
    decoder = Recomputing(model)
    expected = translate_lines(model, tokenizer, lines, max_batch_tokens=300, **options)
    assert translate_lines(model, tokenizer, lines, max_batch_tokens=300, decoder=decoder, **options) == [
        [
            type(translation)(translation.text, translation.score and pytest.approx(translation.score, abs=1e-4))
            for translation in best
        ]
        for best in expected
    ]
    assert decoder.encoded == len(lines)
    translator = Translator(model, tokenizer, decoder)
    assert translator.engine == "recomputing"
    assert translator.translate(lines, **options) == [best[0].text for best in expected]


def test_sentences_leave_the_batch_of_those_engines_alone_that_can_select(source):
    model = FAMILIES[0].model()
    states = {
        name: make(model).begin(model.get_encoder()(**source), source["attention_mask"], 5, beams=2)
        for name, make in ENGINES.items()
    }
    found = {name: isinstance(state, SupportsSelect) for name, state in states.items()}
    assert found == {"model": False, "build_decoder": True, "native": True}


@pytest.mark.parametrize("family", [FAMILIES[0], FAMILIES[2]], ids=lambda family: family.name)
def test_int8_quantizes_a_copy_of_the_encoder(family, source):
    model = family.model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    decoder, plain = model.build_decoder("int8"), model.build_decoder()
    torch.testing.assert_close(dict(model.state_dict()), before)
    assert plain.encoder is model.get_encoder()
    has_linears = any(isinstance(module, torch.nn.Linear) for module in plain.encoder.modules())
    assert any(isinstance(module, PackedLinear) for module in decoder.encoder.modules()) == has_linears
    found, expected = (item.encode(**source).last_hidden_state for item in (decoder, plain))
    assert (found - expected).norm() < 0.1 * expected.norm()


def test_where_no_engine_can_be_built_the_model_decodes(monkeypatch):
    assert isinstance(fast_decoder(marian()), ModelDecoder)
    model = FAMILIES[0].model()
    model.model.decoder.layers[0].register_forward_hook(lambda *_: None)
    assert isinstance(fast_decoder(model), ModelDecoder)
    with pytest.raises(ValueError, match="build_decoder needs the decoder as this package made it"):
        fast_decoder(model, "int8")
    with pytest.raises(ValueError, match="precision='int8' is for models of this package.*'marian'"):
        fast_decoder(marian(), "int8")


def test_compacting_rows_copies_only_those_that_move():
    tensors = [torch.randn(5, 3), torch.randn(5, 2, 4)]
    expected = [tensor[[4, 1, 3]] for tensor in tensors]
    compact_rows(tensors, torch.tensor([4, 1, 3]))
    for tensor, rows in zip(tensors, expected, strict=True):
        assert torch.equal(tensor[:3], rows)
