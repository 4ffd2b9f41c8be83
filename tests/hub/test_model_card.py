# SPDX-License-Identifier: Apache-2.0
import ast
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
from vanilla_transformer.hub.model_card import ComparedModel, ModelCardFacts, Score, card_text, write_model_card

REPOSITORY = Path(__file__).parents[2]
SIGNATURE = "nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:2.6.0"
LEAST = ModelCardFacts(model_name="tiny", parameters=1234567)
WORDS = "1,000 words"
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
    assert "so the figure is an upper\nestimate." in training
    results = section(text, "Results")
    assert "| validation | word error rate | 0.2500 |" in results
    assert f"BLEU on flickr: `{SIGNATURE}`" in results  # to be copied as it is
    assert "Weights: cc-by-4.0" in section(text, "Licence")


def test_a_card_of_few_facts_has_every_section(tmp_path: Path):
    text = card(tmp_path, LEAST).text
    assert "None" not in text
    assert "estimate" not in text
    assert "Signatures" not in text
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
    names: dict = {}
    exec(compile("".join(code_of(folder)), "README.md", "exec"), names)
    assert len(capsys.readouterr().out.splitlines()) == 2  # by generate, and by Translator
    assert names["translator"].engine in ("native", "torch")
    assert type(names["model"]) is vanilla_transformer.VanillaTransformerForConditionalGeneration
    assert names["outputs"].shape[0] == 1


def test_the_code_in_the_card_runs_without_the_package(folder: Path, tmp_path: Path):
    first, _, papers_decoding, _ = code_of(folder)
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


def test_the_command_in_the_card_runs(folder: Path, tmp_path: Path):
    [shown] = re.findall(r"^```bash\n(.*?)^```$", (folder / "README.md").read_text("utf-8"), re.DOTALL | re.MULTILINE)
    (tmp_path / "source.txt").write_text("a b\nc\n", encoding="utf-8")
    function = f'vanilla-transformer() {{ "{sys.executable}" -m vanilla_transformer.cli "$@"; }}\n'
    subprocess.run(["bash", "-c", function + shown], cwd=tmp_path, capture_output=True, check=True)
    assert len((tmp_path / "translated.txt").read_text(encoding="utf-8").splitlines()) == 2


@pytest.mark.parametrize(("model_type", "expected"), [("vanilla_transformer", True), ("rnn_seq2seq", False)])
def test_kernels_are_promised_for_transformers_alone(tmp_path: Path, model_type: str, expected: bool):
    text = card(tmp_path, replace(LEAST, model_type=model_type)).text
    assert ("translator.engine" in text) == expected
    assert "vanilla_transformer.Translator" in text


def test_markup_in_facts_breaks_nothing(tmp_path: Path):
    score = Score(NASTY, NASTY, 1.0, SIGNATURE)
    model = ComparedModel(NASTY, {"parameters": 1, "updates": 1, "training_seconds": 1.0}, [score])
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
        comparison=[model, model],
        difference=NASTY,
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


# The text of each section


def cells(table: str) -> list[list[str]]:
    """The rows that begin with a bar."""
    rows = [line for line in table.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def training(facts: ModelCardFacts) -> dict[str, str]:
    return dict(cells(card_text(facts)["training"]))


def beside(name: str, error: float) -> ComparedModel:
    scores = [Score(WORDS, "word error rate", error)]
    return ComparedModel(name, {"parameters": 804608, "updates": 1500, "training_seconds": 240.0}, scores)


@pytest.mark.parametrize(
    ("hours", "published"),
    [(12, "3.3 · 10^18"), (3.5 * 24, "2.3 · 10^19")],
    ids=["base", "big"],
)
def test_training_flops_are_those_of_the_papers_table_2(hours: float, published: str):
    eight_p100 = replace(LEAST, training_seconds=hours * 3600, devices=8, sustained_flops=9.5e12)
    assert training(eight_p100)["training FLOPs"].startswith(f"{published} = ")


@pytest.mark.parametrize("name", ["training_seconds", "devices", "sustained_flops"])
def test_without_all_three_factors_there_are_no_flops(name: str):
    known = {"training_seconds": 60.0, "devices": 1, "sustained_flops": 1e11} | {name: None}
    text = card_text(replace(LEAST, **known))
    assert ("FLOPs" in text["training"], text["flops"]) == (False, "")


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


@pytest.mark.parametrize(
    ("model_type", "said", "other"),
    [
        ("vanilla_transformer", "A Transformer encoder-decoder, as in [", "without an RNN beside it."),
        ("rnn_seq2seq", "A recurrent encoder-decoder (RNN), the architecture", "without a Transformer beside it."),
    ],
)
def test_a_card_names_the_architecture_and_the_other(tmp_path: Path, model_type: str, said: str, other: str):
    text = card(tmp_path, replace(LEAST, model_type=model_type)).text
    assert text.strip().startswith(f"# tiny\n\n{said}")
    assert f"This model was trained {other} `vanilla-transformer compare`" in text


@pytest.mark.parametrize(("on_hub", "said"), [(False, "a/b"), (True, "[a/b](https://huggingface.co/a/b)")])
def test_the_base_model_is_linked_if_it_is_on_the_hub(tmp_path: Path, on_hub: bool, said: str):
    text = card(tmp_path, replace(LEAST, languages=["en", "de"], base_model="a/b", base_model_on_hub=on_hub)).text
    assert "\n\nA Transformer encoder-decoder for en → de, as in [" in text
    assert f". Fine-tuned from {said}.\n\n" in text


def test_a_comparison_begins_with_the_cards_own_model():
    models = [beside("RNN", 0.36), beside("Transformer", 0.34)]
    text = card_text(replace(LEAST, comparison=models, difference="Of 2 points."))["comparison"]
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
