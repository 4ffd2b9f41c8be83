# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from tests.families import FAMILIES, tiny_batch
from vanilla_transformer.training.muon import MuonWithAdam


@pytest.mark.parametrize("family", FAMILIES[:2], ids=lambda family: family.name)
def test_matrices_follow_muon_and_all_else_adam_and_a_skipped_update_changes_nothing(family):
    models = [family.model(), family.model()]
    matrices = [w for n, w in models[1].named_parameters() if w.ndim == 2 and "embed" not in n and "lm_head" not in n]
    others = [w for w in models[1].parameters() if not any(w is matrix for matrix in matrices)]
    assert matrices
    assert others
    both = [
        torch.optim.Muon(matrices, lr=2e-2, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
        torch.optim.Adam(others, lr=1e-2, betas=(0.9, 0.98), eps=1e-9, fused=True),
    ]
    joint = MuonWithAdam(models[0], 1e-2, 2.0, betas=(0.9, 0.98), eps=1e-9, fused=True)
    for update in range(3):
        for model in models:
            torch.manual_seed(update)
            model.zero_grad()
            model(**tiny_batch(), skip_logits=True).loss.backward()
        joint.found_inf = torch.tensor(1.0)
        joint.step()
        joint.found_inf = torch.tensor(0.0)
        for optimizer in (joint, *both):
            optimizer.step()
    for found, expected in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(found, expected)
