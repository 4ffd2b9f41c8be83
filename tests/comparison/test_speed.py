# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from vanilla_transformer.comparison import speed
from vanilla_transformer.comparison.speed import SpeedConfig, measure_speed
from vanilla_transformer.training.yaml_sections import build_section

TRANSFORMER = {"model_type": "vanilla_transformer", "d_model": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
RNN = {"model_type": "rnn_seq2seq", "cell": "gru", "embedding_size": 8, "hidden_size": 9, "attention": "none"}
RNN |= {"input_feeding": "none", "bidirectional": False, "tie_word_embeddings": True}
SETTINGS = {"vocab_size": 20, "lengths": [3, 20], "batch_tokens": 12, "repeats": 2, "updates": 1}


def settings(**changes) -> SpeedConfig:
    return SpeedConfig(**({"models": {"Transformer": dict(TRANSFORMER), "GRU": dict(RNN)}} | SETTINGS | changes))


def with_gru(section: dict) -> dict:
    return {"models": {"Transformer": TRANSFORMER, "GRU": section}}


@pytest.fixture
def any_size(monkeypatch):
    """Allow models that are too small to have equal parameters."""
    monkeypatch.setattr(speed, "check_parameters", lambda where, parameters: None)


def test_every_model_is_measured_at_every_length_in_every_repeat(any_size):
    result = measure_speed(settings(), torch.device("cpu"), lambda *_: None)
    assert [(row["model"], row["length"], row["batch_size"]) for row in result["rows"]] == [
        ("Transformer", 3, 4), ("GRU", 3, 4), ("Transformer", 20, 1), ("GRU", 20, 1)]  # fmt: skip
    assert all(len(row["tokens_per_second"]) == 2 and min(row["tokens_per_second"]) > 0 for row in result["rows"])


def test_the_models_are_interleaved(any_size, monkeypatch):
    order = []

    def time_updates(model, *_) -> float:
        order.append(model.config.model_type[0])
        return 1.0

    monkeypatch.setattr(speed, "time_updates", time_updates)
    measure_speed(settings(lengths=[3]), torch.device("cpu"), lambda *_: None)
    assert "".join(order) == "vr" + "vr" + "vr"  # warm-up, then two repeats


def test_a_step_updates_every_parameter(any_size):
    model = speed.AutoModelForSeq2SeqLM.from_config(speed.model_config_of(dict(RNN), vocab_size=20)).train()
    before = [parameter.clone() for parameter in model.parameters()]
    batch = {"input_ids": torch.tensor([[3, 4]]), "labels": torch.tensor([[5, 6]])}
    assert speed.time_updates(model, torch.optim.Adam(model.parameters()), batch, 1, is_bf16=False) > 0
    assert all(not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))


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
        ({"models": {"GRU": RNN, "LSTM": RNN}}, "speed.models must have one named 'Transformer'; it has GRU, LSTM"),
        (with_gru(RNN | {"cell": "gro"}), "speed.models.GRU: model.cell='gro': expected 'tanh' or 'gru'"),
        (with_gru(RNN | {"width": 3}), "speed.models.GRU: unknown key model.width"),
        (with_gru({"model_type": "cnn"}), "speed.models.GRU: model.model_type='cnn' must be one of"),
    ],
)
def test_impossible_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        build_section(SpeedConfig, {"models": {"Transformer": TRANSFORMER}} | SETTINGS | changes, "speed")
