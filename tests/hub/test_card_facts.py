# SPDX-License-Identifier: Apache-2.0
import pytest

from vanilla_transformer.hub.card_facts import ComparedModel, Comparison, ModelCardFacts, Score


def compared(name: str, *scores: Score) -> ComparedModel:
    return ComparedModel(name=name, parameters=1, updates=1, training_seconds=1, scores=scores)


@pytest.mark.parametrize("name", ["languages", "datasets"])
def test_a_string_in_place_of_a_list_is_refused(name: str):
    with pytest.raises(ValueError, match=f"{name}='en' must be a list"):
        ModelCardFacts(model_name="a", parameters=1, **{name: "en"})


def test_a_dataset_that_cannot_be_on_the_hub_is_refused():
    with pytest.raises(ValueError, match="/home/data"):
        ModelCardFacts(model_name="a", parameters=1, datasets=["/home/data"])


@pytest.mark.parametrize("other", [Score("words", "BLEU", 1.0), Score("sentences", "word error rate", 1.0)])
def test_scores_on_other_data_or_by_other_metrics_are_not_compared(other: Score):
    models = [compared("Transformer", Score("words", "word error rate", 0.5)), compared("RNN", other)]
    with pytest.raises(ValueError, match="Transformer and RNN cannot be compared"):
        Comparison(models=models, difference="")


def test_one_model_is_no_comparison():
    with pytest.raises(ValueError, match="needs at least two models, 1 given"):
        Comparison(models=[compared("Transformer")], difference="")
