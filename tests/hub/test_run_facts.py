# SPDX-License-Identifier: Apache-2.0
import json

import pytest

from tests.conftest import TinyRun
from vanilla_transformer.hub.model_card import Score, card_text
from vanilla_transformer.hub.run_facts import facts_of_run


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """Not to be written to."""
    run = TinyRun(tmp_path_factory.mktemp("finished"))
    languages = ["data.source_language=de", "data.target_language=fr", "data.license=cc0-1.0"]
    languages += ["data.weights_license=cc-by-4.0"]
    run.train(*run.validation(), *languages)
    return run


@pytest.fixture
def results(finished: TinyRun) -> dict:
    """Its own for each test."""
    return json.loads((finished.output_dir / "results.json").read_text(encoding="utf-8"))


def test_facts_are_the_runs(results):
    facts = facts_of_run(results, "someone/tiny")
    assert (facts.model_name, facts.languages) == ("someone/tiny", ["de", "fr"])
    assert (facts.data_license, facts.weights_license) == ("cc0-1.0", "cc-by-4.0")
    assert (facts.parameters, facts.updates, facts.pairs) == (results["parameters"], 8, 120)
    assert (facts.devices, facts.sustained_flops) == (1, results["sustained_flops"])
    assert facts.recipe["optimizer"]["warmup_steps"] == 20
    assert facts.recipe["model"]["d_model"] == 16


def test_the_model_is_the_runs(results):
    assert facts_of_run(results, "tiny").model_type == "vanilla_transformer"
    results["model_type"] = "rnn_seq2seq"
    assert facts_of_run(results, "tiny").model_type == "rnn_seq2seq"


def test_the_recipe_has_no_paths(results, finished):
    assert str(finished.folder) not in json.dumps(facts_of_run(results, "tiny").recipe)


def test_scores_of_the_test_corpus_replace_the_validations_bleu(results):
    names = [score.metric for score in facts_of_run(results, "tiny").scores]
    assert names == ["perplexity per token", "BLEU"]
    results["scores"] = [{"data": "test", "metric": "BLEU", "value": 30.0, "signature": "s"}]
    scores = facts_of_run(results, "tiny", [Score("more", "word error rate", 0.5)]).scores
    assert [(score.dataset, score.metric) for score in scores] == [
        ("more", "word error rate"),
        ("reversals: test", "BLEU"),
        ("reversals: validation, before averaging", "perplexity per token"),
    ]


def test_a_validation_of_all_sentences_with_the_models_own_beams(results):
    results["config"]["training"] |= {"validation_sentences": None, "validation_beams": None}
    beams, alpha = (results["config"]["generation"][name] for name in ("num_beams", "alpha"))
    how = f"all sentences, num_beams {beams}, alpha {alpha}"
    assert facts_of_run(results, "tiny").scores[-1].dataset == f"reversals: validation ({how}), before averaging"


def test_a_validation_of_the_finished_model_is_not_called_another(results):
    results["config"]["training"]["average_checkpoints"] = 0
    assert facts_of_run(results, "tiny").scores[0].dataset == "reversals: validation"


def test_one_language_alone_gives_no_direction(results):
    results["config"]["data"]["target_language"] = None
    assert facts_of_run(results, "tiny").languages == []


def test_results_of_an_earlier_version_have_a_card_without_flops(results):
    del results["devices"], results["sustained_flops"]
    assert "FLOPs" not in card_text(facts_of_run(results, "tiny"))["training"]


def test_only_a_training_corpus_on_the_hub_is_a_dataset(results, tmp_path):
    assert facts_of_run(results, "tiny").datasets == []  # two files
    found = {}
    for name in ("wmt/wmt14", "/home/someone/corpus", str(tmp_path)):
        results["config"]["data"]["train"]["dataset"] = name
        found[name] = facts_of_run(results, "tiny").datasets
    assert found == {"wmt/wmt14": ["wmt/wmt14"], "/home/someone/corpus": [], str(tmp_path): []}


def test_a_local_folder_with_the_form_of_an_id_is_no_dataset(results, tmp_path, monkeypatch):
    (tmp_path / "my" / "corpus").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    results["config"]["data"]["train"]["dataset"] = "my/corpus"
    assert facts_of_run(results, "tiny").datasets == []


def test_a_caller_may_add_facts(results):
    facts = facts_of_run(results, "tiny", example_input="a b")
    assert facts.example_input == "a b"


def test_lists_of_corpora_are_scored_and_described_one_by_one(results):
    own = results["config"]["data"]["train"]
    results["config"]["data"]["train"] = [own | {"name": "bt", "weight": 0.5, "tag": "<bt>", "target_tag": None}]
    figures = {"perplexity": 7.0, "bleu": 3.0}
    results["validation"]["corpora"] = {"news": figures}
    results["scores"] = [{"data": "talks", "metric": "BLEU", "value": 30.0, "signature": "s"}]
    facts = facts_of_run(results, "tiny")
    assert facts.recipe["data"]["train"] == {"bt": {"weight": 0.5, "tag": "<bt>", "target_tag": None}}
    found = {(score.dataset, score.metric): score.value for score in facts.scores}
    assert found["reversals: test talks", "BLEU"] == 30.0
    assert found["reversals: validation news, before averaging", "perplexity per token"] == 7.0
    assert found["reversals: validation news, before averaging", "BLEU"] == 3.0
