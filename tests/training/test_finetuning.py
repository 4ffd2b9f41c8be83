# SPDX-License-Identifier: Apache-2.0
"""Fine-tuning a finished model: its batches, its loss, its scores, its adapter, and what it refuses."""

import json
import logging
import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from peft import PeftModel
from transformers import AutoModelForSeq2SeqLM, DataCollatorForSeq2Seq, GenerationConfig

from tests.conftest import write_reversals
from vanilla_transformer import RNNSeq2SeqConfig, RNNSeq2SeqForConditionalGeneration
from vanilla_transformer.data.tokenizer import TokenizerConfig, load_tokenizer, train_tokenizer
from vanilla_transformer.evaluation.translation_quality import score_translations
from vanilla_transformer.inference.translate import translate_lines
from vanilla_transformer.training import lora, setup
from vanilla_transformer.training.finetuning import REMOVED, RENAMED, load_finetuning_config
from vanilla_transformer.training.gradients import backward
from vanilla_transformer.training.loop import train
from vanilla_transformer.training.manifest import find_damage

BUDGETS = {"max_source_tokens": 100, "max_target_tokens": 90}
TARGETS = {"transformer": "[q_proj, v_proj]", "rnn": "[k_proj, linear]"}


@pytest.fixture(params=TARGETS)
def kind(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def rnn_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("rnn")
    torch.manual_seed(1)
    sizes = {"vocab_size": 12, "embedding_size": 16, "hidden_size": 16}
    model = RNNSeq2SeqForConditionalGeneration(RNNSeq2SeqConfig(**sizes, dropout=0.1, label_smoothing=0.1))
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    model.generation_config = GenerationConfig(num_beams=2, alpha=0.6, max_tokens_beyond_source=3, **special)
    model.save_pretrained(folder)
    train_tokenizer(["a b c d e f g h"], TokenizerConfig(kind="symbols")).save_pretrained(folder)
    return folder


@pytest.fixture
def base(kind, model_folder, rnn_folder) -> Path:
    """A model folder of either family; not to be written to."""
    return {"transformer": model_folder, "rnn": rnn_folder}[kind]


@pytest.fixture
def base_transformer(model_folder) -> Path:
    return model_folder


def config_file(folder: Path, model: Path) -> Path:
    values = {
        "model": str(model),
        "data": {"train": write_reversals(folder, "train", 120), "validation": write_reversals(folder, "held-out", 13)},
        "training": {"output_dir": str(folder / "tuned"), "max_updates": 14, "checkpoint_every": 100, **BUDGETS},
        "optimizer": {"learning_rate": 1e-2, "schedule": "constant"},
    }
    path = folder / "finetune.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def tune(folder: Path, model: Path, *overrides: str) -> tuple[Path, dict[str, Any]]:
    """The finished model, and results.json."""
    AcceleratorState._reset_state(reset_partial_state=True)
    run = train(load_finetuning_config(config_file(folder, model), list(overrides)))
    return run.output_dir / "model", json.loads((run.output_dir / "results.json").read_text("utf-8"))


def set_up(folder: Path, model: Path, *overrides: str):
    return setup.set_up(load_finetuning_config(config_file(folder, model), list(overrides)))


def held_out_batch(folder: Path, model: Path) -> dict[str, torch.Tensor]:
    tokenizer = load_tokenizer(model)
    lines = [(folder / f"held-out.{side}").read_text(encoding="utf-8").splitlines() for side in ("source", "target")]
    pairs = [
        {"input_ids": tokenizer(a).input_ids, "labels": tokenizer(b).input_ids} for a, b in zip(*lines, strict=True)
    ]
    return dict(DataCollatorForSeq2Seq(tokenizer)(pairs))


def test_the_loss_on_held_out_pairs_falls(base, tmp_path):
    tuned, _ = tune(tmp_path, base, "training.max_updates=150")
    batch = held_out_batch(tmp_path, base)
    before, after = (AutoModelForSeq2SeqLM.from_pretrained(folder)(**batch).loss.item() for folder in (base, tuned))
    assert after < 0.97 * before


def test_batches_obey_both_budgets_and_hold_every_pair_once_an_epoch(base_transformer, tmp_path):
    run = set_up(tmp_path, base_transformer)
    for epoch in range(2):
        run.sampler.set_epoch(epoch)
        found = list(run.batches)
        assert sum(len(batch["input_ids"]) for batch in found) == 120
        assert max(batch["input_ids"].numel() for batch in found) <= BUDGETS["max_source_tokens"]
        assert max(batch["labels"].numel() for batch in found) <= BUDGETS["max_target_tokens"]
    assert len(found) < 120 / 8  # fuller than Trainer's default of 8 pairs


def test_every_epoch_has_another_order(base_transformer, tmp_path):
    run = set_up(tmp_path, base_transformer)
    orders = []
    for epoch in range(2):
        run.sampler.set_epoch(epoch)
        orders.append([batch["input_ids"].tolist() for batch in run.batches])
    assert orders[0] != orders[1]


def test_labels_are_smoothed_once(base, tmp_path):
    run = set_up(tmp_path, base)
    model, batch = run.state.model.eval(), next(iter(run.batches))
    loss = backward(run.state, [batch], run.config.training).loss.item()
    logits = model(**batch).logits
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten(), label_smoothing=0.1)
    assert model.config.label_smoothing == 0.1
    assert loss == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("schedule", "factor"),
    [
        ("constant", lambda update: 1.0),
        ("constant_with_warmup", lambda update: min(1, update / 4)),
        ("linear", lambda update: min(update / 4, (14 - update) / 10)),
        ("cosine", lambda update: min(update / 4, 0.5 + 0.5 * math.cos(math.pi * (update - 4) / 10))),
        ("inverse_sqrt", lambda update: min(update / 4, (4 / max(update, 1)) ** 0.5)),
    ],
)
def test_learning_rate_schedules(base_transformer, tmp_path, schedule, factor):
    """The learning rate follows the schedule over 14 updates, the first 4 of which warm up; `update` counts from 0."""
    run = set_up(tmp_path, base_transformer, f"optimizer.schedule={schedule}", "optimizer.warmup_steps=4")
    rates = []
    for _ in range(14):
        rates.append(run.state.optimizer.param_groups[0]["lr"])
        run.state.optimizer.step()
        run.state.schedule.step()
    assert rates == pytest.approx([1e-2 * factor(update) for update in range(14)])


def test_a_decay_ends_by_the_clock(base_transformer, tmp_path):
    timed = ["training.max_updates=null", "training.max_minutes=1", "optimizer.schedule=linear"]
    state = set_up(tmp_path, base_transformer, *timed).state
    state.optimizer.step()
    state.progress.agreed_seconds = 45.0
    state.schedule.step()
    assert state.optimizer.param_groups[0]["lr"] == pytest.approx(1e-2 * 0.25)


@pytest.mark.parametrize("lora", [False, True], ids=["all weights", "LoRA"])
def test_a_run_resumed_in_the_middle_of_an_epoch_ends_as_the_uninterrupted(base, kind, tmp_path, lora):
    adapter = [f"lora={{target_modules: {TARGETS[kind]}, dropout: 0.1}}"] if lora else []
    whole, parts = (f"training.output_dir={tmp_path / name}" for name in ("whole", "parts"))
    tune(tmp_path, base, whole, *adapter)
    for updates in (10, 14):  # of 7 or 8 an epoch
        tune(tmp_path, base, parts, f"training.max_updates={updates}", *adapter)
    expected = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "whole" / "model").state_dict()
    for name, weight in AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "parts" / "model").state_dict().items():
        assert torch.equal(weight, expected[name]), name


def test_adapter_and_merged_model_say_the_same(base, kind, tmp_path):
    merged, _ = tune(tmp_path, base, f"lora={{target_modules: {TARGETS[kind]}, r: 4}}")
    batch = held_out_batch(tmp_path, base)
    logits = AutoModelForSeq2SeqLM.from_pretrained(merged)(**batch).logits
    before = AutoModelForSeq2SeqLM.from_pretrained(base)
    assert (logits - before(**batch).logits).abs().max() > 1e-2
    adapted = PeftModel.from_pretrained(before, str(merged.parent / "adapter")).eval()
    torch.testing.assert_close(adapted(**batch).logits, logits, atol=1e-5, rtol=1e-5)
    weights = [name for name in adapted.state_dict() if "lora_" in name]
    assert len(weights) >= 4


def test_scores_are_those_of_the_finished_folder(base, tmp_path):
    folder, results = tune(tmp_path, base)
    lines = [(tmp_path / f"held-out.{side}").read_text(encoding="utf-8").splitlines() for side in ("source", "target")]
    model = AutoModelForSeq2SeqLM.from_pretrained(folder)
    found = translate_lines(model, load_tokenizer(folder), lines[0], max_batch_tokens=500)
    expected = score_translations([best[0].text for best in found], lines[1])
    assert {score["metric"]: score["value"] for score in results["scores"]} == pytest.approx(
        {"BLEU": expected["bleu"], "chrF": expected["chrf"]}
    )


def test_decoding_settings_stay_as_they_were(base, tmp_path):
    folder, _ = tune(tmp_path, base, "training.validate_every=5", "training.checkpoint_every=7")
    for found in (folder, tmp_path / "tuned" / "checkpoints" / "update-00000014"):
        now, before = (GenerationConfig.from_pretrained(path).to_dict() for path in (found, base))
        assert now == before


def test_the_validation_loss_is_the_mean_over_target_tokens(base, tmp_path):
    folder, results = tune(tmp_path, base, "training.max_target_tokens=20")  # of several batches
    batch = held_out_batch(tmp_path, base)
    model = AutoModelForSeq2SeqLM.from_pretrained(folder)
    logits, labels = model(**batch).logits, batch["labels"]
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), label_smoothing=0.1)
    assert model.config.label_smoothing == 0.1
    assert results["loss"] == pytest.approx(expected.item(), rel=1e-5)


def test_nothing_that_is_written_has_to_be_unpickled(base_transformer, tmp_path):
    tune(tmp_path, base_transformer, "training.max_updates=2", "training.checkpoint_every=1")
    files = [path for path in (tmp_path / "tuned").rglob("*") if path.is_file() and path.name != ".lock"]
    suffixes = {path.suffix for path in files}
    assert suffixes <= {".json", ".jinja", ".py", ".safetensors", ".yaml"}


def test_a_checkpoint_with_pickles_is_refused(base_transformer, tmp_path):
    tune(tmp_path, base_transformer, "training.max_updates=1")
    checkpoint = tmp_path / "tuned" / "checkpoints" / "update-00000001"
    (checkpoint / "manifest.json").unlink()
    (checkpoint / "optimizer.pt").write_bytes(b"")
    with pytest.raises(
        ValueError, match=r"update-00000001 is of an earlier version, whose pickled files .optimizer.pt"
    ):
        tune(tmp_path, base_transformer)


@pytest.mark.parametrize("name", ["progress.json", "model.safetensors", "optimizer.safetensors", "manifest.json"])
def test_resuming_from_the_newest_undamaged_checkpoint(base_transformer, tmp_path, caplog, name):
    """Here from update 7 of 14."""
    options = ["training.checkpoint_every=7", "training.keep_checkpoints=2"]
    tune(tmp_path, base_transformer, *options)
    newest = tmp_path / "tuned" / "checkpoints" / "update-00000014"
    expected = (newest / "model.safetensors").read_bytes()
    (newest / name).write_bytes((newest / name).read_bytes()[:-9])
    tune(tmp_path, base_transformer, *options)
    assert "update-00000014 is damaged and left out" in caplog.text
    assert (newest / "model.safetensors").read_bytes() == expected
    assert find_damage(newest) is None
    assert {path.name for path in newest.parent.iterdir()} == {"update-00000007", "update-00000014"}


def test_a_folder_with_checkpoints_of_other_data_is_refused(base_transformer, tmp_path):
    tune(tmp_path, base_transformer, "training.max_updates=1")
    with pytest.raises(ValueError, match=r"holds a run with another data.max_length \(256 there, 30 now\)"):
        tune(tmp_path, base_transformer, "data.max_length=30")


@pytest.mark.parametrize(
    ("override", "difference"), [("lora={target_modules: [q_proj]}", "lora"), ("model={other}", "model")]
)
def test_a_folder_with_checkpoints_of_another_model_is_refused(base_transformer, tmp_path, override, difference):
    tune(tmp_path, base_transformer, "training.max_updates=1")
    shutil.copytree(base_transformer, tmp_path / "other")
    with pytest.raises(ValueError, match=f"holds a run with another {difference}"):
        tune(tmp_path, base_transformer, override.replace("{other}", str(tmp_path / "other")))


def test_resuming_with_the_same_data_by_another_path(base_transformer, tmp_path, monkeypatch):
    (tmp_path / "whole").mkdir()
    whole, _ = tune(tmp_path / "whole", base_transformer, "training.max_updates=2")
    tune(tmp_path, base_transformer, "training.max_updates=1", "training.checkpoint_every=1")
    monkeypatch.chdir(tmp_path)
    elsewhere = [f"data.train.{side}=train.{side}" for side in ("source", "target")]
    resumed, _ = tune(tmp_path, base_transformer, *elsewhere, "training.max_updates=2")
    assert (resumed / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_other_data_by_the_same_path_is_refused(base_transformer, tmp_path):
    tune(tmp_path, base_transformer, "training.max_updates=1", "training.checkpoint_every=1")
    source = tmp_path / "train.source"
    changed = tmp_path / "changed.source"
    changed.write_text(source.read_text("utf-8").replace("a", "b"), encoding="utf-8")
    with pytest.raises(ValueError, match="changed.source has changed since .* was trained on it"):
        tune(tmp_path, base_transformer, f"data.train.source={changed}", "training.max_updates=2")


def test_another_validation_corpus_is_refused(base_transformer, tmp_path):
    tune(tmp_path, base_transformer, "training.max_updates=1", "training.checkpoint_every=1")
    other = write_reversals(tmp_path, "other", 5)
    elsewhere = [f"data.validation.{side}={path}" for side, path in other.items()]
    with pytest.raises(ValueError, match="other.source has changed since .* was validated on it"):
        tune(tmp_path, base_transformer, *elsewhere, "training.max_updates=2")


def test_checkpoints_of_the_trainer_of_earlier_versions_are_refused(base_transformer, tmp_path):
    (tmp_path / "tuned" / "checkpoint-14").mkdir(parents=True)
    with pytest.raises(
        ValueError, match=r"tuned holds checkpoints of transformers' Trainer \(checkpoint-14\), by which"
    ):
        tune(tmp_path, base_transformer)


def test_without_a_launcher_one_of_several_gpus_is_used_and_said(base_transformer, tmp_path, caplog, monkeypatch):
    """And not all of them by nn.DataParallel. `meta` stands for the GPU of a run that is not started."""
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 4)
    caplog.set_level(logging.INFO, logger="vanilla_transformer")
    run = set_up(tmp_path, base_transformer)
    assert not any(isinstance(module, torch.nn.DataParallel) for module in run.state.model.modules())
    monkeypatch.setattr(run.state.accelerator.state, "device", torch.device("meta"))
    setup._describe(run, None)
    assert "device: 1 x cpu, mixed" in caplog.text
    assert "device: 1 x meta of 4 (`accelerate launch` or `torchrun` uses all of them by DDP), mixed" in caplog.text


def test_fsdp_is_refused(base_transformer, tmp_path, monkeypatch):
    """On a CPU, too, where Accelerate would ignore it."""
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    with pytest.raises(ValueError, match="not weights: launch it without FSDP"):
        tune(tmp_path, base_transformer)


def test_lora_without_peft_says_what_to_install(base_transformer, tmp_path, monkeypatch):
    monkeypatch.setattr(lora, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"lora needs peft: pip install 'vanilla-transformer\[finetuning\]'"):
        tune(tmp_path, base_transformer, "lora={target_modules: [q_proj]}")


def test_the_best_model_is_kept(base, tmp_path):
    tune(tmp_path, base, "training.validate_every=7")
    assert AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "tuned" / "best").config.model_type


def test_names_of_seq2seq_training_arguments_are_accepted(tmp_path):
    """Each of them, with a value that is not the default."""
    values = {"max_epochs": 7, "schedule": "cosine", "max_grad_norm": 0.5, "weight_decay": 0.1}
    values |= {"learning_rate": 0.2, "beta1": 0.3, "beta2": 0.4, "eps": 0.6}
    path = config_file(tmp_path, tmp_path)
    given = yaml.safe_load(path.read_text(encoding="utf-8"))
    given |= {"training": {"output_dir": "x"}, "optimizer": {}, "batches": {}}
    for old, new in RENAMED.items():
        section, key = old.split(".")
        given[section][key] = values.get(new.split(".")[1], 99)
    path.write_text(yaml.safe_dump(given), encoding="utf-8")
    config = load_finetuning_config(path).to_dict()
    for new in RENAMED.values():
        section, key = new.split(".")
        assert config[section][key] == values.get(key, 99), new


def test_an_old_and_a_new_name_of_the_same_are_refused(tmp_path):
    with pytest.raises(ValueError, match="training.max_steps is another name of training.max_updates; give one of"):
        load_finetuning_config(config_file(tmp_path, tmp_path), ["training.max_steps=3"])


@pytest.mark.parametrize("key", REMOVED)
def test_arguments_that_are_gone_name_the_remedy(tmp_path, key):
    with pytest.raises(ValueError, match=f"^training.{key}=.*: .*; leave it out$"):
        load_finetuning_config(config_file(tmp_path, tmp_path), [f"training.{key}=1"])
    load_finetuning_config(config_file(tmp_path, tmp_path), [f"training.{key}=false"])  # which asks for nothing


def test_without_an_end_there_are_three_epochs(tmp_path):
    assert (
        load_finetuning_config(config_file(tmp_path, tmp_path), ["training.max_updates=null"]).training.max_epochs == 3
    )


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("modell=x", "unknown key modell; known keys are model, data, training, optimizer, generation, lora"),
        ("training.learning=1", "unknown key training.learning; known keys are output_dir, resume"),
        ("training.label_smoothing_factor=0.1", "training.label_smoothing_factor=0.1: the model smooths by itself"),
        ("training.per_device_train_batch_size=8", "training.per_device_train_batch_size=8: batches are of as many"),
        ("training.output_dir=null", "training.output_dir=None: expected str"),
        ("optimizer.learning_rate=fast", "optimizer.learning_rate='fast': expected float, got str"),
        ("training.max_updates=1.5", "training.max_updates=1.5: expected int or null, got float"),
        ("training.push_to_hub=true", "training.push_to_hub=True: `vanilla-transformer push` sends"),
        ("training.optim=adafactor", "training.optim='adafactor': the optimizer is AdamW"),
        ("lora.r=4", "lora.target_modules is missing"),
        ("lora={r: 0, target_modules: [q_proj]}", "lora.r=0 must be at least 1"),
        ("lora={target_modules: []}", r"lora.target_modules=\[\] must name at least one"),
        ("lora={target_modules: [q_proj], dropout: 1}", "lora.dropout=1.0 must be at least 0 and less than 1"),
        ("training.max_source_tokens=0", "training.max_source_tokens=0 must be at least 1"),
        ("lora={target_modules: [q_proj]} training.average_checkpoints=2", "training.average_checkpoints=2 is for all"),
        ("data.train.streaming=true", "data.train.streaming=true: fine-tuning reads its corpora whole"),
    ],
)
def test_a_bad_configuration_is_refused(tmp_path, override, said):
    with pytest.raises(ValueError, match=said):
        load_finetuning_config(config_file(tmp_path, tmp_path), re.split(" (?=training)", override))


def test_without_held_out_pairs_nothing_is_scored(base_transformer, tmp_path):
    _, results = tune(tmp_path, base_transformer, "data.validation=null")
    assert (results["validation"], results["scores"], results["updates"]) == (None, [], 14)


def test_the_shipped_file_needs_only_its_data(tmp_path):
    files = write_reversals(tmp_path, "train", 3)
    data = [f"data.{name}.{side}={path}" for name in ("train", "validation") for side, path in files.items()]
    config = load_finetuning_config(Path(__file__).parents[2] / "configs" / "finetune.yaml", data)
    assert config.optimizer.learning_rate == 1e-4
    assert config.lora is None
