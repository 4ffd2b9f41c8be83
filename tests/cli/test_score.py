# SPDX-License-Identifier: Apache-2.0
import json
import math
from pathlib import Path

import pytest

from vanilla_transformer.cli import main
from vanilla_transformer.inference.translator import Translator

SOURCES, TARGETS = ["a b c", "", "h", "d e"], ["c b a", "", "h", ""]


@pytest.fixture
def files(tmp_path) -> list[str]:
    for name, lines in (("source", SOURCES), ("target", TARGETS)):
        (tmp_path / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return ["--source", str(tmp_path / "source"), "--target", str(tmp_path / "target")]


def test_scores_and_perplexity_match_translator(model_folder: Path, files, capsysbinary):
    assert main(["score", str(model_folder), *files, "--alpha", "0", "--quiet"]) == 0
    printed = capsysbinary.readouterr()
    expected = list(Translator.from_pretrained(model_folder).score(zip(SOURCES, TARGETS, strict=True), alpha=0.0))
    assert [float(line) for line in printed.out.split()] == pytest.approx(
        [each.score or 0.0 for each in expected], abs=1e-5
    )
    total, tokens = sum(each.score or 0.0 for each in expected), sum(len(each.tokens) for each in expected)
    assert tokens == 4 + 2 + 1
    assert f"4 pairs, {tokens} target tokens: ".encode() in printed.err
    perplexity = float(printed.err.split(b"perplexity ")[1])
    assert perplexity == pytest.approx(math.exp(-total / tokens), rel=1e-4)


def test_json_has_the_probability_of_each_token(model_folder: Path, files, capsysbinary):
    assert main(["score", str(model_folder), *files, "--alpha", "0", "--quiet", "--json"]) == 0
    rows = [json.loads(line) for line in capsysbinary.readouterr().out.splitlines()]
    assert [row["line"] for row in rows] == [1, 2, 3, 4]
    assert [row["target"] for row in rows] == TARGETS
    assert rows[0]["tokens"] == ["c", "b", "a", "</s>"]
    for row in rows:
        assert sum(map(math.log, row["probabilities"])) == pytest.approx(row["score"] or 0.0, abs=1e-4)


def test_several_models_are_an_ensemble(model_folder: Path, files, capsysbinary):
    assert main(["score", str(model_folder), *files, "--quiet"]) == 0
    alone = capsysbinary.readouterr().out.split()
    assert main(["score", str(model_folder), str(model_folder), *files, "--quiet", "--weights", "1,3"]) == 0
    together = capsysbinary.readouterr().out.split()  # the mean of equals
    assert list(map(float, together)) == pytest.approx(list(map(float, alone)), abs=1e-5)


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_calibration_is_drawn(model_folder: Path, files, tmp_path, capsys, suffix: str):
    output = tmp_path / f"calibration.{suffix}"
    assert main(["score", str(model_folder), *files, "--quiet", "--calibration", str(output)]) == 0
    assert output.stat().st_size > 1000
    assert "expected calibration error 0." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "status", "said"),
    [
        (["--weights", "1,2"], 1, "weights has 2 values for 1 models; give one for each"),
        (["--calibration", "x.pdf"], 1, "its suffix '.pdf' must be one of .png, .svg"),
        (["--max-tokens", "3"], 1, "line 1 has 4 tokens, more than the limit of 3"),
    ],
)
def test_bad_options_are_one_line(model_folder: Path, files, capsys, options: list[str], status: int, said: str):
    assert main(["score", str(model_folder), *files, "--quiet", *options]) == status
    assert said in capsys.readouterr().err.splitlines()[-1]


def test_other_numbers_of_lines_are_refused(model_folder: Path, files, tmp_path, capsys):
    (tmp_path / "target").write_text("a\n", encoding="utf-8")
    assert main(["score", str(model_folder), *files]) == 1
    assert "source has 4 lines, " in capsys.readouterr().err
