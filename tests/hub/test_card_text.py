# SPDX-License-Identifier: Apache-2.0
import ast
from dataclasses import replace

import pytest

from vanilla_transformer.hub.card_facts import ComparedModel, Comparison, ModelCardFacts, Score
from vanilla_transformer.hub.card_text import card_text

LEAST = ModelCardFacts(model_name="tiny", parameters=1234567)
WORDS = "1,000 words"


def cells(table: str) -> list[list[str]]:
    """Of the rows that begin with a bar."""
    rows = [line for line in table.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def training(facts: ModelCardFacts) -> dict[str, str]:
    return dict(cells(card_text(facts)["training"]))


def beside(name: str, error: float) -> ComparedModel:
    scores = [Score(WORDS, "word error rate", error)]
    return ComparedModel(name=name, parameters=804608, updates=1500, training_seconds=240.0, scores=scores)


@pytest.mark.parametrize(
    ("hours", "published"),
    [(12, "3.3 · 10^18"), (3.5 * 24, "2.3 · 10^19")],
    ids=["base", "big"],
)
def test_training_flops_are_those_of_the_papers_table_2(hours: float, published: str):
    eight_p100 = replace(LEAST, training_seconds=hours * 3600, devices=8, sustained_flops=9.5e12)
    assert training(eight_p100)["training FLOPs"].startswith(f"{published} = ")
    assert "an upper estimate" in card_text(eight_p100)["training"]


@pytest.mark.parametrize("name", ["training_seconds", "devices", "sustained_flops"])
def test_without_all_three_factors_there_are_no_flops(name: str):
    known = {"training_seconds": 60.0, "devices": 1, "sustained_flops": 1e11} | {name: None}
    assert "FLOPs" not in card_text(replace(LEAST, **known))["training"]


def test_unknown_facts_of_the_training_have_no_row():
    assert cells(card_text(LEAST)["training"])[2:] == [["parameters", "1,234,567"]]


def test_zero_is_not_unknown():
    facts = replace(LEAST, updates=0, pairs=0, training_seconds=0, recipe={"dropout": 0.0})
    assert training(facts) | {"": ""} == {
        "": "",
        "---": "---",
        "parameters": "1,234,567",
        "updates": "0",
        "wall time of the updates": "0 seconds (0:00:00)",
    }
    assert ["dropout", "0.0"] in cells(card_text(facts)["hyperparameters"])
    assert "Pairs: 0" in card_text(facts)["training_data"]


@pytest.mark.parametrize("name", ["training_data", "hyperparameters", "results"])
def test_a_section_without_facts_says_so(name: str):
    assert card_text(LEAST)[name] == "Not recorded."


def test_an_unstated_licence_is_reported():
    assert "Licence of the data: not stated" in card_text(replace(LEAST, pairs=3))["training_data"]
    assert card_text(LEAST)["weights_license"] == "no licence stated"


def test_data_on_the_hub_is_linked():
    text = card_text(replace(LEAST, datasets=["wmt/wmt14"]))["training_data"]
    assert "- On the Hub: [wmt/wmt14](https://huggingface.co/datasets/wmt/wmt14)" in text.splitlines()


def test_an_rnn_is_not_called_a_transformer():
    text = card_text(replace(LEAST, model_type="rnn_seq2seq"))
    assert text["description"].startswith("A recurrent encoder-decoder (RNN)")
    assert card_text(LEAST)["description"].startswith("A Transformer encoder-decoder")


def test_a_model_without_a_comparison_names_the_other_architecture():
    assert "without an RNN beside it. `vanilla-transformer compare`" in card_text(LEAST)["comparison"]
    assert "without a Transformer beside it" in card_text(replace(LEAST, model_type="rnn_seq2seq"))["comparison"]


def test_a_comparison_begins_with_the_cards_own_model():
    comparison = Comparison(models=[beside("RNN", 0.36), beside("Transformer", 0.34)], difference="Of 2 points.")
    text = card_text(replace(LEAST, comparison=comparison))["comparison"]
    header, _, *rows = cells(text)
    assert header == ["model", "parameters", "updates", "wall time", "word error rate"]
    assert rows == [
        ["RNN (this model)", "804,608", "1,500", "240 seconds (0:04:00)", "0.3600"],
        ["Transformer", "804,608", "1,500", "240 seconds (0:04:00)", "0.3400"],
    ]
    assert f"scored on {WORDS}:" in text
    assert text.endswith("Of 2 points.")


def test_strings_in_the_code_are_escaped_facts():
    nasty = 'a "quoted" \\ name\n# with a line'
    text = card_text(replace(LEAST, model_name=nasty, example_input=nasty))
    assert ast.literal_eval(text["name_in_python"]) == ast.literal_eval(text["example_in_python"]) == nasty
