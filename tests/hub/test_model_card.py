# SPDX-License-Identifier: Apache-2.0
import re
from pathlib import Path

import jinja2
import jinja2.meta
import pytest
import tokenizers
from huggingface_hub import ModelCard
from transformers import PreTrainedTokenizerFast

import vanilla_transformer
from vanilla_transformer.hub import model_card
from vanilla_transformer.hub.model_card import ModelCardFacts, Score, write_model_card

SIGNATURE = "nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:2.6.0"
LEAST = ModelCardFacts(model_name="tiny", parameters=1234567)
ALL = ModelCardFacts(
    model_name="someone/multi30k-en-de",
    parameters=1234567,
    recipe={"model": {"d_model": 256, "d_k": None}, "optimizer": {"betas": [0.9, 0.98], "epsilon": 1e-9}},
    languages=["en", "de"],
    data_description="Multi30k, task 1",
    data_license="for research",
    weights_license="cc-by-4.0",
    pairs=29000,
    updates=10812,
    training_seconds=5400.4,
    hardware="2 x some processor",
    torch_version="2.13.0",
    transformers_version="5.24.0",
    scores=[Score("flickr", "BLEU", 36.125, SIGNATURE), Score("validation", "word error rate", 0.25)],
)
NASTY = "a | b\n---\n# c `d` **e** _f_ <script>g</script> [h](i) {{ parameters }} {% raw %} ~~j~~ $k$ &lt; \\ ```"


def card(folder: Path, facts: ModelCardFacts) -> ModelCard:
    return ModelCard.load(write_model_card(folder, facts=facts))


def section(text: str, heading: str) -> str:
    return text.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]


def headings(text: str) -> list[str]:
    code_removed = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    return re.findall(r"^#+ .*$", code_removed, re.MULTILINE)


def test_it_is_the_readme_of_the_folder(tmp_path: Path):
    path = write_model_card(tmp_path, facts=LEAST)
    assert path == tmp_path / "README.md"
    assert path.read_text(encoding="utf-8").startswith("---\n")


def test_a_folder_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"nowhere does not exist$"):
        write_model_card(tmp_path / "nowhere", facts=LEAST)


def test_the_metadata(tmp_path: Path):
    data = card(tmp_path, ALL).data
    assert (data.language, data.license, data.library_name) == (["en", "de"], "cc-by-4.0", "transformers")
    assert data.pipeline_tag == "translation"
    assert data.model_name == "someone/multi30k-en-de"
    first, second = data.eval_results or []
    assert (first.dataset_name, first.metric_name, first.metric_type) == ("flickr", "BLEU", "bleu")
    assert first.metric_value == 36.125  # not rounded
    assert first.metric_args == {"signature": SIGNATURE}
    assert (second.dataset_name, second.metric_type, second.metric_args) == ("validation", "word_error_rate", None)


def test_what_is_unknown_is_left_out_of_the_metadata(tmp_path: Path):
    data = card(tmp_path, LEAST).data.to_dict()
    assert data == {"library_name": "transformers", "tags": ["vanilla_transformer"]}


def test_one_language_makes_no_translator(tmp_path: Path):
    data = card(tmp_path, ModelCardFacts(model_name="g2p", parameters=1, languages=["en"])).data
    assert (data.language, data.pipeline_tag) == (["en"], None)


def test_norwegian_is_no_truth_value(tmp_path: Path):
    data = card(tmp_path, ModelCardFacts(model_name="a", parameters=1, languages=["no", "en"])).data
    assert data.language == ["no", "en"]


def test_languages_are_not_letters():
    with pytest.raises(ValueError, match="languages='en' must be a list"):
        ModelCardFacts(model_name="a", parameters=1, languages="en")


def test_the_text_has_every_fact(tmp_path: Path):
    text = card(tmp_path, ALL).text
    assert "en → de" in text
    assert {"Multi30k, task 1", "29,000", "for research"} <= set(
        re.findall(r": (.*)$", section(text, "Training data"), re.M)
    )
    training = section(text, "Training")
    for row in [
        "parameters | 1,234,567",
        "updates | 10,812",
        "time of training | 5,400 seconds (1:30:00)",
        "hardware | 2 x some processor",
        "software | torch 2.13.0, transformers 5.24.0",
        "model.d_model | 256",
        "optimizer.epsilon | 1e-09",
    ]:
        assert f"| {row} |" in training
    assert "d_k" not in training  # unknown
    results = section(text, "Results")
    assert "| validation | word error rate | 0.2500 |" in results
    assert f"BLEU on flickr: `{SIGNATURE}`" in results  # to be copied as it is
    assert "cc-by-4.0" in section(text, "Licence")


def test_what_is_unknown_is_left_out_of_the_text(tmp_path: Path):
    text = card(tmp_path, LEAST).text
    assert "None" not in text
    assert headings(text) == [
        "# tiny",
        "## How to use",
        "## Training",
        "## Limits",
        "## Licence",
        "## Citation",
    ]
    rows = [line for line in section(text, "Training").splitlines() if line.startswith("| ")]
    assert rows == ["| | |", "| parameters | 1,234,567 |"]


def test_an_rnn_is_not_called_a_transformer(tmp_path: Path):
    made = card(tmp_path, ModelCardFacts(model_name="a", parameters=1, model_type="rnn_seq2seq"))
    assert made.data.tags == ["vanilla_transformer", "rnn_seq2seq"]
    assert "A recurrent encoder-decoder" in made.text
    assert "A Transformer encoder-decoder" not in made.text


def test_zero_is_known(tmp_path: Path):
    facts = ModelCardFacts(
        model_name="a", parameters=1, updates=0, pairs=0, training_seconds=0, recipe={"dropout": 0.0}
    )
    text = card(tmp_path, facts).text
    for row in ["updates | 0", "time of training | 0 seconds (0:00:00)", "dropout | 0.0"]:
        assert f"| {row} |" in text
    assert "Pairs: 0" in text


def test_the_code_in_the_card_runs(tmp_path: Path, capsys):
    vocabulary = {token: i for i, token in enumerate(["<pad>", "</s>", "<unk>", "a"])}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(
        tokenizer_object=backend, model_input_names=["input_ids", "attention_mask"], **special
    ).save_pretrained(tmp_path)
    config = vanilla_transformer.VanillaTransformerConfig(
        vocab_size=4,
        d_model=8,
        d_ff=8,
        num_layers=1,
        num_heads=2,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
        decoder_start_token_id=2,
    )
    model = vanilla_transformer.VanillaTransformerForConditionalGeneration(config)
    model.generation_config.max_new_tokens = 3
    model.save_pretrained(tmp_path)
    text = card(tmp_path, ModelCardFacts(model_name=str(tmp_path), parameters=model.num_parameters())).text
    [code] = re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out.endswith("\n")


def test_markup_in_facts_breaks_nothing(tmp_path: Path):
    nasty = ModelCardFacts(
        model_name=NASTY,
        parameters=1234567,
        recipe={NASTY: NASTY, "list": [NASTY]},
        languages=["en", NASTY],
        data_description=NASTY,
        data_license=NASTY,
        weights_license=NASTY,
        hardware=NASTY,
        torch_version=NASTY,
        scores=[Score(NASTY, NASTY, 1.0, NASTY)],
    )
    result = card(tmp_path, nasty)
    assert result.data.model_name == NASTY
    assert result.data.license == NASTY
    plain = ModelCardFacts(
        model_name="name",
        parameters=1234567,
        data_description="data",
        scores=[Score("data", "metric", 1.0, "signature")],
    )
    (tmp_path / "plain").mkdir()
    expected = headings(card(tmp_path / "plain", plain).text)
    assert headings(result.text)[1:] == expected[1:]  # all but the name
    outside_code = re.sub(r"^```.*?^```$|(`+) .*? \1(?!`)", "", result.text, flags=re.DOTALL | re.MULTILINE)
    assert not re.search(
        r"(?<!\\)<script|(?<!\\)\*\*e|(?<!\\)\[h|(?<!\\)~~j|(?<!\\)`d|(?<!\\)\$k|(?<!\\)&lt;", outside_code
    )
    for line in outside_code.splitlines():  # a bar in a name would make another column
        if line.startswith("|"):
            assert len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) in (3, 4)
    assert "{{ parameters }}" in result.text  # shown, not obeyed


@pytest.mark.parametrize("name", ["test_2016_flickr", "https://example.org/a_b?c=d&e=f", "A & B (c) #1"])
def test_names_that_need_no_escape_stay_as_they_are(tmp_path: Path, name: str):
    assert (
        f"| {name} | BLEU |"
        in card(tmp_path, ModelCardFacts(model_name="a", parameters=1, scores=[Score(name, "BLEU", 1)])).text
    )


def test_equal_figures_of_two_sets_stay_two_results(tmp_path: Path):
    scores = [Score("one", "BLEU", 30.0), Score("two", "BLEU", 30.0)]
    data = card(tmp_path, ModelCardFacts(model_name="a", parameters=1, scores=scores)).data
    assert [result.dataset_name for result in data.eval_results or []] == ["one", "two"]


def test_a_card_is_replaced(tmp_path: Path):
    write_model_card(tmp_path, facts=ALL)
    assert "multi30k" not in card(tmp_path, LEAST).text


def test_every_variable_of_the_template_is_given():
    source = (Path(__file__).parents[2] / "model_card.md").read_text(encoding="utf-8")
    used = jinja2.meta.find_undeclared_variables(jinja2.Environment().parse(source))
    assert used == {"card_data", *model_card._text(LEAST)}


def test_an_installed_package_has_the_template_beside_the_module(tmp_path: Path, monkeypatch):
    module = tmp_path / "site-packages" / "vanilla_transformer" / "hub" / "model_card.py"
    module.parent.mkdir(parents=True)
    monkeypatch.setattr(model_card, "__file__", str(module))
    with pytest.raises(FileNotFoundError, match=r"template of the model card"):
        write_model_card(tmp_path, facts=LEAST)
    (module.parent / "model_card.md").write_text("---\n{{ card_data }}\n---\nThe installed one\n", encoding="utf-8")
    assert card(tmp_path, LEAST).text.strip() == "The installed one"
