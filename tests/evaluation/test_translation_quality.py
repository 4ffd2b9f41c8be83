# SPDX-License-Identifier: Apache-2.0
import random

import pytest
import sacrebleu

from vanilla_transformer.evaluation.translation_quality import score_translations


def corpus(sentences: int) -> tuple[list[str], list[str]]:
    """Predictions that are right in most words, and references."""
    words = ["Ein", "Hund", "läuft", "über", "die", "grüne", "Wiese", ",", "während", "Kinder", "spielen"]
    references = [" ".join(random.choices(words, k=random.randint(4, 12))) + "." for _ in range(sentences)]
    predictions = [
        " ".join(word if random.random() < 0.8 else random.choice(words) for word in reference.split())
        for reference in references
    ]
    return predictions, references


def test_the_scores_are_sacrebleus():
    predictions, references = corpus(40)
    result = score_translations(predictions, references)
    bleu = sacrebleu.corpus_bleu(predictions, [references])
    assert 10 < bleu.score < 90
    assert result["bleu"] == bleu.score
    assert result["chrf"] == sacrebleu.corpus_chrf(predictions, [references]).score
    assert result["length_ratio"] == pytest.approx(bleu.sys_len / bleu.ref_len)
    assert result["sentences"] == 40


def test_lowercase_ignores_case():
    predictions, references = corpus(40)
    shouted = [prediction.upper() for prediction in predictions]
    lowercase = score_translations(shouted, references, lowercase=True)
    assert score_translations(shouted, references)["bleu"] < lowercase["bleu"]
    assert lowercase["bleu"] == sacrebleu.corpus_bleu(shouted, [references], lowercase=True).score


@pytest.mark.parametrize(("lowercase", "case"), [(False, "mixed"), (True, "lc")])
def test_the_signatures_tell_how_the_scores_came_about(lowercase: bool, case: str):
    result = score_translations(*corpus(5), lowercase=lowercase)
    bleu = dict(part.split(":") for part in result["bleu_signature"].split("|"))
    chrf = dict(part.split(":") for part in result["chrf_signature"].split("|"))
    assert bleu == {
        "nrefs": "1",
        "case": case,
        "eff": "no",
        "tok": "13a",
        "smooth": "exp",
        "version": sacrebleu.__version__,
    }
    assert (chrf["case"], chrf["version"]) == (case, sacrebleu.__version__)


def test_several_references_each():
    predictions, references = corpus(20)
    others = corpus(20)[1]
    pairs = list(zip(references, others, strict=True))
    result = score_translations(predictions, pairs)
    assert result["bleu"] == sacrebleu.corpus_bleu(predictions, [references, others]).score
    assert "nrefs:2|" in result["bleu_signature"]


def test_sentences_may_differ_in_their_number_of_references():
    predictions, references = corpus(4)
    mixed = [references[0], [references[1], "eine andere"], [references[2]], references[3]]
    streams = [references, [None, "eine andere", None, None]]
    result = score_translations(predictions, mixed)
    assert result["bleu"] == sacrebleu.corpus_bleu(predictions, streams).score  # pyright: ignore[reportArgumentType]
    assert "nrefs:var|" in result["bleu_signature"]


def test_an_empty_translation_is_scored():
    predictions, references = corpus(10)
    predictions[3] = ""
    assert score_translations(predictions, references)["bleu"] == sacrebleu.corpus_bleu(predictions, [references]).score


@pytest.mark.parametrize(("predictions", "references"), [(3, 2), (1, 2), (0, 0)])
def test_counts_that_do_not_fit_are_refused_in_one_line(predictions: int, references: int):
    with pytest.raises(ValueError, match=rf"^{predictions} translations .* {references} references.*$") as caught:
        score_translations(["a"] * predictions, ["a"] * references)
    assert "\n" not in str(caught.value)


def test_a_sentence_without_references_is_refused():
    with pytest.raises(ValueError, match="empty list of references"):
        score_translations(["a"], [[]])
