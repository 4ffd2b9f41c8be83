# SPDX-License-Identifier: Apache-2.0
"""FSDP2 and tensor parallelism as transformers loads them, over two gloo processes: the same model as in one.

The vocabulary of 31 does not divide by two, which reveals tied embeddings that are sharded separately and drift apart.
"""

import pytest
import torch
from torch.multiprocessing import start_processes
from transformers import AutoModelForSeq2SeqLM
from transformers.distributed import DistributedConfig

from tests import families
from tests.distributed.launching import free_port
from tests.distributed.sharded_steps import generated, run, updates
from tests.families import FAMILIES, Family, tiny_batch

TRANSFORMER, BAHDANAU, DEPARTURES = *FAMILIES[:2], FAMILIES[-1]


def shard(family: Family, folder, tied: bool, **sizes: int) -> tuple[list[dict], torch.nn.Module]:
    """The results of two processes, and the model that one process loads."""
    family.model(dropout=0.0, tie_word_embeddings=tied).save_pretrained(folder / "model")
    start_processes(run, (free_port(), folder, sizes), nprocs=2, start_method="forkserver")
    found = [torch.load(folder / f"found-{rank}.pt", weights_only=True) for rank in range(2)]
    return found, AutoModelForSeq2SeqLM.from_pretrained(folder / "model", dtype=torch.float64)


def assert_trained_alike(alone, found: list[dict], folder, parts: int) -> None:
    """After generating and a few updates; `alone` is trained here."""
    assert torch.equal(found[0]["before"], generated(alone))
    losses = updates(alone, tiny_batch())
    together = [
        sum(pair) if parts > 1 else pair[0] for pair in zip(*(process["losses"] for process in found), strict=True)
    ]
    assert together == pytest.approx(losses, abs=1e-9)
    assert torch.equal(found[0]["after"], generated(alone))
    trained = AutoModelForSeq2SeqLM.from_pretrained(folder / "trained", dtype=torch.float64).state_dict()
    assert trained.keys() == alone.state_dict().keys()
    for name, weight in alone.state_dict().items():
        assert torch.allclose(trained[name], weight, atol=1e-9), name


def case(family: Family, tied: bool, *marks):
    return pytest.param(family, tied, marks=marks, id=f"{family.name}-{'tied' if tied else 'untied'}")


@pytest.mark.parametrize(
    ("family", "tied"),
    [case(TRANSFORMER, True), case(BAHDANAU, True)]
    + [case(family, False, pytest.mark.slow) for family in FAMILIES]
    + [case(family, True, pytest.mark.slow) for family in FAMILIES[2:]],
)
def test_fully_sharded_data_parallelism_trains_as_one_process(family, tied, tmp_path):
    found, alone = shard(family, tmp_path, tied, fsdp_size=2)
    assert found[0]["sharded"] == len(list(alone.parameters()))
    assert_trained_alike(alone, found, tmp_path, parts=2)


@pytest.mark.parametrize(
    ("family", "tied"),
    [case(TRANSFORMER, True)]
    + [case(family, tied, pytest.mark.slow) for family, tied in ((TRANSFORMER, False), (DEPARTURES, True))],
)
def test_tensor_parallelism_trains_as_one_process(family, tied, tmp_path):
    found, alone = shard(family, tmp_path, tied, tp_size=2)
    for name, shape in found[0]["local"].items():
        whole = tuple(alone.get_parameter(name).shape)
        if name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight", "linear_1.weight", "linear_1.bias")):
            assert shape == (whole[0] // 2, *whole[1:]), name
        elif name.endswith(("out_proj.weight", "linear_2.weight")):
            assert shape == (whole[0], whole[1] // 2), name
        elif "embed_tokens" in name or "lm_head" in name:
            assert shape == (whole[0] // 2 + 1, *whole[1:]), name  # 31 rows, of which the second has 15
        else:
            assert shape == whole, name
    assert_trained_alike(alone, found, tmp_path, parts=1)


def test_tensor_parallelism_is_refused_by_an_rnn(tmp_path):
    assert families.TENSOR_PARALLELISM in BAHDANAU.lacks
    found, _ = shard(BAHDANAU, tmp_path, True, tp_size=2)
    for process in found:
        assert "`RNNSeq2SeqForConditionalGeneration` has no `tp_plan`" in process["error"]


def test_tied_embeddings_under_fsdp_and_tensor_parallelism_are_refused():
    model, both = TRANSFORMER.model(), DistributedConfig(fsdp_size=2, tp_size=2)
    with pytest.raises(ValueError, match="fsdp_size=2 with tp_size=2 would shard tied embeddings"):
        type(model).maybe_distribute_model(model, both, None)
