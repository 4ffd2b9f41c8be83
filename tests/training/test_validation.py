# SPDX-License-Identifier: Apache-2.0
"""Validation against torch's cross-entropy and sacreBLEU, sentence by sentence."""

import math
from types import SimpleNamespace

import pytest
import sacrebleu
import torch
from accelerate.state import AcceleratorState

from vanilla_transformer.training import validation
from vanilla_transformer.training.setup import set_up
from vanilla_transformer.training.validation import mean_loss, perplexity, validate


@pytest.fixture
def run(tiny_run):
    return tiny_run.train(*tiny_run.validation(), "training.validate_every=1000")


@torch.no_grad()
def test_perplexity_is_of_the_unsmoothed_likelihood_of_all_tokens(run):
    model = run.state.bare_model().eval()
    total, tokens = 0.0, 0
    for row in run.corpora.validation["validation"].pairs:
        labels = torch.tensor([row["labels"]])
        logits = model(input_ids=torch.tensor([row["input_ids"]]), labels=labels).logits[0].double()
        total += torch.nn.functional.cross_entropy(logits, labels[0], reduction="sum").item()
        tokens += labels.numel()
    assert validate(run).perplexity == pytest.approx(math.exp(total / tokens), rel=1e-5)


def test_bleu_is_sacrebleus_of_greedy_translations(run):
    model = run.state.bare_model().eval()
    texts = []
    for row in run.corpora.validation["validation"].pairs:
        ids = model.generate(torch.tensor([row["input_ids"]]), num_beams=1)
        texts.append(run.tokenizer.decode(ids[0], skip_special_tokens=True))
    expected = sacrebleu.corpus_bleu(texts, [run.corpora.validation["validation"].pairs["target"][:]]).score
    assert validate(run).bleu == pytest.approx(expected)


def test_the_sentence_error_rate_is_the_share_of_sentences_with_any_error(run, monkeypatch):
    references = run.corpora.validation["validation"].pairs["target"][:]
    hypotheses = [text if number % 3 else f"{text} a" for number, text in enumerate(references)]
    translations = [[SimpleNamespace(text=text)] for text in hypotheses]
    monkeypatch.setattr(validation, "translate_on_all_processes", lambda *_, **__: translations)
    assert validate(run).sentence_error_rate == pytest.approx(4 / 12)  # sentences 0, 3, 6, 9


@pytest.mark.parametrize(("best_by", "is_best"), [("bleu", True), ("loss", False), ("sentence_error_rate", False)])
def test_the_best_is_the_best_by_the_chosen_measure(tiny_run, monkeypatch, best_by, is_best):
    """The second of two validations has a better BLEU, a worse loss, and as many wrong sentences."""
    run = set_up(tiny_run.load(*tiny_run.validation(), f"training.best_by={best_by}"))
    losses, scores = iter([(1.0, 1.0), (2.0, 2.0)]), iter([10.0, 20.0])
    empty = {"chrf": 0.0, "bleu_signature": "", "chrf_signature": ""}
    monkeypatch.setattr(validation, "mean_loss", lambda *_: next(losses))
    monkeypatch.setattr(validation, "score_translations", lambda *_: {"bleu": next(scores), **empty})
    monkeypatch.setattr(validation, "translate_on_all_processes", lambda *_, **__: [[SimpleNamespace(text="")]] * 12)
    assert validate(run).is_best
    second = validate(run)
    assert second.is_best == is_best
    assert validation.best_validation(run).bleu == (20.0 if is_best else 10.0)


@pytest.mark.parametrize(("best_on", "best"), [("null", 2), ("de", 1), ("fr", 2)])
def test_a_list_is_scored_one_by_one_with_the_mean(tiny_run, monkeypatch, best_on: str, best: int):
    """BLEU of de and fr is 30 and 10 at first, then 20 and 40."""
    tagged = [(4, {"name": "de", "tag": "<bt>"}), (6, {"name": "fr"})]
    train = tiny_run.corpora("train", (40, {"name": "all", "tag": "<bt>"}))
    run = set_up(tiny_run.load(train, tiny_run.corpora("validation", *tagged), f"training.best_on={best_on}"))
    losses, scores = iter([(1.0, 0.0), (3.0, math.log(4.0))] * 2), iter([30.0, 10.0, 20.0, 40.0])
    empty = {"chrf": 0.0, "bleu_signature": "", "chrf_signature": ""}
    asked = []

    def translate(model, tokenizer, lines, **options):
        asked.append((len(lines), options.get("tag")))
        return [[SimpleNamespace(text="")]] * len(lines)

    monkeypatch.setattr(validation, "mean_loss", lambda *_: next(losses))
    monkeypatch.setattr(validation, "score_translations", lambda *_: {"bleu": next(scores), **empty})
    monkeypatch.setattr(validation, "translate_on_all_processes", translate)
    first, second = validate(run), validate(run)
    assert asked == [(4, "<bt>"), (6, None)] * 2
    assert (first.bleu, second.bleu, first.loss) == (20.0, 30.0, 2.0)
    assert first.perplexity == pytest.approx(2.5)
    assert {name: figures["bleu"] for name, figures in second.corpora.items()} == {"de": 20.0, "fr": 40.0}
    assert [first.is_best, second.is_best] == [True, best == 2]
    assert validation.best_validation(run).bleu == (30.0 if best == 2 else 20.0)


def test_a_loss_that_is_no_number_is_never_the_best(tiny_run, monkeypatch):
    run = set_up(tiny_run.load(*tiny_run.validation(), "training.best_by=loss"))
    losses = iter([(math.nan, 1.0), (2.0, 1.0)])
    monkeypatch.setattr(validation, "mean_loss", lambda *_: next(losses))
    assert [validate(run).is_best for _ in range(2)] == [False, True]


def test_the_model_goes_on_training_afterwards(run):
    run.state.bare_model().train()
    validate(run)
    assert run.state.bare_model().training


def test_the_best_model_is_kept(tiny_run):
    run = tiny_run.train(*tiny_run.validation(), "training.validate_every=3")
    assert run.state.progress.best_score >= 0
    assert {path.name for path in (tiny_run.output_dir / "best").iterdir()} >= {"model.safetensors", "tokenizer.json"}


def test_a_longer_run_remembers_the_best_of_the_last_validation(tiny_run):
    options = [*tiny_run.validation(), "training.validate_every=1000"]
    first = tiny_run.train(*options, "training.max_updates=6").state.progress.best_score
    assert first >= 0
    AcceleratorState._reset_state(reset_partial_state=True)
    assert set_up(tiny_run.load(*options)).state.progress.best_score == first


def test_validation_never_computes_the_logits_of_a_whole_batch(run, monkeypatch):
    where = "vanilla_transformer.seq2seq_base.cross_entropy_of_logits"
    monkeypatch.setattr(where, lambda *_: pytest.fail("the whole projection was computed"))
    mean_loss(run.state.bare_model(), run.validation_batches["validation"], run.state.accelerator)


def test_perplexity_beyond_floats_is_infinite():
    assert perplexity(1e6) == math.inf
