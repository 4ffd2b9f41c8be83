# SPDX-License-Identifier: Apache-2.0
"""Muon for matrices, beside torch's own."""

import copy

import pytest
import torch
from torch import nn

from tests.families import FAMILIES, Family
from vanilla_transformer.training.muon import MuonWithAdam, orthogonalise

ADAM = {"betas": (0.9, 0.98), "eps": 1e-9, "fused": True}


@pytest.fixture(params=FAMILIES, ids=lambda family: family.name)
def model(request):
    family: Family = request.param
    torch.manual_seed(0)
    return family.seq2seq_class(family.config_class(**family.tiny))


def set_gradients(model: nn.Module, seed: int) -> None:
    draws = torch.Generator().manual_seed(seed)
    for weight in model.parameters():
        weight.grad = torch.randn(weight.shape, generator=draws)


def test_matrices_become_orthogonal_and_stay_aligned():
    matrices = torch.randn(3, 8, 5, generator=torch.Generator().manual_seed(1))
    result = orthogonalise(matrices).float()
    values = torch.linalg.svdvals(result)
    assert ((values > 0.6) & (values < 1.3)).all()
    aligned = (result * matrices).sum(dim=(1, 2))
    nuclear = torch.linalg.svdvals(matrices).sum(dim=1)  # the inner product with the nearest orthogonal matrix
    torch.testing.assert_close(aligned, nuclear, rtol=0.2, atol=0)


def test_each_gate_moves_as_a_matrix_of_torchs_muon_does(model):
    """And all other weights as torch's Adam moves them."""
    optimizer = MuonWithAdam(model, lr=0.01, **ADAM)
    halves = {
        weight: [nn.Parameter(part.clone()) for part in weight.detach().chunk(gates)]
        for weight, gates in optimizer.gates.items()
    }
    others = {weight: nn.Parameter(weight.detach().clone()) for weight in model.parameters() if weight not in halves}
    matrices = [part for parts in halves.values() for part in parts]
    torchs = [
        torch.optim.Muon(matrices, lr=0.01, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
        torch.optim.Adam([*others.values()], lr=0.01, **ADAM),
    ]
    for seed in (1, 2):
        set_gradients(model, seed)
        for weight, parts in halves.items():
            for part, gradient in zip(parts, weight.grad.chunk(len(parts)), strict=True):
                part.grad = gradient.clone()
        for weight, other in others.items():
            other.grad = weight.grad.clone()
        for each in (optimizer, *torchs):
            each.step()
    for weight, parts in halves.items():
        torch.testing.assert_close(weight, torch.cat(parts), atol=2e-4, rtol=0)  # orthogonalised in bfloat16
    for weight, other in others.items():
        torch.testing.assert_close(weight, other, atol=0, rtol=0)


def test_embeddings_and_projection_are_adams(model):
    optimizer = MuonWithAdam(model, lr=0.01, **ADAM)
    embeddings = {*model.get_input_embeddings().parameters(), *model.get_output_embeddings().parameters()}
    assert embeddings
    assert not embeddings & optimizer.gates.keys()


def test_a_skipped_update_changes_nothing(model):
    optimizer = MuonWithAdam(model, lr=0.01, **ADAM)
    set_gradients(model, 1)
    optimizer.step()
    weights, state = copy.deepcopy([*model.parameters()]), copy.deepcopy(optimizer.state_dict()["state"])
    for weight in model.parameters():
        weight.grad = torch.full_like(weight, torch.nan)
    optimizer.found_inf = torch.ones(())
    optimizer.step()
    torch.testing.assert_close([*model.parameters()], weights, atol=0, rtol=0)
    torch.testing.assert_close(optimizer.state_dict()["state"], state, atol=0, rtol=0)
