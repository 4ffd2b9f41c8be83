# SPDX-License-Identifier: Apache-2.0
from contextlib import nullcontext
from typing import Any

import pytest
import torch

from vanilla_transformer.benchmark import systems
from vanilla_transformer.benchmark.configuration import DecodingConfig, TimingConfig
from vanilla_transformer.benchmark.systems import (
    CTRANSLATE2,
    FAST,
    GENERATE,
    MARIAN,
    TORCH,
    Batch,
    build_system,
    ctranslate2_system,
    measure_decoding,
    skip_reasons,
    speeds,
    write_with_ids,
)
from vanilla_transformer.benchmark.timing import Measurement
from vanilla_transformer.inference.native import engine
from vanilla_transformer.packed_linear import PackedLinear

EXACT = [MARIAN, CTRANSLATE2["float32"], GENERATE, TORCH, FAST["float32"]]
ALL = skip_reasons(["float32", "bfloat16", "int8"], torch.device("cpu"), has_ctranslate2=True)


def search(beams: int) -> DecodingConfig:
    return DecodingConfig(beams=beams, alpha=0.0, length_penalty=0.0, early_stopping=True)


def targets(name, model, batches, beams, folder):
    with build_system(name, model, folder, max_length=64)(batches, search(beams)) as decode:
        return decode(len(batches))


@pytest.mark.parametrize("beams", [1, 4])
def test_every_float32_system_finds_the_same_targets(model, batch, tmp_path, beams):
    write_with_ids(model, tmp_path / "folder", max_length=16)
    found = [targets(name, model, [batch], beams, tmp_path / "folder") for name in EXACT]
    assert found == [found[0]] * len(EXACT)


@pytest.mark.parametrize("name", [name for name, reason in ALL.items() if reason is None])
@pytest.mark.parametrize("beams", [1, 4])
def test_every_target_is_as_long_as_asked_for(model, batch, tmp_path, name, beams):
    with torch.no_grad():  # the end is what the model would say at once
        model.model.encoder.embed_tokens.weight[model.config.eos_token_id] *= 4
    write_with_ids(model, tmp_path / "folder", max_length=16)
    found = targets(name, model, [batch], beams, tmp_path / "folder")
    assert [len(target) for target in found] == [batch.max_new_tokens] * len(batch.sources)


@pytest.mark.parametrize("name", EXACT)
def test_eos_is_not_part_of_a_target(model, batch, tmp_path, name):
    write_with_ids(model, tmp_path / "folder", max_length=64)
    endless = targets(name, model, [Batch(batch.sources, 40, is_fixed_length=True)], 1, tmp_path / "folder")[0]
    model.config.eos_token_id = endless[5]  # a token that greedy decoding comes to
    write_with_ids(model, tmp_path / "with an end", max_length=64)
    ending = targets(name, model, [Batch(batch.sources, 40)], 1, tmp_path / "with an end")[0]
    assert ending == endless[: endless.index(endless[5])]


@pytest.mark.parametrize("name", [MARIAN, CTRANSLATE2["float32"], FAST["float32"]])
def test_several_batches_keep_their_order(model, batch, tmp_path, name):
    write_with_ids(model, tmp_path / "folder", max_length=16)
    single = [Batch([source], batch.max_new_tokens, is_fixed_length=True) for source in batch.sources]
    together = targets(name, model, [batch], 4, tmp_path / "folder")
    assert targets(name, model, single, 4, tmp_path / "folder") == together


def test_int8_leaves_the_model_as_it_was(model, tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "native_decoder", lambda *_: None)  # as on a machine without a compiler
    before = {name: value.clone() for name, value in model.state_dict().items()}
    quantized: Any = build_system(FAST["int8"], model, tmp_path, max_length=16)
    torch.testing.assert_close(dict(model.state_dict()), before)
    _, decoder = quantized.args
    assert any(isinstance(module, PackedLinear) for module in decoder.encoder.modules())


def test_a_translator_is_freed_after_measuring(model, batch, tmp_path, monkeypatch):
    import weakref

    import ctranslate2

    write_with_ids(model, tmp_path / "folder", max_length=16)
    made = []

    class Watched(ctranslate2.Translator):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            made.append(weakref.ref(self))

    monkeypatch.setattr(ctranslate2, "Translator", Watched)
    system = build_system(CTRANSLATE2["float32"], model, tmp_path / "folder", max_length=16)
    with system([batch], search(1)) as decode:
        decode(1)
        assert made[0]() is not None
    assert made[0]() is None  # while this test still holds `decode`


def test_without_ctranslate2_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(systems, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'vanilla-transformer\[benchmark\]', or set ctranslate2=false"):
        skip_reasons(["float32"], torch.device("cpu"), has_ctranslate2=True)
    names = skip_reasons(["float32"], torch.device("cpu"), has_ctranslate2=False)
    assert [name for name, reason in names.items() if reason is None] == [MARIAN, GENERATE, TORCH, FAST["float32"]]


@pytest.mark.parametrize("gpus", [0, 1])
def test_ctranslate2_computes_on_the_device_of_the_other_systems(monkeypatch, model, batch, tmp_path, gpus):
    import ctranslate2

    # The stand-in for a GPU is counted, and records what it is asked for.
    monkeypatch.setattr(ctranslate2, "get_cuda_device_count", lambda: gpus)
    reason = skip_reasons(["float32"], torch.device("cuda"), has_ctranslate2=True)[CTRANSLATE2["float32"]]
    assert (reason is None) == bool(gpus)
    assert gpus or "does not compute on cuda here, and on another device it would be no comparison" in str(reason)
    reason = skip_reasons(["float32"], torch.device("mps"), has_ctranslate2=True)[CTRANSLATE2["float32"]]
    assert "does not compute on mps" in str(reason)
    asked: list[dict] = []
    monkeypatch.setattr(ctranslate2, "Translator", lambda folder, **options: asked.append(options))
    with ctranslate2_system(tmp_path, "float32", torch.device("cuda"), [batch, batch], search(1)):
        assert (asked[0]["device"], asked[0]["inter_threads"]) == ("cuda", 1)


def test_the_models_own_generation_config_comes_back(model, batch, tmp_path):
    own = model.generation_config
    targets(GENERATE, model, [batch], 4, tmp_path)
    assert model.generation_config is own


def test_targets_of_another_length_are_no_measurement(batch):
    timing = TimingConfig(repeats=1, pause=0.0, fill=0.0)
    short = {"a": lambda batches, decoding: nullcontext(lambda count: [[1] * 7] * 3)}
    with pytest.raises(RuntimeError, match="a decoded 21 tokens where 24 were asked for"):
        measure_decoding(short, [batch], search(1), timing)
    unlimited = Batch(batch.sources, batch.max_new_tokens)
    assert measure_decoding(short, [unlimited], search(1), timing)["a"].result == [[1] * 7] * 3


def test_speeds_are_at_the_median_of_the_rounds():
    found = speeds(Measurement([2.0, 1.0, 4.0], [[5, 6, 7], [8]]))
    assert found == {"seconds": [2.0, 1.0, 4.0], "tokens_per_second": 2.0, "sentences_per_second": 1.0}
