# SPDX-License-Identifier: Apache-2.0
"""Section 6.1 of the paper: a single model from the mean of the last checkpoints."""

from collections.abc import Sequence
from pathlib import Path

from torch.optim.swa_utils import AveragedModel
from transformers import PreTrainedModel

from vanilla_transformer.inference.model_folder import load_model_folder


def average_checkpoints(folders: Sequence[Path]) -> PreTrainedModel:
    """The model whose weights are the mean of the folders' weights, computed in float32.

    Raises:
        ValueError: no folder, or folders with different configurations.
    """
    if not folders:
        raise ValueError("there is no checkpoint to average")
    first = load_model_folder(folders[0]).float()
    average = AveragedModel(first)
    average.update_parameters(first)  # copies it: the n-th model counts 1 / n
    for folder in folders[1:]:
        model = load_model_folder(folder).float()
        if model.config.to_diff_dict() != first.config.to_diff_dict():
            raise ValueError(f"{folder} holds another model than {folders[0]}: their config.json differ")
        average.update_parameters(model)
    averaged = average.module
    assert isinstance(averaged, PreTrainedModel)
    averaged.tie_weights()
    return averaged
