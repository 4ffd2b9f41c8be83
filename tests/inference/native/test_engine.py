# SPDX-License-Identifier: Apache-2.0
"""Which engine decodes which model, and the reasons given."""

import pytest
import torch
from transformers import MarianConfig, MarianMTModel
from transformers.utils.logging import warning_once

from tests.families import FAMILIES
from vanilla_transformer.inference.native import engine
from vanilla_transformer.inference.native.engine import fast_decoder, native_decoder
from vanilla_transformer.inference.native.rnn import NativeRecurrentDecoder
from vanilla_transformer.inference.native.transformer import NativeDecoder


def hooked(model):
    model.get_encoder().embed_tokens.register_forward_hook(lambda *_: None)
    return model


def marian() -> MarianMTModel:
    sizes = {"d_model": 16, "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 16}
    sizes |= {"decoder_ffn_dim": 16, "encoder_layers": 1, "decoder_layers": 1, "max_position_embeddings": 64}
    return MarianMTModel(MarianConfig(vocab_size=31, pad_token_id=0, eos_token_id=2, decoder_start_token_id=1, **sizes))


CASES = {
    "a Transformer": (FAMILIES[0].model, "float32", None),
    "in int8": (FAMILIES[0].model, "int8", None),
    "in bfloat16": (FAMILIES[0].model, "bfloat16", None),
    "of bfloat16": (lambda: FAMILIES[0].model(torch.bfloat16), "bfloat16", "this one is in torch.bfloat16"),
    "in float64": (lambda: FAMILIES[0].model(torch.float64), "float32", "this one is in torch.float64"),
    "an RNN": (FAMILIES[2].model, "float32", None),
    "an RNN in int8": (FAMILIES[2].model, "int8", None),
    "an RNN in float64": (lambda: FAMILIES[2].model(torch.float64), "float32", "this one is in torch.float64"),
    "an RNN with a hook": (
        lambda: hooked(FAMILIES[1].model()),
        "float32",
        "the model has adapters, hooks, shards or replaced modules",
    ),
    "another package's": (marian, "float32", "it decodes the models of this package, and this is a MarianMTModel"),
    "another activation": (
        lambda: FAMILIES[0].model(activation_function="gelu"),
        "float32",
        "activation_function='gelu'",
    ),
    "a hook": (
        lambda: hooked(FAMILIES[0].model()),
        "float32",
        "the model has adapters, hooks, shards or replaced modules",
    ),
}


@pytest.mark.parametrize(("make", "precision", "reason"), CASES.values(), ids=CASES)
def test_auto_is_native_where_that_is_possible(make, precision, reason):
    model = make()
    decoder = native_decoder(model, precision, "auto")
    if reason is None:
        is_rnn = model.config.model_type == "rnn_seq2seq"
        assert type(decoder) is (NativeRecurrentDecoder if is_rnn else NativeDecoder)
    else:
        assert decoder is None


@pytest.mark.parametrize(("make", "precision", "reason"), [case for case in CASES.values() if case[2]])
def test_native_names_the_reason_where_it_is_impossible(make, precision, reason):
    with pytest.raises(ValueError, match="engine='native' cannot decode this") as error:
        native_decoder(make(), precision, "native")
    assert reason in str(error.value)


def test_torch_is_always_torch():
    assert native_decoder(FAMILIES[0].model(), "float32", "torch") is None


def test_without_a_compiler_auto_is_torch(monkeypatch):
    refuse(monkeypatch, "there is no C++ compiler")
    assert native_decoder(FAMILIES[0].model(), "float32", "auto") is None
    with pytest.raises(ValueError, match=r"there is no C\+\+ compiler; use engine='torch', or 'auto'"):
        native_decoder(FAMILIES[0].model(), "float32", "native")


def refuse(monkeypatch, reason: str) -> None:
    def refuses():
        raise ValueError(reason)

    monkeypatch.setattr(engine, "library", refuses)


def test_a_fall_back_is_warned_of_once_for_each_reason(monkeypatch, caplog):
    warning_once.cache_clear()
    for reason in ("no compiler", "no compiler", "no folder", "no compiler"):
        refuse(monkeypatch, reason)
        assert native_decoder(FAMILIES[0].model(), "float32", "auto") is None
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert [line.rpartition(": ")[2] for line in said] == ["no compiler", "no folder"]
    assert all("PyTorch decodes, more slowly" in line for line in said)


@pytest.mark.parametrize(("make", "precision", "reason"), [case for case in CASES.values() if case[2]])
def test_the_callers_own_choice_is_not_warned_of(make, precision, reason, monkeypatch, caplog):
    warning_once.cache_clear()
    refuse(monkeypatch, "no compiler")
    assert native_decoder(make(), precision, "auto") is None
    assert native_decoder(FAMILIES[0].model(), "float32", "torch") is None
    assert caplog.records == []


def test_an_unknown_engine_names_the_known_ones():
    with pytest.raises(ValueError, match="engine='fast' must be one of auto, native, torch"):
        native_decoder(FAMILIES[0].model(), "float32", "fast")  # pyright: ignore[reportArgumentType] -- on purpose


@pytest.mark.parametrize(
    ("precision", "said"),
    [("int4", "precision='int4' must be one of"), ("bfloat16", "needs a model in bfloat16, and this one is in")],
)
def test_an_impossible_precision_is_refused(precision: str, said: str):
    with pytest.raises(ValueError, match=said):
        fast_decoder(FAMILIES[2].model(), precision, "torch")  # pyright: ignore[reportArgumentType] -- on purpose
