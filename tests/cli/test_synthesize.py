# SPDX-License-Identifier: Apache-2.0
"""The command's options; what they do, tests/inference/test_synthesize.py looks at."""

import json
import shutil
from pathlib import Path

import pytest

from vanilla_transformer.cli import main
from vanilla_transformer.data.corpus import read_lines


@pytest.fixture
def mono(tmp_path: Path) -> Path:
    path = tmp_path / "mono"
    path.write_text("a b c\n\nd e f g\n" * 4, encoding="utf-8")
    return path


def synthesize(model: Path, mono: Path, *options: str) -> int:
    return main(["synthesize", str(model), "--input", str(mono), "--output", str(mono.parent / "bt"), *options])


def rows(mono: Path) -> list[dict]:
    return [json.loads(line) for line in read_lines(mono.parent / "bt" / "corpus.jsonl.gz")]


def test_the_command_says_what_it_has_written(model_folder, mono, capsys):
    assert synthesize(model_folder, mono, "--samples", "2", "--temperature", "0.7", "--top-k", "6", "--top-p", "1") == 0
    said = capsys.readouterr().out
    assert said.startswith(f"{mono.parent}/bt/corpus.jsonl.gz: {len(rows(mono))} pairs of 12 lines, 4 empty lines")
    manifest = json.loads((mono.parent / "bt" / "manifest.json").read_text(encoding="utf-8"))
    sampling = {"temperature": 0.7, "top_k": 6, "top_p": 1.0, "seed": 1}
    assert sampling.items() <= {key.removeprefix("sampling."): value for key, value in manifest.items()}.items()
    assert manifest["counts"]["pairs"] == len(rows(mono))


def test_alpha_is_that_of_the_length_penalty_of_samples(model_folder, mono, tmp_path):
    found = []
    for alpha in ("0", "1"):
        (tmp_path / alpha).mkdir()
        text = shutil.copy(mono, tmp_path / alpha / "mono")
        assert synthesize(model_folder, text, "--samples", "1", "--alpha", alpha) == 0
        found.append(rows(text))
    for plain, divided in zip(*found, strict=True):
        assert plain["source"] == divided["source"]
        words = len(plain["source"].split())
        ratio = plain["score"] / divided["score"]  # (5 + length) / 6, with the EOS token if there is one
        assert min(abs(ratio - (5 + length) / 6) for length in (words, words + 1)) < 1e-3


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--temperature", "2"], "--temperature needs --samples N"),
        (["--top-k", "2"], "--top-k needs --samples N"),
        (["--seed", "2"], "--seed needs --samples N"),
        (["--samples", "1", "--beams", "4"], "--beams is of beam search: leave it out, or --samples"),
        (["--samples", "1", "--n-best", "2"], "--n-best is of beam search: leave it out, or --samples"),
        (["--samples", "1", "--coverage-penalty", "1"], "--coverage-penalty is of beam search"),
        (["--n-best", "5"], "--n-best 5 needs at least 5 beams, or --samples: add --beams 5"),
        (["--beams", "1", "--min-score", "-1"], "--min-score needs at least 2 beams, or --samples: add --beams 2"),
    ],
)
def test_options_that_do_not_go_together_are_usage_errors(model_folder, mono, capsys, options, said):
    assert synthesize(model_folder, mono, *options) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith(f"vanilla-transformer synthesize: error: {said}")
    assert not (mono.parent / "bt").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--temperature", "0"], "temperature=0.0 must be greater than 0, and finite"),
        (["--top-p", "1.1"], "top_p=1.1 must be greater than 0 and at most 1"),
        (["--seed", "-1"], "seed=-1 must be at least 0 and at most 18446744073709551615"),
    ],
)
def test_values_out_of_range_are_one_line(model_folder, mono, capsys, options, said):
    assert synthesize(model_folder, mono, "--samples", "1", *options) == 1
    assert capsys.readouterr().err == f"vanilla-transformer synthesize: error: {said}\n"


def test_a_missing_input_is_one_line(model_folder, mono, capsys):
    assert synthesize(model_folder, mono.parent / "nowhere") == 1
    assert capsys.readouterr().err.endswith(f"error: corpus file {mono.parent}/nowhere does not exist\n")


def test_an_output_that_cannot_be_a_folder_is_one_line(model_folder, mono, capsys):
    (mono.parent / "bt").write_text("", encoding="utf-8")
    assert synthesize(model_folder, mono) == 1
    assert "error: --output " in capsys.readouterr().err.splitlines()[-1]
