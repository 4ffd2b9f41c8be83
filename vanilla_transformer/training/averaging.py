# SPDX-License-Identifier: Apache-2.0
"""Section 6.1 of the paper: a single model from the mean of the last checkpoints."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch.optim.swa_utils import AveragedModel
from transformers import PreTrainedConfig, PreTrainedModel

from vanilla_transformer.inference.model_folder import load_model_folder


def average_checkpoints(folders: Sequence[Path]) -> PreTrainedModel:
    """The model whose weights are the mean of the folders' weights, computed in float32.

    Raises:
        ValueError: no folder; folders whose configurations or weights differ in shape.
    """
    if not folders:
        raise ValueError("there is no checkpoint to average")
    average: AveragedModel | None = None
    config: PreTrainedConfig | None = None
    for folder in folders:
        model = load_model_folder(folder).float()
        if average is None or config is None:
            average, config = AveragedModel(model), model.config  # the n-th model counts 1 / n
        elif model.config.to_diff_dict() != config.to_diff_dict():
            raise ValueError(f"{folder} holds another model than {folders[0]}: their config.json differ")
        with torch.no_grad():
            average.update_parameters(model)
    assert average is not None
    averaged = average.module
    assert isinstance(averaged, PreTrainedModel)
    averaged.tie_weights()
    return averaged
