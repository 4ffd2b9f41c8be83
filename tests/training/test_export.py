# SPDX-License-Identifier: Apache-2.0
import json
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import sacrebleu
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, GenerationConfig

from vanilla_transformer.generation import beam_search
from vanilla_transformer.hub.run_facts import write_card_of_run
from vanilla_transformer.inference.model_folder import load_model_folder
from vanilla_transformer.inference.translate import translate_lines
from vanilla_transformer.training import export
from vanilla_transformer.training.averaging import average_checkpoints
from vanilla_transformer.training.checkpoint import list_checkpoints
from vanilla_transformer.training.export import MODEL, RESULTS, sustained_flops

CPU = torch.device("cpu")


def test_export_averages_the_last_checkpoints(tiny_run):
    tiny_run.train("training.checkpoint_every=2", "training.average_checkpoints=3")
    expected = average_checkpoints(list_checkpoints(tiny_run.output_dir / "checkpoints")[-3:])
    model = AutoModelForSeq2SeqLM.from_pretrained(tiny_run.output_dir / MODEL)
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, expected.state_dict()[name])


def test_export_without_averaging_has_the_last_weights(tiny_run):
    run = tiny_run.train("training.average_checkpoints=0")
    model = AutoModelForSeq2SeqLM.from_pretrained(tiny_run.output_dir / MODEL)
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, run.state.bare_model().state_dict()[name])


def test_generation_config_is_as_configured(tiny_run):
    tiny_run.train("generation.num_beams=3", "generation.length_penalty=0.8")
    config = GenerationConfig.from_pretrained(tiny_run.output_dir / MODEL)
    assert (config.num_beams, config.length_penalty, config.max_tokens_beyond_source) == (3, 0.8, 3)
    assert (config.pad_token_id, config.decoder_start_token_id, config.eos_token_id) == (0, 1, 2)


def test_export_translates_with_the_auto_classes_alone(model_folder):
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
    assert results["parameters"] == sum(p.numel() for p in run.state.bare_model().parameters())
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
def test_export_is_in_hub_format(model_folder, name: str):
    assert (model_folder / name).is_file()


def test_a_test_corpus_with_several_references_is_scored_as_sacrebleu_scores_it(tiny_run):
    source, first = (override.partition("=")[2] for override in tiny_run.validation())
    second = tiny_run.folder / "second"
    second.write_text(
        "".join(f"a {line}\n" for line in Path(first).read_text(encoding="utf-8").splitlines()), encoding="utf-8"
    )
    run = tiny_run.train(f"data.test.source={source}", f"data.test.target=[{first}, {second}]")
    results = json.loads((tiny_run.output_dir / RESULTS).read_text(encoding="utf-8"))
    model, sources = (
        load_model_folder(tiny_run.output_dir / MODEL),
        Path(source).read_text(encoding="utf-8").splitlines(),
    )
    lines = [best[0].text for best in translate_lines(model, run.tokenizer, sources, max_batch_tokens=100)]
    references = [Path(path).read_text(encoding="utf-8").splitlines() for path in (first, second)]
    expected = [sacrebleu.corpus_bleu(lines, references), sacrebleu.corpus_chrf(lines, references)]
    assert [score["value"] for score in results["scores"]] == pytest.approx([score.score for score in expected])
    assert all(score["signature"].startswith("nrefs:2|") for score in results["scores"])
    assert results["config"]["data"]["test"]["target"] == [first, str(second)]
    card = write_card_of_run(tiny_run.output_dir).read_text("utf-8")
    assert "nrefs:2|" in card
    assert str(tiny_run.folder) not in card


@pytest.mark.parametrize("name", ["train", "validation"])
def test_only_a_test_corpus_has_several_references(tiny_run, name: str):
    with pytest.raises(ValueError, match=rf"^data\.{name}\.target=\['a', 'b'\]: only data\.test can have several"):
        tiny_run.load(f"data.{name}.source=x", f"data.{name}.target=[a, b]")


@pytest.mark.parametrize(
    ("target", "said"), [("[]", r"target=\[\] must name at least one file"), ("[5, [a]]", r"data\.test\.target=")]
)
def test_a_list_of_references_is_checked_before_any_work(tiny_run, target: str, said: str):
    with pytest.raises(ValueError, match=said) as error:
        tiny_run.load("data.test.source=x", f"data.test.target={target}")
    assert "\n" not in str(error.value)


def test_references_that_are_not_aligned_stop_the_run_before_it_starts(tiny_run):
    source, first = (override.partition("=")[2] for override in tiny_run.validation())
    (tiny_run.folder / "short").write_text("a\n", encoding="utf-8")
    with pytest.raises(ValueError, match="short has 1"):
        tiny_run.train(f"data.test.source={source}", f"data.test.target=[{first}, {tiny_run.folder / 'short'}]")
    assert list_checkpoints(tiny_run.output_dir / "checkpoints") == []


class Clock:
    """In place of torch's timer: counts the operations of one execution, and says that it took 2 seconds."""

    def __init__(self, statement: str, globals: dict, num_threads: int):
        with FlopCounterMode(display=False) as counter:
            product = eval(statement, globals)
        Clock.seen = SimpleNamespace(flops=counter.get_total_flops(), dtype=product.dtype, threads=num_threads)

    def blocked_autorange(self) -> SimpleNamespace:
        return SimpleNamespace(median=2.0)


def test_flops_are_operations_over_time(monkeypatch):
    monkeypatch.setattr(export, "Timer", Clock)
    assert sustained_flops(CPU, "no") == Clock.seen.flops / 2


@pytest.mark.parametrize(("precision", "dtype"), [("no", torch.float32), ("bf16", torch.bfloat16)])
def test_flops_are_of_the_runs_precision_and_threads(monkeypatch, precision: str, dtype: torch.dtype):
    monkeypatch.setattr(export, "Timer", Clock)
    sustained_flops(CPU, precision)
    assert (Clock.seen.dtype, Clock.seen.threads) == (dtype, torch.get_num_threads())


def test_flops_agree_with_a_clock():
    """In the order of magnitude: what else runs on the machine may slow either."""
    measured = sustained_flops(CPU, "no")
    matrix = torch.rand(1024, 1024)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        matrix @ matrix
        times.append(time.perf_counter() - start)
    assert 0.1 < measured * min(times) / (2 * 1024**3) < 10


def test_measuring_flops_draws_no_random_number():
    before = torch.get_rng_state()
    sustained_flops(CPU, "no")
    assert torch.equal(torch.get_rng_state(), before)
