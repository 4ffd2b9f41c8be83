# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM

from vanilla_transformer import VanillaTransformerConfig, VanillaTransformerForConditionalGeneration
from vanilla_transformer.training.averaging import MovingAverage, average_checkpoints


def save(folder: Path, number: int, **changes) -> Path:
    torch.manual_seed(number)
    values = {"vocab_size": 11, "d_model": 8, "d_ff": 8, "num_layers": 1, "num_heads": 2, **changes}
    VanillaTransformerForConditionalGeneration(VanillaTransformerConfig(**values)).save_pretrained(folder / str(number))
    return folder / str(number)


def test_each_weight_is_the_mean(tmp_path: Path):
    folders = [save(tmp_path, number) for number in range(3)]
    average = average_checkpoints(folders).state_dict()
    parts = [AutoModelForSeq2SeqLM.from_pretrained(folder).state_dict() for folder in folders]
    for name, weight in average.items():
        expected = torch.stack([part[name].double() for part in parts]).mean(dim=0)
        assert torch.allclose(weight.double(), expected, atol=1e-7)


def test_tied_weights_stay_one(tmp_path: Path):
    average = average_checkpoints([save(tmp_path, 1), save(tmp_path, 2)])
    assert average.get_output_embeddings().weight is average.get_input_embeddings().weight


def test_other_models_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="holds another model than"):
        average_checkpoints([save(tmp_path, 1), save(tmp_path, 2, num_heads=4)])


def test_nothing_to_average():
    with pytest.raises(ValueError, match="no checkpoint to average"):
        average_checkpoints([])


def small_model() -> torch.nn.Module:
    """Two names of one weight, and a weight that is not trained."""
    model = torch.nn.ModuleDict({"one": torch.nn.Linear(3, 3, bias=False), "other": torch.nn.Linear(3, 3, bias=False)})
    model["other"].weight = model["one"].weight
    model["fixed"] = torch.nn.Linear(2, 2, bias=False).requires_grad_(False)
    return model


def test_a_moving_average_follows_its_recurrence_and_no_skipped_update():
    model, decay = small_model(), 0.6
    average = MovingAverage(model, decay)
    assert average.averages.keys() == {"one.weight"}
    weight = model["one"].weight
    expected, updates = weight.detach().double().clone(), 0
    for update in range(20):
        torch.nn.init.normal_(weight)
        skipped = update in (0, 3, 11)
        average.update(torch.tensor(float(skipped)))
        if not skipped:
            kept = min(decay, (1 + updates) / (10 + updates))
            expected = kept * expected + (1 - kept) * weight.detach().double()
            updates += 1
    assert kept == decay
    torch.testing.assert_close(average.averages["one.weight"].double(), expected, rtol=0, atol=1e-6)


def test_averaged_weights_are_the_models_for_a_while():
    model = small_model()
    average, weight = MovingAverage(model, 0.9), model["one"].weight
    first = weight.detach().clone()
    torch.nn.init.normal_(weight)
    trained, storage = weight.detach().clone(), weight.data_ptr()
    with average.applied():
        assert torch.equal(weight, first)
    assert torch.equal(weight, trained)
    assert weight.data_ptr() == storage  # the same memory, into which other tensors may look
