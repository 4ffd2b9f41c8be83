# SPDX-License-Identifier: Apache-2.0
import random

import pytest

from vanilla_transformer.benchmark import exactness
from vanilla_transformer.benchmark.command import main
from vanilla_transformer.data.tokenizer import load_tokenizer
from vanilla_transformer.inference.model_folder import load_model_folder


@pytest.fixture
def lines() -> list[str]:
    return [" ".join(random.choices("abcdefgh", k=random.randint(1, 9))) for _ in range(150)] + [""]


def test_a_finished_model_decodes_exactly(model_folder, lines):
    said: list[str] = []
    results = exactness.check_exactness(
        load_model_folder(model_folder), load_tokenizer(model_folder), lines, said.append
    )
    assert results["sentences"] == results["batches"] == 150  # the empty line has nothing to decode
    assert results["beams_as_transformers"] == results["greedy_as_transformers"] == 150
    assert results["scores"] == 4 * 150
    assert results["score_difference"] < 1e-4
    assert len(said) == 4


def test_another_length_penalty_is_seen_as_a_difference(model_folder, lines, monkeypatch):
    monkeypatch.setattr(exactness, "length_penalty", lambda length, alpha: length)
    results = exactness.check_exactness(
        load_model_folder(model_folder), load_tokenizer(model_folder), lines, lambda line: None
    )
    assert results["score_difference"] > 1e-2


def test_the_command_prints_the_counts(model_folder, tmp_path, lines, capsys):
    (tmp_path / "lines.txt").write_text("\n".join(lines), encoding="utf-8")
    assert main(["exact", str(model_folder), str(tmp_path / "lines.txt"), "--sentences", "5"]) == 0
    assert '"sentences": 5' in capsys.readouterr().out


def test_no_sentences_are_refused(model_folder, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["exact", str(model_folder), "none.txt", "--sentences", "0"])
    assert "argument --sentences: 0 must be at least 1" in capsys.readouterr().err
