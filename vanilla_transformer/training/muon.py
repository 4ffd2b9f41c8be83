# SPDX-License-Identifier: Apache-2.0
"""A departure from section 5.3: Muon (Jordan et al. 2024) for the layers' matrices, Adam for all other weights."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

MOMENTUM = 0.95
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # Jordan's coefficients
NEWTON_SCHULZ_STEPS = 5
# Moonshot's factor (2502.16982): the update of a matrix has the root mean square that Adam's usually has, so that one
# learning rate serves both.
RMS_OF_ADAM = 0.2


class MuonWithAdam(torch.optim.Optimizer):
    """Muon for matrices, whose group is the first, and fused Adam for embeddings, projection and vectors.

    `torch.optim.Muon` orthogonalises one matrix after another, which takes a CPU twice as long as all matrices of a
    shape together, and its host would wait for a device that decides whether an update is skipped.

    Args:
        lr: the learning rate of both; a schedule changes it.
        adam: betas and eps.
    """

    found_inf: torch.Tensor | None = None  # scalar on the device: 1 skips the update, as a GradScaler tells fused Adam

    def __init__(self, model: PreTrainedModel, lr: float, **adam: Any):
        trained = [weight for weight in model.parameters() if weight.requires_grad]
        self.gates = dict(_matrices(model))
        matrices = [weight for weight in trained if weight in self.gates]
        self.adam = torch.optim.Adam([weight for weight in trained if weight not in self.gates], lr=lr, **adam)
        super().__init__([{"params": matrices, "lr": lr}, *self.adam.param_groups], self.adam.defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        assert closure is None
        matrices, others = self.param_groups
        self.adam.param_groups, self.adam.state = [others], self.state  # a loaded state has others
        self.adam.found_inf = self.found_inf  # pyright: ignore[reportAttributeAccessIssue] -- fused Adam reads it
        self.adam.step()
        alike: dict[tuple[torch.Size, int], list[nn.Parameter]] = {}
        for weight in matrices["params"]:
            if weight.grad is not None:
                alike.setdefault((weight.shape, self.gates[weight]), []).append(weight)
        for (_, gates), weights in alike.items():
            self._step_matrices(weights, gates, matrices["lr"])

    def _step_matrices(self, weights: list[nn.Parameter], gates: int, lr: float | torch.Tensor) -> None:
        """Update matrices of one shape, each of which consists of as many matrices as there are gates."""
        for weight in weights:
            if "momentum_buffer" not in self.state[weight]:
                self.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
        buffers = [self.state[weight]["momentum_buffer"] for weight in weights]
        gradients = torch.stack(
            [weight.grad for weight in weights if weight.grad is not None]
        )  # (weights, rows, columns)
        share = torch.ones((), device=gradients.device)
        if self.found_inf is not None:
            share = 1 - self.found_inf
            gradients = torch.where(self.found_inf > 0, 0.0, gradients)
        weight = (1 - MOMENTUM) * share
        torch._foreach_lerp_(buffers, [*gradients.unbind()], [weight] * len(buffers))  # pyright: ignore[reportPrivateImportUsage] -- torch's averages call it, too
        updates = gradients.lerp(torch.stack(buffers), MOMENTUM)  # Nesterov's
        split = updates.unflatten(1, (gates, -1)).flatten(0, 1)  # (weights * gates, rows / gates, columns)
        orthogonal = orthogonalise(split).reshape(updates.shape).float()
        steps = orthogonal * (RMS_OF_ADAM * max(split.shape[1:]) ** 0.5 * lr * share)
        torch._foreach_sub_([*weights], [*steps.unbind()])  # pyright: ignore[reportPrivateImportUsage] -- as above


def orthogonalise(matrices: torch.Tensor) -> torch.Tensor:
    """The nearest orthogonal matrices, about: singular values between 0.7 and 1.2, by Newton and Schulz's iteration.

    Args:
        matrices: `(number, rows, columns)`; computed in bfloat16, as Jordan found sufficient.
    """
    a, b, c = NEWTON_SCHULZ
    is_tall = matrices.shape[1] > matrices.shape[2]
    result = (matrices.mT if is_tall else matrices).bfloat16()
    result = result / result.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = result @ result.mT  # (number, rows, rows)
        result = torch.baddbmm(result, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), result, beta=a)
    return result.mT if is_tall else result


def _matrices(model: PreTrainedModel) -> Iterator[tuple[torch.Tensor, int]]:
    """The weight matrices of the layers, and the matrices that each consists of: one for each gate of an RNN."""
    embeddings = {model.get_input_embeddings(), model.get_output_embeddings()}
    for module in model.modules():
        if isinstance(module, nn.RNNBase):
            for name, weight in module.named_parameters():
                if name.startswith("weight"):
                    yield weight, weight.shape[0] // module.hidden_size
        elif isinstance(module, nn.Linear) and module not in embeddings and min(module.weight.shape) > 1:
            yield module.weight, 1
