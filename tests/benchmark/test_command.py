# SPDX-License-Identifier: Apache-2.0
import json
import subprocess
import sys
from pathlib import Path

import pytest

from vanilla_transformer.benchmark.command import main
from vanilla_transformer.benchmark.systems import CTRANSLATE2, FAST, GENERATE, MARIAN

REPOSITORY = Path(__file__).parents[2]
FILE = "configs/benchmark_decode.yaml"
TINY = [
    "models={tiny: {vocab_size: 24, d_model: 16, d_ff: 32, num_layers: 1, num_heads: 2}}",
    "sizes=[tiny]",
    "batch_sizes=[1, 2]",
    "target_tokens=4",
    "timing={repeats: 1, pause: 0.0, fill: 0.0}",
    "roofline={read_mebibytes: 1, product: 16, repeats: 1}",
]


@pytest.mark.parametrize("arguments", [["decode", "sizes=[huge]"], ["decode", FILE, "sizes=[huge]"]])
def test_an_error_is_one_line(capsys, monkeypatch, arguments):
    monkeypatch.chdir(REPOSITORY)
    assert main(arguments) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err == "benchmark: error: sizes=['huge'] must name some of the models: small, base\n"


@pytest.mark.parametrize("override", ["output=x.json", "precisions=[float32]", "real.repeats=2"])
def test_bergamot_refuses_fields_that_it_does_not_use(capsys, override):
    assert main(["bergamot", "python", "sizes=[small]", override]) == 1
    assert f"{override}: `bergamot` has no use for it; it reads models, sizes" in capsys.readouterr().err


def test_torch_before_ctranslate2_is_refused(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(REPOSITORY)
    # tests/conftest.py has imported torch; CTranslate2 comes later or never.
    assert main(["decode", *TINY, f"output={tmp_path}/decode.json"]) == 1
    assert "torch was imported before ctranslate2" in capsys.readouterr().err


@pytest.mark.slow
def test_the_script_measures_and_reports_every_case(tmp_path):
    output = tmp_path / "new" / "decode.json"
    command = [sys.executable, "scripts/benchmark.py", "decode", FILE, *TINY, f"output={output}"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr
    cases = json.loads(output.read_text(encoding="utf-8"))["result"]["synthetic"][0]["cases"]
    assert [(case["batch_size"], case["beams"]) for case in cases] == [(1, 1), (1, 4), (2, 1), (2, 4)]
    expected = {MARIAN, GENERATE, *CTRANSLATE2.values(), FAST["float32"], FAST["int8"]}
    assert all(case["results"].keys() >= expected for case in cases)
    assert "## Output tokens per second" in done.stdout
    assert done.stderr.count("tokens/s") == len(cases)
