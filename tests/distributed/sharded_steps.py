# SPDX-License-Identifier: Apache-2.0
"""The work of each of two processes in `test_fsdp.py`: a few updates of a sharded model.

A module of its own, so that the processes import this and not the tests.
"""

import os
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.fsdp import register_fsdp_forward_method
from transformers import AutoModelForSeq2SeqLM
from transformers.distributed import DistributedConfig

from tests.families import tiny_batch

UPDATES, LEARNING_RATE = 3, 0.5


def updates(model, batch: dict[str, torch.Tensor], scale: float = 1.0) -> list[float]:
    """The losses of a few updates by SGD, before each; of a part of the batch, if `scale` is the number of parts."""
    optimizer = torch.optim.SGD(model.train().parameters(), lr=LEARNING_RATE)
    tokens = (tiny_batch()["labels"] != -100).sum()
    losses = []
    for _ in range(UPDATES):
        loss = model(**batch, num_items_in_batch=tokens).loss
        (loss * scale).backward()  # FSDP takes the mean over processes
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    model.eval()
    return losses


def generated(model) -> torch.Tensor:
    batch = tiny_batch()
    del batch["labels"]
    return model.generate(**batch, num_beams=2, max_new_tokens=5, min_new_tokens=5)


def run(rank: int, port: int, folder: Path, sizes: dict[str, int]) -> None:
    """Load `folder/model` sharded, generate, update, and write the results to `folder`."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    found = {}
    try:
        model = AutoModelForSeq2SeqLM.from_pretrained(
            folder / "model", dtype=torch.float64, distributed_config=DistributedConfig(**sizes)
        )
    except ValueError as error:
        found["error"] = str(error)
    else:
        found["sharded"] = sum(hasattr(parameter, "full_tensor") for parameter in model.parameters())
        found["local"] = {
            name: tuple(parameter.to_local().shape if hasattr(parameter, "to_local") else parameter.shape)
            for name, parameter in model.named_parameters()
        }
        batch, parts = tiny_batch(), 1
        if "fsdp_size" in sizes:  # of data; in tensor parallelism both have the same
            register_fsdp_forward_method(model, "generate")  # which begins in the encoder, not in the whole model
            batch, parts = {name: tensor[rank::2] for name, tensor in batch.items()}, 2
            longest = (batch["labels"] != -100).sum(dim=1).max()  # another for each process, as in a run
            batch["labels"] = batch["labels"][:, :longest]
        found["before"] = generated(model)
        found["losses"] = updates(model, batch, parts)
        found["after"] = generated(model)
        model.save_pretrained(folder / "trained")
    torch.save(found, folder / f"found-{rank}.pt")
    dist.destroy_process_group()
