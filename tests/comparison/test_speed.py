# SPDX-License-Identifier: Apache-2.0
import itertools

import pytest
import torch

from vanilla_transformer.comparison import speed
from vanilla_transformer.comparison.speed import (
    Setting,
    SpeedConfig,
    Trainee,
    measure_speed,
    settings_on,
    time_updates,
    warm_up,
)
from vanilla_transformer.training.yaml_sections import build_section

TRANSFORMER = {"model_type": "vanilla_transformer", "d_model": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
RNN = {"model_type": "rnn_seq2seq", "cell": "gru", "embedding_size": 8, "hidden_size": 9, "attention": "none"}
RNN |= {"input_feeding": "none", "bidirectional": False, "tie_word_embeddings": True}
SETTINGS = {"vocab_size": 20, "lengths": [3, 20], "compared_lengths": [20], "one_sequence": [5], "batch_tokens": 12}
SETTINGS |= {"precisions": ["no"], "threads": [1], "attention": ["eager"], "repeats": 2, "updates": 1}
CPU = torch.device("cpu")


def settings(**changes) -> SpeedConfig:
    return SpeedConfig(**({"models": {"Transformer": dict(TRANSFORMER), "GRU": dict(RNN)}} | SETTINGS | changes))


def with_gru(section: dict) -> dict:
    return {"models": {"Transformer": TRANSFORMER, "GRU": section}}


@pytest.fixture
def any_size(monkeypatch):
    """Allow models that are too small to have equal parameters, and profile short sentences."""
    monkeypatch.setattr(speed, "LENGTHS", (2, 4))
    monkeypatch.setattr(speed, "check_parameters", lambda where, parameters: None)


@pytest.fixture
def timed(any_size, monkeypatch) -> list[tuple[str, bool, int]]:
    """(model type, whether in bfloat16, threads) of each measurement, which takes no time."""
    measured = []

    def time_updates(trainee, batch, count, is_bf16) -> float:
        measured.append((trainee.model.config.model_type, is_bf16, torch.get_num_threads()))
        return 1.0

    monkeypatch.setattr(speed, "time_updates", time_updates)
    monkeypatch.setattr(speed, "check_threads", lambda where, threads: None)  # a machine may have one core
    monkeypatch.setattr(speed, "_kernels", lambda *_: {})
    return measured


def trainee_of(section: dict) -> Trainee:
    model = speed.AutoModelForSeq2SeqLM.from_config(speed.model_config_of(dict(section), vocab_size=20)).train()
    return Trainee(model, torch.optim.Adam(model.parameters()))


def test_every_model_is_measured_at_every_length_in_every_repeat(any_size):
    result = measure_speed(settings(), CPU, lambda *_: None)
    assert [(row["model"], row["length"], row["batch_size"]) for row in result["rows"]] == [
        (model, *case) for case in ((3, 4), (20, 1), (5, 1)) for model in ("Transformer", "GRU")]  # fmt: skip
    assert all(len(row["tokens_per_second"]) == 2 and min(row["tokens_per_second"]) > 0 for row in result["rows"])
    assert {name: kernel["layer"] for name, kernel in result["kernels"].items()} == {
        "Transformer": "self-attention", "GRU": "recurrent"}  # fmt: skip


def test_compared_lengths_and_single_sequences_are_measured_in_every_setting(timed):
    result = measure_speed(settings(precisions=["no", "bf16"], threads=[1, 2]), CPU, lambda *_: None)
    measured = {(row["length"], row["precision"], row["threads"]) for row in result["rows"]}
    everywhere = itertools.product((20, 5), ("float32", "bfloat16"), (1, 2))
    assert measured == {*everywhere, (3, "bfloat16", 2)}
    assert result["training"] == {"precision": "bfloat16", "threads": 2}


def test_models_and_settings_are_interleaved(timed):
    one_length = {"lengths": [3], "compared_lengths": [3], "one_sequence": [3], "batch_tokens": 3}
    measure_speed(settings(**one_length, precisions=["no", "bf16"], threads=[1, 2]), CPU, lambda *_: None)
    pair = ("vanilla_transformer", "rnn_seq2seq")
    turn = [(kind, is_bf16, threads) for is_bf16 in (False, True) for threads in (1, 2) for kind in pair]
    *warm_up, last = timed[: -2 * len(turn)], timed[-2 * len(turn) :]
    assert last == turn * 2
    assert set(warm_up[0]) == set(turn)


def test_an_update_changes_every_parameter():
    trainee = trainee_of(RNN)
    before = [parameter.clone() for parameter in trainee.model.parameters()]
    batch = {"input_ids": torch.tensor([[3, 4]]), "labels": torch.tensor([[5, 6]])}
    assert time_updates(trainee, batch, 1, is_bf16=False) > 0
    assert all(not torch.equal(old, new) for old, new in zip(before, trainee.model.parameters(), strict=True))


def test_the_transformer_takes_the_attention_that_is_the_fastest(monkeypatch):
    trainee = trainee_of(TRANSFORMER)
    seconds = {"eager": 2.0, "sdpa": 1.0, "flex_attention": 3.0}
    monkeypatch.setattr(speed, "time_updates", lambda trainee, *_: seconds[trainee.model.config._attn_implementation])
    assert warm_up(trainee, {}, list(seconds), is_bf16=False) == "sdpa"
    assert trainee.model.config._attn_implementation == "sdpa"


def test_an_rnn_has_no_attention_to_choose(monkeypatch):
    monkeypatch.setattr(speed, "time_updates", lambda *_: 1.0)
    assert warm_up(trainee_of(RNN), {}, ["eager", "sdpa"], is_bf16=False) is None


@pytest.mark.parametrize(("chosen", "precisions"), [("bf16", ["float32", "bfloat16"]), ("no", ["float32"])])
def test_auto_is_the_precision_that_training_chooses(monkeypatch, chosen, precisions):
    monkeypatch.setattr(speed, "choose_precision", lambda device: chosen)
    found, left_out = settings_on(settings(precisions=["no", "auto"]), CPU)
    assert found == [Setting(precision, 1) for precision in precisions]
    assert [text.split(",")[0] for text in left_out] == (["training chooses float32 by itself"] * (chosen == "no"))


def test_other_devices_have_no_threads_to_set():
    found, left_out = settings_on(settings(precisions=["no", "auto"], threads=[1, 2]), torch.device("cuda"))
    assert found == [Setting("float32", None)]  # bfloat16 would not be that of recurrent layers
    assert left_out[-1] == "speed.threads are a CPU's, and the device is cuda"


def test_more_threads_than_cores_are_refused():
    with pytest.raises(ValueError, match=r"speed.threads=\[1, 100000\] must be at most"):
        settings_on(settings(threads=[1, 100_000]), CPU)


def test_unequal_models_are_refused():
    with pytest.raises(ValueError, match="speed.models: .* more than 5% apart"):
        measure_speed(
            settings(models={"Transformer": dict(TRANSFORMER), "B": TRANSFORMER | {"d_ff": 64}}),
            torch.device("cpu"),
            print,
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"repeats": 0}, "speed.repeats=0 must be at least 1"),
        ({"lengths": []}, r"speed.lengths=\[\] must be a list of numbers, each at least 1"),
        ({"compared_lengths": [4]}, r"speed.compared_lengths=\[4\] must name some of 3, 20"),
        ({"attention": ["flash"]}, r"speed.attention=\['flash'\] must name some of eager, "),
        ({"precisions": []}, r"speed.precisions=\[\] must name at least one"),
        ({"precisions": ["fp8"]}, "speed.precisions=.'fp8'.: expected"),
        ({"threads": [0]}, r"speed.threads=\[0\] must be a list of numbers, each at least 1"),
        ({"models": {"GRU": RNN, "LSTM": RNN}}, "speed.models must have one named 'Transformer'; it has GRU, LSTM"),
        (with_gru(RNN | {"cell": "gro"}), "speed.models.GRU: model.cell='gro': expected 'tanh' or 'gru'"),
        (with_gru(RNN | {"width": 3}), "speed.models.GRU: unknown key model.width"),
        (with_gru({"model_type": "cnn"}), "speed.models.GRU: model.model_type='cnn' must be one of"),
    ],
)
def test_impossible_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        build_section(SpeedConfig, {"models": {"Transformer": TRANSFORMER}} | SETTINGS | changes, "speed")
