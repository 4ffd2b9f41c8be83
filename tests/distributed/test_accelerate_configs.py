# SPDX-License-Identifier: Apache-2.0
"""The files of configs/accelerate: Accelerate's own reading of them, and runs that it starts by them."""

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType
from accelerate.utils.launch import prepare_multi_gpu_env
from transformers import AutoModelForSeq2SeqLM

from tests.conftest import write_reversals
from tests.distributed.launching import CONFIGS, REPOSITORY, TRAIN, launch, weights
from vanilla_transformer.data.tokenizer import load_tokenizer
from vanilla_transformer.distributed.fsdp import fsdp_requested

KINDS = {
    "one_gpu": DistributedType.NO,
    "ddp": DistributedType.MULTI_GPU,
    "multi_node": DistributedType.MULTI_GPU,
    "cpu": DistributedType.MULTI_GPU,
    "fsdp2": DistributedType.FSDP,
    "deepspeed_zero2": DistributedType.DEEPSPEED,
}


def launch_arguments(name: str, *options: str):
    """What `accelerate launch` makes of a file before it starts anything."""
    arguments = ["--config_file", str(CONFIGS / f"{name}.yaml"), *options, "scripts/train.py", "configs/small.yaml"]
    parsed, _, _ = _validate_launch_command(launch_command_parser().parse_args(arguments))
    return parsed


def test_accelerate_configs_are_the_documented_ones():
    assert {path.stem for path in CONFIGS.iterdir()} == set(KINDS)


@pytest.mark.parametrize("name", KINDS)
def test_accelerate_reads_the_file(name):
    config = load_config_from_file(str(CONFIGS / f"{name}.yaml"))  # raises for unknown keys
    assert isinstance(config, ClusterConfig)
    assert config.distributed_type == KINDS[name]


@pytest.mark.parametrize("name", KINDS)
def test_the_precision_is_left_to_the_run(name):
    assert load_config_from_file(str(CONFIGS / f"{name}.yaml")).mixed_precision is None
    assert launch_arguments(name).mixed_precision == "no"


@pytest.mark.parametrize(
    ("name", "way"),
    [
        ("ddp", "multi_gpu"),
        ("multi_node", "multi_gpu"),
        ("cpu", "multi_gpu"),
        ("fsdp2", "use_fsdp"),
        ("deepspeed_zero2", "use_deepspeed"),
        ("one_gpu", None),
    ],
)
def test_accelerate_launches_the_intended_kind(name, way):
    arguments = launch_arguments(name)
    ways = ("multi_gpu", "use_fsdp", "use_deepspeed", "use_megatron_lm", "tpu")
    assert [item for item in ways if getattr(arguments, item)] == ([way] if way else [])
    assert bool(arguments.use_cpu) == (name == "cpu")


def test_a_machine_is_chosen_on_the_command_line():
    arguments = launch_arguments("multi_node", "--machine_rank", "1", "--main_process_ip", "10.0.0.1")
    assert (arguments.machine_rank, arguments.main_process_ip) == (1, "10.0.0.1")
    assert arguments.num_processes % arguments.num_machines == 0


def told(name: str, *options: str) -> dict[str, str]:
    """The variables that `accelerate launch` gives its processes."""
    return prepare_multi_gpu_env(launch_arguments(name, *options))


@pytest.mark.parametrize("name", ["ddp", "multi_node", "cpu", "fsdp2"])
def test_fsdp2_alone_shards_weights(name, monkeypatch):
    for variable, value in told(name).items():
        monkeypatch.setenv(variable, value)
    assert fsdp_requested() == (name == "fsdp2")


@pytest.mark.parametrize(
    ("options", "remedy"),
    [
        (["--fsdp_version", "1"], "fsdp_version='1' .*FSDP1 has no parameters with names; set it to 2"),
        (["--fsdp_offload_params", "true"], "fsdp_offload_params='true' .*set it to false"),
        (["--fsdp_reshard_after_forward", "false"], "fsdp_reshard_after_forward='false' .*set it to true"),
        (["--fsdp_cpu_ram_efficient_loading", "true"], "fsdp_cpu_ram_efficient_loading='true' .*set it to false"),
        (["--fsdp_activation_checkpointing", "true"], "training.gradient_checkpointing=true instead"),
        (["--fsdp_auto_wrap_policy", "SIZE_BASED_WRAP"], "fsdp_auto_wrap_policy='SIZE_BASED_WRAP' .*leave it out"),
        (["--fsdp_transformer_layer_cls_to_wrap", "EncoderLayer"], "='EncoderLayer' .*leave it out"),
    ],
)
def test_unsupported_options_of_fsdp2_are_refused_before_a_folder_is_made(tiny_run, monkeypatch, options, remedy):
    for variable, value in told("fsdp2", *options).items():
        monkeypatch.setenv(variable, value)
    with pytest.raises(ValueError, match=remedy) as caught:
        tiny_run.train()
    assert "\n" not in str(caught.value)
    assert not tiny_run.output_dir.exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cpu", "fsdp2"])
def test_two_processes_on_cpus_train_as_one_that_accumulates(tiny_run, name):
    """An epoch is one update either way, so the gradients are of the same pairs."""
    options = [str(tiny_run.config), "model.dropout=0.0", "training.max_updates=3"]
    options += [f"training.max_{side}_tokens=280" for side in ("source", "target")]
    alone, together = tiny_run.folder / "alone", tiny_run.folder / "together"
    tiny_run.train(*options[1:], f"training.output_dir={alone}", "training.gradient_accumulation_steps=100")
    settings = [f"training.output_dir={together}", "training.gradient_accumulation_steps=50"]
    launch([TRAIN, *options, *settings], config=name)
    assert '"devices": 2' in (together / "results.json").read_text(encoding="utf-8")
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
        "training": {"max_updates": 3, "max_source_tokens": 280, "max_target_tokens": 280},
        "optimizer": {"learning_rate": 1e-2},
    }
    path = tmp_path / "finetune.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    scores = []
    for name, processes, accumulation in (("alone", 1, 100), ("together", 2, 50)):
        settings = [f"training.output_dir={tmp_path / name}", f"training.gradient_accumulation_steps={accumulation}"]
        said = launch([str(REPOSITORY / "scripts" / "finetune.py"), str(path), *settings], processes, config="cpu")
        scores.append([line for line in said.splitlines() if line.startswith("validation: ")])
    assert scores[0] == scores[1]
    assert len(scores[0]) == 1
    expected, before = weights(tmp_path / "alone" / "model"), base.state_dict()
    for name, weight in weights(tmp_path / "together" / "model").items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-3, atol=1e-5)
        assert not torch.equal(weight, before[name]), name
