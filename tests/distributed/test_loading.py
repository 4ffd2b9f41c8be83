# SPDX-License-Identifier: Apache-2.0
"""A finished folder on several devices, as transformers' users open one: the same translations as on one.

`device_map="auto"` needs an accelerator to divide a model; on CPUs it must at least change nothing.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM

from tests.distributed.launching import free_port
from tests.families import FAMILIES, Family, tiny_batch

FAMILY_IDS = [family.name for family in FAMILIES]

IN_PARALLEL = """
import json, sys
import torch.distributed as dist
import vanilla_transformer
from transformers import AutoModelForSeq2SeqLM
folder, source, out = sys.argv[1:]
try:
    model = AutoModelForSeq2SeqLM.from_pretrained(folder, tp_plan="auto")
except ValueError as error:
    found = {"error": str(error)}
else:
    import torch
    tokens = model.generate(torch.tensor(json.loads(source)), num_beams=2, min_new_tokens=7, max_new_tokens=7)
    sharded = sum(hasattr(parameter, "full_tensor") for parameter in model.parameters())
    found = {"tokens": tokens.tolist(), "sharded": sharded}
with open(f"{out}/{dist.get_rank()}.json", "w", encoding="utf-8") as file:
    json.dump(found, file)
dist.destroy_process_group()
"""


def source() -> torch.Tensor:
    return tiny_batch()["input_ids"][1:]  # without padding


def translated(model) -> list[list[int]]:
    return model.generate(source(), num_beams=2, min_new_tokens=7, max_new_tokens=7).tolist()


def in_two_processes(family: Family, folder: Path) -> tuple[list[dict], list[list[int]]]:
    """What each found, and what one process translates."""
    family.model(dropout=0.0).save_pretrained(folder / "model")
    script = folder / "translate_in_parallel.py"
    script.write_text(IN_PARALLEL, "utf-8")
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(free_port())]
    arguments = [str(script), str(folder / "model"), json.dumps(source().tolist()), str(folder)]
    ended = subprocess.run(
        [sys.executable, *launcher, *arguments], capture_output=True, encoding="utf-8", timeout=600, check=False
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    alone = translated(AutoModelForSeq2SeqLM.from_pretrained(folder / "model"))
    return [json.loads((folder / f"{rank}.json").read_text(encoding="utf-8")) for rank in range(2)], alone


@pytest.mark.parametrize("family", FAMILIES, ids=FAMILY_IDS)
def test_an_automatic_device_map_changes_nothing(family, tmp_path):
    family.model(dropout=0.0).save_pretrained(tmp_path)
    mapped = AutoModelForSeq2SeqLM.from_pretrained(tmp_path, device_map="auto")
    assert translated(mapped.to("cpu")) == translated(AutoModelForSeq2SeqLM.from_pretrained(tmp_path))


@pytest.mark.slow
def test_a_transformer_is_shared_by_two_processes(tmp_path):
    found, alone = in_two_processes(FAMILIES[0], tmp_path)
    for process in found:
        assert process["tokens"] == alone
        assert process["sharded"] > 0


@pytest.mark.slow
def test_an_rnn_says_why_it_cannot_be(tmp_path):
    found, _ = in_two_processes(FAMILIES[1], tmp_path)
    for process in found:
        assert process["error"].startswith("`tp_size=2` was requested, but `RNNSeq2SeqForConditionalGeneration` has no")
        assert "\n" not in process["error"]
