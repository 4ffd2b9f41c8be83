# SPDX-License-Identifier: Apache-2.0
"""Section 6.1 of the paper: a single model from the mean of the last checkpoints; a moving average in its place."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.distributed.tensor import DTensor
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


class MovingAverage:
    """The exponential moving average of a model's trained weights, on their device, and sharded as they are.

    In the first updates it forgets faster: its decay is min(decay, (1 + updates) / (10 + updates)), as in Marian.
    torch's `AveragedModel` would have to know on the host which updates are skipped, and copies no sharded model.

    Args:
        model: bare.
        decay: the share that the average keeps in an update.
    """

    def __init__(self, model: torch.nn.Module, decay: float):
        self.decay = decay
        self.trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        self.averages = {name: weight.detach().clone() for name, weight in self.trained.items()}
        self.updates = torch.zeros((), device=next(iter(self.trained.values())).device)

    @torch.no_grad()
    def update(self, skipped: torch.Tensor) -> None:
        """Take in the weights after an update; waits for no device.

        Args:
            skipped: scalar on the device: 1 leaves the average as it is, otherwise 0.
        """
        share = (9 / (self.updates + 10)).clamp(min=1 - self.decay) * (1 - skipped)
        self.updates += 1 - skipped
        averages, trained = _local(self.averages.values()), _local(self.trained.values())
        torch._foreach_lerp_(averages, trained, [share] * len(averages))  # pyright: ignore[reportPrivateImportUsage] -- torch's averages call it, too

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model has the averaged weights, in the block."""
        trained = {name: weight.detach().clone() for name, weight in self.trained.items()}
        _copy(self.averages, self.trained)
        try:
            yield
        finally:
            _copy(trained, self.trained)

    def load(self, averages: Mapping[str, torch.Tensor], updates: int) -> None:
        """Go on from averages sharded like the weights, after so many updates."""
        _copy(averages, self.averages)
        self.updates.fill_(updates)


@torch.no_grad()
def _copy(source: Mapping[str, torch.Tensor], target: Mapping[str, torch.Tensor]) -> None:
    for name, tensor in target.items():
        tensor.copy_(source[name])


def _local(tensors: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """This process's shards."""
    return [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]
