# SPDX-License-Identifier: Apache-2.0
import torch

from vanilla_transformer.evaluation.model_folder import default_device, load_model_folder


def test_a_model_is_ready_to_translate(model_folder):
    model = load_model_folder(model_folder, torch.device("cpu"))
    assert not model.training
    assert model.device.type == "cpu"


def test_the_default_device_is_what_torch_finds():
    expected = torch.accelerator.current_accelerator().type if torch.accelerator.is_available() else "cpu"
    assert default_device().type == expected
