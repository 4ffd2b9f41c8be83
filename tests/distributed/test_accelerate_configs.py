# SPDX-License-Identifier: Apache-2.0
"""The files of configs/accelerate: Accelerate's own reading of them, and runs that it starts by them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType
from transformers import AutoModelForSeq2SeqLM

from tests.conftest import write_reversals
from vanilla_transformer.data.tokenizer import load_tokenizer

REPOSITORY = Path(__file__).parents[2]
FOLDER = REPOSITORY / "configs" / "accelerate"
KINDS = {
    "one_gpu": DistributedType.NO,
    "ddp": DistributedType.MULTI_GPU,
    "multi_node": DistributedType.MULTI_GPU,
    "cpu": DistributedType.MULTI_GPU,
}


def launch_arguments(name: str, *options: str):
    """What `accelerate launch` makes of a file before it starts anything."""
    arguments = ["--config_file", str(FOLDER / f"{name}.yaml"), *options, "scripts/train.py", "configs/small.yaml"]
    parsed, _, _ = _validate_launch_command(launch_command_parser().parse_args(arguments))
    return parsed


def test_there_are_the_files_that_the_documentation_names():
    assert {path.stem for path in FOLDER.iterdir()} == set(KINDS)


@pytest.mark.parametrize("name", KINDS)
def test_accelerate_reads_the_file(name):
    config = load_config_from_file(str(FOLDER / f"{name}.yaml"))  # raises for unknown keys
    assert isinstance(config, ClusterConfig)
    assert config.distributed_type == KINDS[name]


@pytest.mark.parametrize("name", KINDS)
def test_the_precision_is_left_to_the_run(name):
    assert load_config_from_file(str(FOLDER / f"{name}.yaml")).mixed_precision is None
    assert launch_arguments(name).mixed_precision == "no"


@pytest.mark.parametrize(
    ("name", "way"),
    [("ddp", "multi_gpu"), ("multi_node", "multi_gpu"), ("cpu", "multi_gpu"), ("one_gpu", None)],
)
def test_accelerate_launches_it_the_way_it_is_meant(name, way):
    arguments = launch_arguments(name)
    ways = ("multi_gpu", "use_fsdp", "use_deepspeed", "use_megatron_lm", "tpu")
    assert [one for one in ways if getattr(arguments, one)] == ([way] if way else [])
    assert bool(arguments.use_cpu) == (name == "cpu")


def test_a_machine_is_chosen_on_the_command_line():
    arguments = launch_arguments("multi_node", "--machine_rank", "1", "--main_process_ip", "10.0.0.1")
    assert (arguments.machine_rank, arguments.main_process_ip) == (1, "10.0.0.1")
    assert arguments.num_processes % arguments.num_machines == 0


def accelerate_launch(name: str, script: str, arguments: list[str], *options: str) -> str:
    command = ["-m", "accelerate.commands.launch", "--config_file", str(FOLDER / f"{name}.yaml"), *options]
    result = subprocess.run(
        [sys.executable, *command, str(REPOSITORY / "scripts" / script), *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return AutoModelForSeq2SeqLM.from_pretrained(folder).state_dict()


@pytest.mark.slow
def test_two_processes_on_cpus_train_as_one_that_accumulates(tiny_run):
    """An epoch is one update either way, so the gradients are of the same pairs."""
    options = [str(tiny_run.config), "model.dropout=0.0", "training.max_updates=3"]
    options += [f"training.max_{side}_tokens=280" for side in ("source", "target")]
    alone, together = tiny_run.folder / "alone", tiny_run.folder / "together"
    tiny_run.train(*options[1:], f"training.output_dir={alone}", "training.gradient_accumulation_steps=100")
    settings = [f"training.output_dir={together}", "training.gradient_accumulation_steps=50"]
    accelerate_launch("cpu", "train.py", [*options, *settings])
    assert '"devices": 2' in (together / "results.json").read_text()
    expected = weights(alone / "model")
    for name, weight in weights(together / "model").items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_two_processes_fine_tune_as_one_that_accumulates(model_folder, tmp_path):
    """As above; and 13 held-out pairs, which two processes cannot share evenly, are scored as by one."""
    base = AutoModelForSeq2SeqLM.from_pretrained(model_folder, dropout=0.0)  # each process would draw its own
    base.save_pretrained(tmp_path / "base")
    load_tokenizer(model_folder).save_pretrained(tmp_path / "base")
    values = {
        "model": str(tmp_path / "base"),
        "data": {side: write_reversals(tmp_path, side, pairs) for side, pairs in (("train", 120), ("validation", 13))},
        "batches": {"max_source_tokens": 280, "max_target_tokens": 280},
        "training": {"max_steps": 3, "disable_tqdm": True, "per_device_eval_batch_size": 2, "learning_rate": 1e-2},
    }
    path = tmp_path / "finetune.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    scores = []
    for name, processes, accumulation in (("alone", 1, 100), ("together", 2, 50)):
        settings = [f"training.output_dir={tmp_path / name}", f"training.gradient_accumulation_steps={accumulation}"]
        said = accelerate_launch("cpu", "finetune.py", [str(path), *settings], "--num_processes", str(processes))
        scores.append([line for line in said.splitlines() if line.startswith("validation: ")])
    assert scores[0] == scores[1]
    assert len(scores[0]) == 1
    expected, before = weights(tmp_path / "alone" / "model"), base.state_dict()
    for name, weight in weights(tmp_path / "together" / "model").items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-3, atol=1e-5)
        assert not torch.equal(weight, before[name]), name
