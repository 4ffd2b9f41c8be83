# SPDX-License-Identifier: Apache-2.0
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jinja2
import jinja2.meta
import pytest
from huggingface_hub import EvalResult, ModelCard, ModelCardData

import vanilla_transformer
from vanilla_transformer.data.tokenizer import TokenizerConfig, train_tokenizer
from vanilla_transformer.hub import model_card
from vanilla_transformer.hub.card_facts import ComparedModel, Comparison, ModelCardFacts, Score
from vanilla_transformer.hub.card_text import card_text
from vanilla_transformer.hub.model_card import write_model_card

REPOSITORY = Path(__file__).parents[2]
SIGNATURE = "nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:2.6.0"
LEAST = ModelCardFacts(model_name="tiny", parameters=1234567)
ALL = ModelCardFacts(
    model_name="someone/multi30k-en-de",
    parameters=1234567,
    recipe={"model": {"d_model": 256, "d_k": None}, "optimizer": {"betas": [0.9, 0.98], "epsilon": 1e-9}},
    languages=["en", "de"],
    data_description="Multi30k, task 1",
    data_license="for research",
    datasets=["someone/multi30k"],
    weights_license="cc-by-4.0",
    pairs=29000,
    updates=10812,
    training_seconds=5400.4,
    devices=2,
    sustained_flops=1e12,
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


def test_the_licence_of_the_code_goes_with_it(tmp_path: Path):
    write_model_card(tmp_path, facts=LEAST)
    assert (tmp_path / "LICENSE").read_bytes() == (REPOSITORY / "LICENSE").read_bytes()


def test_a_folder_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"nowhere does not exist$"):
        write_model_card(tmp_path / "nowhere", facts=LEAST)


def test_metadata_round_trip(tmp_path: Path):
    results = [
        EvalResult(
            task_type="translation",
            dataset_type="flickr",
            dataset_name="flickr",
            metric_type="bleu",
            metric_name="BLEU",
            metric_value=36.125,  # not rounded
            metric_args={"signature": SIGNATURE},
        ),
        EvalResult(
            task_type="translation",
            dataset_type="validation",
            dataset_name="validation",
            metric_type="word_error_rate",
            metric_name="word error rate",
            metric_value=0.25,
        ),
    ]
    expected = ModelCardData(
        language=["en", "de"],
        license="cc-by-4.0",
        library_name="transformers",
        pipeline_tag="translation",
        tags=["vanilla_transformer"],
        datasets=["someone/multi30k"],
        model_name="someone/multi30k-en-de",
        eval_results=results,
    )
    found = card(tmp_path, ALL)
    assert found.data.to_dict() == expected.to_dict()
    assert found.data.eval_results == results
    assert ModelCard(str(found)).data.to_dict() == expected.to_dict()  # saved again


def test_metadata_leave_out_unknown_facts(tmp_path: Path):
    data = card(tmp_path, LEAST).data.to_dict()
    assert data == {"library_name": "transformers", "tags": ["vanilla_transformer"]}


def test_an_rnn_has_a_tag_of_its_own(tmp_path: Path):
    assert card(tmp_path, replace(LEAST, model_type="rnn_seq2seq")).data.tags == ["vanilla_transformer", "rnn_seq2seq"]


def test_one_language_makes_no_translator(tmp_path: Path):
    data = card(tmp_path, replace(LEAST, languages=["en"])).data
    assert (data.language, data.pipeline_tag) == (["en"], None)


def test_norwegian_is_not_read_as_a_boolean(tmp_path: Path):
    assert card(tmp_path, replace(LEAST, languages=["no", "en"])).data.language == ["no", "en"]


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
        "wall time of the updates | 5,400 seconds (1:30:00)",
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
    assert "Weights: cc-by-4.0" in section(text, "Licence")


def test_a_card_of_few_facts_has_every_section(tmp_path: Path):
    text = card(tmp_path, LEAST).text
    assert "None" not in text
    assert headings(text) == ["# tiny", *headings(card(tmp_path, ALL).text)[1:]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A model that has learnt nothing, with its card."""
    path = tmp_path_factory.mktemp("model")
    tokenizer = train_tokenizer(["a b c"], TokenizerConfig(kind="symbols"))
    tokenizer.save_pretrained(path)
    config = vanilla_transformer.VanillaTransformerConfig(
        vocab_size=len(tokenizer), d_model=8, d_ff=8, num_layers=1, num_heads=2
    )
    model = vanilla_transformer.VanillaTransformerForConditionalGeneration(config)
    model.generation_config.max_new_tokens = 3
    model.save_pretrained(path)
    facts = ModelCardFacts(model_name=str(path), parameters=model.num_parameters(), example_input="a b c")
    write_model_card(path, facts=facts)
    return path


def code_of(folder: Path) -> list[str]:
    return re.findall(
        r"^```python\n(.*?)^```$", (folder / "README.md").read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )


def test_the_code_in_the_card_runs_with_the_package(folder: Path, capsys):
    without_package, with_package, papers_decoding = code_of(folder)
    names: dict = {}
    exec(compile(without_package + with_package + papers_decoding, "README.md", "exec"), names)
    assert capsys.readouterr().out.endswith("\n")
    assert type(names["model"]) is vanilla_transformer.VanillaTransformerForConditionalGeneration
    assert names["outputs"].shape[0] == 1


def test_the_code_in_the_card_runs_without_the_package(folder: Path, tmp_path: Path):
    first, _, papers_decoding = code_of(folder)
    hide = "import sys; sys.modules['vanilla_transformer'] = None  # importing it raises ModuleNotFoundError\n"
    result = subprocess.run(
        [sys.executable, "-c", hide + first + papers_decoding + "print('decoded', len(outputs))"],
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,  # nobody answers whether code may run
        capture_output=True,
        encoding="utf-8",
        env=os.environ | {"HF_HOME": str(tmp_path)},
        check=False,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout.endswith("decoded 1\n")


def test_markup_in_facts_breaks_nothing(tmp_path: Path):
    def compared(name: str, score: Score) -> Comparison:
        model = ComparedModel(name=name, parameters=1, updates=1, training_seconds=1, scores=[score])
        return Comparison(models=[model, model], difference=name)

    score = Score(NASTY, NASTY, 1.0, NASTY)
    nasty = ModelCardFacts(
        model_name=NASTY,
        parameters=1234567,
        example_input=NASTY,
        recipe={NASTY: NASTY, "list": [NASTY]},
        languages=["en", NASTY],
        data_description=NASTY,
        data_license=NASTY,
        weights_license=NASTY,
        hardware=NASTY,
        torch_version=NASTY,
        scores=[score],
        comparison=compared(NASTY, score),
    )
    result = card(tmp_path, nasty)
    assert result.data.model_name == NASTY
    assert result.data.license == NASTY
    (tmp_path / "plain").mkdir()
    assert headings(result.text)[1:] == headings(card(tmp_path / "plain", LEAST).text)[1:]  # all but the name
    outside_code = re.sub(r"^```.*?^```$|(`+) .*? \1(?!`)", "", result.text, flags=re.DOTALL | re.MULTILINE)
    assert not re.search(
        r"(?<!\\)<script|(?<!\\)\*\*e|(?<!\\)\[h|(?<!\\)~~j|(?<!\\)`d|(?<!\\)\$k|(?<!\\)&lt;", outside_code
    )
    for line in outside_code.splitlines():  # a bar in a name would make another column
        if line.startswith("|"):
            assert len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) in (3, 4, 6)
    assert "{{ parameters }}" in result.text  # shown, not obeyed


@pytest.mark.parametrize("name", ["test_2016_flickr", "https://example.org/a_b?c=d&e=f", "A & B (c) #1"])
def test_names_that_need_no_escape_stay_as_they_are(tmp_path: Path, name: str):
    assert f"| {name} | BLEU |" in card(tmp_path, replace(LEAST, scores=[Score(name, "BLEU", 1)])).text


def test_equal_figures_of_two_sets_stay_two_results(tmp_path: Path):
    data = card(tmp_path, replace(LEAST, scores=[Score("one", "BLEU", 30.0), Score("two", "BLEU", 30.0)])).data
    assert [result.dataset_name for result in data.eval_results or []] == ["one", "two"]


def test_a_card_is_replaced(tmp_path: Path):
    write_model_card(tmp_path, facts=ALL)
    assert "multi30k" not in card(tmp_path, LEAST).text


def test_the_template_is_a_valid_card_itself():
    data = ModelCard.load(REPOSITORY / "model_card.md").data
    assert data.to_dict() == {"library_name": "transformers", "tags": ["vanilla_transformer"]}


def test_the_explanation_of_the_template_stays_there(tmp_path: Path):
    explanation = re.search(r"\{#-\n(.*?)#\}", (REPOSITORY / "model_card.md").read_text(encoding="utf-8"), re.DOTALL)
    assert explanation is not None
    text = card(tmp_path, LEAST).content
    assert not any(line in text for line in explanation[1].strip().splitlines())
    assert not re.search(r"\{[{#%]", text)


def test_every_variable_of_the_template_is_given():
    source = (REPOSITORY / "model_card.md").read_text(encoding="utf-8")
    assert jinja2.meta.find_undeclared_variables(jinja2.Environment().parse(source)) == set(card_text(LEAST))


def test_an_installed_package_has_both_files_beside_the_module(tmp_path: Path, monkeypatch):
    module = tmp_path / "site-packages" / "vanilla_transformer" / "hub" / "model_card.py"
    module.parent.mkdir(parents=True)
    monkeypatch.setattr(model_card, "__file__", str(module))
    with pytest.raises(FileNotFoundError, match=r"model_card.md, which goes with every model, is in neither"):
        write_model_card(tmp_path, facts=LEAST)
    (module.parent / "model_card.md").write_text("---\ntags: []\n---\nThe installed one\n", encoding="utf-8")
    (module.parent / "LICENSE").write_text("The installed one\n", encoding="utf-8")
    assert card(tmp_path, LEAST).text.strip() == "The installed one"
    assert (tmp_path / "LICENSE").read_text(encoding="utf-8") == "The installed one\n"
