# SPDX-License-Identifier: Apache-2.0
"""The same batches in one, two and four processes: `python -m tests.distributed.world_sizes`.

Each way trains a tiny model with the loop of the package: its sampler, accumulation, clipping, optimizer and
checkpoints. An update's gradient is that of the mean over the target tokens of all its batches, so results may differ
by the order of sums alone.
"""

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from tests.conftest import TinyRun
from tests.distributed.launching import FSDP2, start_together, weights
from vanilla_transformer.distributed.processes import sum_over_processes
from vanilla_transformer.training import loop
from vanilla_transformer.training.configuration import load_run_config

MODELS = {
    "Transformer": ["model.tie_word_embeddings=true", "model.dropout=0.0"],
    "RNN": [
        "model={model_type: rnn_seq2seq, embedding_size: 16, hidden_size: 12, tie_word_embeddings: true, dropout: 0.0}",
        "training.attention=eager",
    ],
}
# Several epochs, because the number of processes decides how batches are cut at their ends; clipped gradients.
OPTIONS = ["optimizer.max_grad_norm=0.1", "training.average_checkpoints=0"]
OPTIONS += ["optimizer.learning_rate_scale=0.1"]  # at ten times the rate, rounding grows to 0.2 of a loss
OPTIONS += ["training.checkpoint_every=1000", "training.max_source_tokens=40", "training.max_target_tokens=40"]


@dataclass(frozen=True)
class Way:
    """Four batches in an update."""

    processes: int
    sharded: bool = False

    @property
    def accumulation(self) -> int:
        return 4 // self.processes

    def __str__(self) -> str:
        kind = "" if self.processes == 1 else ", FSDP2" if self.sharded else ", DDP"
        return f"{self.processes} x {self.accumulation}{kind}"


ALONE = Way(1)
OTHERS = [Way(2), Way(2, sharded=True), Way(4), Way(4, sharded=True)]


@dataclass
class Trained:
    """The loss of each update `(updates)`, and the weights after the last."""

    losses: torch.Tensor
    weights: dict[str, torch.Tensor]

    def weights_differ(self, other: "Trained") -> float:
        """The largest difference of a parameter."""
        assert self.weights.keys() == other.weights.keys()
        return max((self.weights[name] - other.weights[name]).abs().max().item() for name in self.weights)

    def losses_differ(self, other: "Trained") -> float:
        assert self.losses.shape == other.losses.shape
        return (self.losses - other.losses).abs().max().item()


def train(way: Way, folder: Path, model: str, dtype: torch.dtype, updates: int) -> Trained:
    """Train in `folder`, which holds nothing of such a run yet."""
    tiny_run = TinyRun(folder)
    settings = [f"training.max_updates={updates}", f"training.gradient_accumulation_steps={way.accumulation}"]
    overrides = [*MODELS[model], *OPTIONS, *settings]
    start_together(_train_here, way.processes, tiny_run.config, overrides, dtype, **(FSDP2 if way.sharded else {}))
    checkpoint = tiny_run.output_dir / "checkpoints" / f"update-{updates:08d}"
    return Trained(load_file(folder / "losses.safetensors")["losses"], weights(checkpoint))


def _train_here(config: Path, overrides: list[str], dtype: torch.dtype) -> None:
    torch.set_default_dtype(dtype)
    step, losses = loop.backward, []

    def backward(state, *rest):
        result = step(state, *rest)
        losses.append(sum_over_processes(state.accelerator, result.loss))
        return result

    loop.backward = backward
    run = loop.train(load_run_config(config, overrides))
    if run.state.accelerator.is_main_process:
        save_file({"losses": torch.stack(losses)}, config.parent / "losses.safetensors")


def compare(ways: list[Way], folder: Path, model: str, dtype: torch.dtype, updates: int) -> dict[Way, Trained]:
    """The results of each way, and of one process."""
    return {
        way: train(way, _made(folder / f"{way} {dtype}".replace(" ", "-")), model, dtype, updates)
        for way in (ALONE, *ways)
    }


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=[*MODELS])
    parser.add_argument("--exact-updates", type=int, default=20, help="in float64, of which the weights are compared")
    parser.add_argument("--updates", type=int, default=200, help="in float32, of which the losses are compared")
    arguments = parser.parse_args()
    for model in arguments.models:
        with tempfile.TemporaryDirectory(prefix="world-sizes-") as folder:
            exact = compare(OTHERS, Path(folder), model, torch.float64, arguments.exact_updates)
            usual = compare(OTHERS, Path(folder), model, torch.float32, arguments.updates)
        first, last = usual[ALONE].losses[0].item(), usual[ALONE].losses[-1].item()
        print(f"{model}, processes x accumulation; the largest difference from {ALONE}")
        print(f"  of a weight, after {arguments.exact_updates} updates in float64")
        print(f"  of an update's loss, in {arguments.updates} updates in float32 (from {first:.4f} to {last:.4f})")
        for way in OTHERS:
            of_weights, of_losses = exact[way].weights_differ(exact[ALONE]), usual[way].losses_differ(usual[ALONE])
            print(f"  {way!s:14}  weight {of_weights:.1e}  loss {of_losses:.1e}", flush=True)


if __name__ == "__main__":
    main()
