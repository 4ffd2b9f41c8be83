# SPDX-License-Identifier: Apache-2.0
import json

import pytest
import sacrebleu
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, GenerationConfig

from vanilla_transformer.generation import beam_search
from vanilla_transformer.training.averaging import average_checkpoints
from vanilla_transformer.training.checkpoint import list_checkpoints
from vanilla_transformer.training.finished_model import MODEL, RESULTS


def test_it_holds_the_mean_of_the_last_checkpoints(tiny_run):
    tiny_run.train("training.checkpoint_every=2", "training.average_checkpoints=3")
    expected = average_checkpoints(list_checkpoints(tiny_run.output_dir / "checkpoints")[-3:])
    model = AutoModelForSeq2SeqLM.from_pretrained(tiny_run.output_dir / MODEL)
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, expected.state_dict()[name])


def test_without_averaging_it_holds_the_last_weights(tiny_run):
    run = tiny_run.train("training.average_checkpoints=0")
    model = AutoModelForSeq2SeqLM.from_pretrained(tiny_run.output_dir / MODEL)
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, run.bare_model().state_dict()[name])


def test_it_decodes_as_configured(tiny_run):
    tiny_run.train("generation.num_beams=3", "generation.length_penalty=0.8")
    config = GenerationConfig.from_pretrained(tiny_run.output_dir / MODEL)
    assert (config.num_beams, config.length_penalty, config.max_tokens_beyond_source) == (3, 0.8, 3)
    assert (config.pad_token_id, config.decoder_start_token_id, config.eos_token_id) == (0, 1, 2)


def test_it_translates_with_the_auto_classes_alone(model_folder):
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    model = AutoModelForSeq2SeqLM.from_pretrained(model_folder)
    output = model.generate(**tokenizer(["a b c", "h"], return_tensors="pt", padding=True))
    assert output.shape[0] == 2
    assert output.shape[1] <= 1 + 4 + 3  # start, the longest source with its end, and 3 more


def test_results_have_what_a_report_needs(tiny_run):
    run = tiny_run.train(*tiny_run.validation())
    results = json.loads((tiny_run.output_dir / RESULTS).read_text(encoding="utf-8"))
    assert results["pairs"] == 120
    assert results["updates"] == 8
    assert results["parameters"] == sum(p.numel() for p in run.bare_model().parameters())
    assert results["devices"] == 1
    assert results["sustained_flops"] > 0
    assert results["validation"]["bleu_signature"].startswith("nrefs:1|")
    assert results["config"] == json.loads(json.dumps(run.config.to_dict()))
    assert results["scores"] == []


def test_a_test_corpus_is_scored_with_the_finished_model(tiny_run):
    tiny_run.train(*(override.replace("validation", "test", 1) for override in tiny_run.validation()))
    scores = json.loads((tiny_run.output_dir / RESULTS).read_text(encoding="utf-8"))["scores"]
    model = AutoModelForSeq2SeqLM.from_pretrained(tiny_run.output_dir / MODEL)
    tokenizer = AutoTokenizer.from_pretrained(tiny_run.output_dir / MODEL)
    lines = {
        side: (tiny_run.folder / f"validation.{side}").read_text(encoding="utf-8").splitlines()
        for side in ("source", "target")
    }
    outputs = [
        model.generate(**tokenizer(line, return_tensors="pt"), custom_generate=beam_search)[0]
        for line in lines["source"]
    ]
    texts = [tokenizer.decode(output, skip_special_tokens=True) for output in outputs]
    expected = [sacrebleu.corpus_bleu(texts, [lines["target"]]), sacrebleu.corpus_chrf(texts, [lines["target"]])]
    assert [score["value"] for score in scores] == pytest.approx([score.score for score in expected])
    assert all("version:" in score["signature"] for score in scores)


def test_greedy_decoding_can_be_configured(tiny_run):
    tiny_run.train("generation.num_beams=1")
    assert GenerationConfig.from_pretrained(tiny_run.output_dir / MODEL).num_beams == 1


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "generation_config.json", "tokenizer.json"])
def test_it_is_in_hub_format(model_folder, name: str):
    assert (model_folder / name).is_file()
