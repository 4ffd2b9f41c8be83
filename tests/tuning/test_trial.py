# SPDX-License-Identifier: Apache-2.0
"""The score of a model on validation pairs, and a trial that trains a tiny run in this process."""

import math
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState

from tests.conftest import TinyRun
from vanilla_transformer.data.tokenizer import load_tokenizer
from vanilla_transformer.inference.model_folder import load_model_folder
from vanilla_transformer.inference.translate import translate_lines
from vanilla_transformer.tuning import trial
from vanilla_transformer.tuning.trial import score_pairs, train_trial

SOURCES = ["a b c d", "d e f g h", "f", "g h a"]


@pytest.fixture(scope="module")
def model(model_folder: Path):
    return load_model_folder(model_folder)


@pytest.fixture(scope="module")
def tokenizer(model_folder: Path):
    return load_tokenizer(model_folder)


def outputs_of(model, tokenizer) -> list[str]:
    return [best[0].text for best in translate_lines(model, tokenizer, SOURCES, max_batch_tokens=100)]


def test_a_word_is_right_if_the_output_is_any_of_its_targets(model, tokenizer):
    first, second, *_ = outputs_of(model, tokenizer)
    pairs = [(SOURCES[0], "x y"), (SOURCES[1], second), (SOURCES[2], "x"), (SOURCES[3], "y"), (SOURCES[0], first)]
    assert score_pairs(model, tokenizer, pairs, "word error rate", 100) == pytest.approx(50)


def test_every_pair_counts_for_bleu(model, tokenizer):
    outputs = outputs_of(model, tokenizer)
    wrong = [(source, "x x x x x") for source in SOURCES]
    right = list(zip(SOURCES, outputs, strict=True))
    scores = [score_pairs(model, tokenizer, pairs, "BLEU", 100) for pairs in (right, right + wrong, wrong)]
    assert scores[0] == pytest.approx(100)
    assert scores[0] > scores[1] > scores[2] == 0  # were the two targets of a source both its references: 100


def test_a_trial_is_scored_by_its_finished_model(tiny_run: TinyRun, monkeypatch, capsys):
    def train_here(function, *arguments) -> None:
        AcceleratorState._reset_state(reset_partial_state=True)
        function(*arguments)

    monkeypatch.setattr(trial, "run_in_subprocess", train_here)
    outcome = train_trial(tiny_run.load(*tiny_run.validation()), "perplexity")
    model, tokenizer = load_model_folder(tiny_run.output_dir / "model"), load_tokenizer(tiny_run.output_dir / "model")
    pairs = zip(*((tiny_run.folder / f"validation.{side}").read_text("utf-8").splitlines()
                  for side in ("source", "target")), strict=True)  # fmt: skip
    nll = tokens = 0.0
    for source, target in pairs:
        inputs = tokenizer(source, text_target=target, return_tensors="pt")
        with torch.no_grad():
            logits = model(**inputs).logits.log_softmax(dim=-1)
        nll -= logits.gather(-1, inputs["labels"].unsqueeze(-1)).sum().item()
        tokens += inputs["labels"].numel()
    assert outcome["score"] == pytest.approx(math.exp(nll / tokens), rel=1e-4)
    assert (outcome["updates"], outcome["parameters"]) == (8, model.num_parameters())
    assert capsys.readouterr() == ("", "")
    assert "update 8, " in (tiny_run.output_dir / "training.log").read_text("utf-8")
    left = {path.name for path in tiny_run.output_dir.iterdir()}
    assert "model" in left
    assert not left & {"checkpoints", "best"}


def test_a_score_that_is_not_finite_is_a_failure(tiny_run: TinyRun, monkeypatch):
    monkeypatch.setattr(trial, "run_in_subprocess", lambda function, *arguments: function(*arguments))
    monkeypatch.setattr(trial, "mean_loss", lambda *_: (math.inf, math.inf))
    with pytest.raises(ValueError, match="the perplexity is inf"):
        train_trial(tiny_run.load("training.max_updates=1", *tiny_run.validation()), "perplexity")
