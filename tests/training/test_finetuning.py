# SPDX-License-Identifier: Apache-2.0
"""Fine-tuning a finished model: its batches, its loss, its scores, its adapter, and what it refuses."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from peft import PeftModel
from transformers import AutoModelForSeq2SeqLM, DataCollatorForSeq2Seq, GenerationConfig, Seq2SeqTrainingArguments

from tests.conftest import write_reversals
from vanilla_transformer import RNNSeq2SeqConfig, RNNSeq2SeqForConditionalGeneration
from vanilla_transformer.data.corpus import CorpusConfig, load_corpus, prepare_pairs
from vanilla_transformer.data.tokenizer import TokenizerConfig, load_tokenizer, train_tokenizer
from vanilla_transformer.evaluation.translation_quality import score_translations
from vanilla_transformer.inference.translate import translate_lines
from vanilla_transformer.training import finetuning
from vanilla_transformer.training.finetuning import finetune, load_finetuning_config
from vanilla_transformer.training.manifest import find_damage, write_manifest
from vanilla_transformer.training.progress import Progress
from vanilla_transformer.training.token_batch_trainer import TokenBatchTrainer

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
        "batches": BUDGETS,
        "training": {
            "output_dir": str(folder / "tuned"),
            "max_steps": 14,
            "learning_rate": 1e-2,
            "lr_scheduler_type": "constant",
            "save_steps": 100,
            "disable_tqdm": True,
        },
    }
    path = folder / "finetune.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def tune(folder: Path, model: Path, *overrides: str) -> tuple[Path, dict[str, float]]:
    return finetune(load_finetuning_config(config_file(folder, model), list(overrides)))


def held_out_batch(folder: Path, model: Path) -> dict[str, torch.Tensor]:
    tokenizer = load_tokenizer(model)
    lines = [(folder / f"held-out.{side}").read_text(encoding="utf-8").splitlines() for side in ("source", "target")]
    pairs = [
        {"input_ids": tokenizer(a).input_ids, "labels": tokenizer(b).input_ids} for a, b in zip(*lines, strict=True)
    ]
    return dict(DataCollatorForSeq2Seq(tokenizer)(pairs))


def trainer_of(folder: Path, model_folder: Path, **arguments) -> TokenBatchTrainer:
    tokenizer = load_tokenizer(model_folder)
    corpus = load_corpus(CorpusConfig(**write_reversals(folder, "train", 120)))
    pairs, _ = prepare_pairs(corpus, tokenizer, 20)
    return TokenBatchTrainer(
        budgets=BUDGETS,
        corpora=Progress(),
        model=AutoModelForSeq2SeqLM.from_pretrained(model_folder),
        args=Seq2SeqTrainingArguments(output_dir=str(folder / "tuned"), use_cpu=True, **arguments),
        train_dataset=pairs,
        data_collator=DataCollatorForSeq2Seq(tokenizer),
        processing_class=tokenizer,
    )


def test_the_loss_on_held_out_pairs_falls(base, tmp_path):
    tuned, _ = tune(tmp_path, base, "training.max_steps=150")
    batch = held_out_batch(tmp_path, base)
    before, after = (AutoModelForSeq2SeqLM.from_pretrained(folder)(**batch).loss.item() for folder in (base, tuned))
    assert after < 0.97 * before


def test_batches_obey_both_budgets_and_hold_every_pair_once_an_epoch(base_transformer, tmp_path):
    batches = trainer_of(tmp_path, base_transformer).get_train_dataloader()
    for epoch in range(2):
        batches.set_epoch(epoch)
        found = list(batches)
        assert sum(len(batch["input_ids"]) for batch in found) == 120
        assert max(batch["input_ids"].numel() for batch in found) <= BUDGETS["max_source_tokens"]
        assert max(batch["labels"].numel() for batch in found) <= BUDGETS["max_target_tokens"]
    assert len(found) < 120 / 8  # fuller than Trainer's own batches of 8


def test_the_trainer_asks_for_another_order_every_epoch(base_transformer, tmp_path, monkeypatch):
    trainer, epochs = trainer_of(tmp_path, base_transformer, num_train_epochs=3, disable_tqdm=True), []
    monkeypatch.setattr(trainer.order, "set_epoch", lambda epoch, start_batch=0: epochs.append((epoch, start_batch)))
    trainer.train()
    assert epochs == [(0, 0), (1, 0), (2, 0)]


def test_labels_are_smoothed_once(base, tmp_path):
    trainer = trainer_of(tmp_path, base)
    model, batch = trainer.model.eval(), next(iter(trainer.get_train_dataloader()))
    labels = batch["labels"].clone()
    loss = trainer.compute_loss(model, dict(batch)).item()
    logits = model(**batch).logits
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), label_smoothing=0.1)
    assert model.config.label_smoothing == 0.1
    assert loss == pytest.approx(expected.item(), rel=1e-5)


def test_smoothing_by_the_trainer_too_is_refused(base_transformer, tmp_path):
    with pytest.raises(ValueError, match=r"label_smoothing_factor=0.1 must be 0: the model smooths by itself"):
        trainer_of(tmp_path, base_transformer, label_smoothing_factor=0.1)


@pytest.mark.parametrize("lora", [False, True], ids=["all weights", "LoRA"])
def test_a_run_resumed_in_the_middle_of_an_epoch_ends_as_the_uninterrupted(base, kind, tmp_path, lora):
    adapter = [f"lora={{target_modules: {TARGETS[kind]}, dropout: 0.1}}"] if lora else []
    whole, parts = (f"training.output_dir={tmp_path / name}" for name in ("whole", "parts"))
    tune(tmp_path, base, whole, *adapter)
    for updates in (10, 14):  # of 7 or 8 an epoch
        tune(tmp_path, base, parts, f"training.max_steps={updates}", *adapter)
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
    folder, scores = tune(tmp_path, base)
    lines = [(tmp_path / f"held-out.{side}").read_text(encoding="utf-8").splitlines() for side in ("source", "target")]
    model = AutoModelForSeq2SeqLM.from_pretrained(folder)
    found = translate_lines(model, load_tokenizer(folder), lines[0], max_batch_tokens=500)
    expected = score_translations([best[0].text for best in found], lines[1])
    assert scores["eval_chrf"] == pytest.approx(expected["chrf"])
    assert scores["eval_bleu"] == pytest.approx(expected["bleu"])


def test_decoding_settings_outlive_the_trainer(base, tmp_path):
    """Seq2SeqTrainer alone would leave `max_length: 20` there."""
    folder, _ = tune(tmp_path, base, "training.eval_strategy=steps", "training.eval_steps=5", "training.save_steps=7")
    for found in (folder, tmp_path / "tuned" / "checkpoint-14"):
        now, before = (GenerationConfig.from_pretrained(path).to_dict() for path in (found, base))
        assert now == before


def test_the_validation_loss_is_the_mean_over_target_tokens(base, tmp_path):
    """Trainer's is the mean over batches, of which the last is small here."""
    folder, scores = tune(tmp_path, base, "training.per_device_eval_batch_size=4")
    batch = held_out_batch(tmp_path, base)
    model = AutoModelForSeq2SeqLM.from_pretrained(folder)
    logits, labels = model(**batch).logits, batch["labels"]
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), label_smoothing=0.1)
    assert model.config.label_smoothing == 0.1
    assert scores["eval_loss"] == pytest.approx(expected.item(), rel=1e-5)


def test_nothing_that_is_written_has_to_be_unpickled(base_transformer, tmp_path):
    tune(tmp_path, base_transformer, "training.max_steps=2", "training.save_steps=1")
    suffixes = {path.suffix for path in (tmp_path / "tuned").rglob("*") if path.is_file()}
    assert suffixes <= {".json", ".jinja", ".py", ".safetensors", ".yaml"}


def test_a_checkpoint_with_pickles_is_refused(base_transformer, tmp_path):
    tune(tmp_path, base_transformer, "training.max_steps=1")
    (tmp_path / "tuned" / "checkpoint-1" / "optimizer.pt").write_bytes(b"")
    with pytest.raises(ValueError, match=r"checkpoint-1 has pickles \(optimizer.pt\), which are not read"):
        tune(tmp_path, base_transformer)


@pytest.mark.parametrize("name", ["trainer_state.json", "model.safetensors", "optimizer.safetensors", "manifest.json"])
def test_the_newest_whole_checkpoint_is_gone_on_from(base_transformer, tmp_path, caplog, name):
    """Here from update 7 of 14: Trainer writes in place, and what was cut short looks like a checkpoint."""
    tune(tmp_path, base_transformer, "training.save_steps=7", "training.save_total_limit=2", "training.max_steps=14")
    newest = tmp_path / "tuned" / "checkpoint-14"
    expected = (newest / "model.safetensors").read_bytes()
    (newest / name).write_bytes((newest / name).read_bytes()[:-9])
    tune(tmp_path, base_transformer, "training.save_steps=7", "training.save_total_limit=2", "training.max_steps=14")
    assert "checkpoint-14 is damaged and not used" in caplog.text
    assert (newest / "model.safetensors").read_bytes() == expected
    assert find_damage(newest) is None
    assert {path.name for path in newest.parent.glob("checkpoint-*")} == {"checkpoint-7", "checkpoint-14"}


def test_a_folder_with_checkpoints_of_other_data_is_refused(base_transformer, tmp_path):
    tune(tmp_path, base_transformer, "training.max_steps=1")
    with pytest.raises(ValueError, match="holds checkpoints of a run with another section data"):
        tune(tmp_path, base_transformer, "data.max_length=30")


def test_the_same_data_by_another_path_is_gone_on_with(base_transformer, tmp_path, monkeypatch):
    (tmp_path / "whole").mkdir()
    whole, _ = tune(tmp_path / "whole", base_transformer, "training.max_steps=2")
    tune(tmp_path, base_transformer, "training.max_steps=1", "training.save_steps=1")
    monkeypatch.chdir(tmp_path)
    elsewhere = [f"data.train.{side}=train.{side}" for side in ("source", "target")]
    resumed, _ = tune(tmp_path, base_transformer, *elsewhere, "training.max_steps=2")
    assert (resumed / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_other_data_by_the_same_path_is_refused(base_transformer, tmp_path):
    tune(tmp_path, base_transformer, "training.max_steps=1", "training.save_steps=1")
    source = tmp_path / "train.source"
    changed = tmp_path / "changed.source"
    changed.write_text(source.read_text("utf-8").replace("a", "b"), encoding="utf-8")
    with pytest.raises(ValueError, match="changed.source has changed since .* was tuned on it"):
        tune(tmp_path, base_transformer, f"data.train.source={changed}", "training.max_steps=2")


def test_another_validation_corpus_is_refused(base_transformer, tmp_path):
    tune(tmp_path, base_transformer, "training.max_steps=1", "training.save_steps=1")
    other = write_reversals(tmp_path, "other", 5)
    elsewhere = [f"data.validation.{side}={path}" for side, path in other.items()]
    with pytest.raises(ValueError, match="other.source has changed since .* was validated on it"):
        tune(tmp_path, base_transformer, *elsewhere, "training.max_steps=2")


def test_checkpoints_of_versions_that_did_not_know_their_text_are_gone_on_from(base_transformer, tmp_path):
    tune(tmp_path, base_transformer, "training.max_steps=1", "training.save_steps=1")
    checkpoint = tmp_path / "tuned" / "checkpoint-1"
    progress = json.loads((checkpoint / "progress.json").read_text("utf-8"))
    del progress["validation_corpus"]
    (checkpoint / "progress.json").write_text(json.dumps(progress | {"corpus": {}}), encoding="utf-8")
    write_manifest(checkpoint)
    tune(tmp_path, base_transformer, "training.max_steps=2")
    assert json.loads((tmp_path / "tuned" / "results.json").read_text("utf-8"))["updates"] == 2


def test_fsdp_is_refused(base_transformer, tmp_path, monkeypatch):
    """On a CPU, too, where Accelerate would ignore it."""
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    with pytest.raises(ValueError, match="not weights: launch it without FSDP"):
        trainer_of(tmp_path, base_transformer)


def test_lora_without_peft_says_what_to_install(base_transformer, tmp_path, monkeypatch):
    monkeypatch.setattr(finetuning, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"lora needs peft: pip install 'vanilla-transformer\[finetuning\]'"):
        tune(tmp_path, base_transformer, "lora={target_modules: [q_proj]}")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("modell=x", "unknown key modell; known keys are model, data, batches, training, lora"),
        ("training.learning=1", "unknown key training.learning; known are the fields of Seq2SeqTrainingArguments"),
        ("training.label_smoothing_factor=0.1", "training.label_smoothing_factor=0.1: the model smooths by itself"),
        ("training.per_device_train_batch_size=8", "training.per_device_train_batch_size=8: batches are of as many"),
        ("training.output_dir=null", "training.output_dir is missing"),
        ("training.learning_rate=fast", "training.learning_rate='fast': expected float, got str"),
        ("training.max_steps=1.5", "training.max_steps=1.5: expected int, got float"),
        ("training.push_to_hub=true", "training.push_to_hub=True: `vanilla-transformer push` sends"),
        ("training.optim=adafactor", "training.optim='adafactor' must be one of adamw_torch, "),
        ("lora.r=4", "lora.target_modules is missing"),
        ("lora={r: 0, target_modules: [q_proj]}", "lora.r=0 must be at least 1"),
        ("lora={target_modules: []}", r"lora.target_modules=\[\] must name at least one"),
        ("lora={target_modules: [q_proj], dropout: 1}", "lora.dropout=1.0 must be at least 0 and less than 1"),
        ("batches.max_source_tokens=0", "batches.max_source_tokens=0 must be at least 1"),
        ("data.train.streaming=true", "data.train.streaming=true: fine-tuning reads its corpora whole"),
    ],
)
def test_a_bad_configuration_is_refused(tmp_path, override, said):
    with pytest.raises(ValueError, match=said):
        load_finetuning_config(config_file(tmp_path, tmp_path), [override])


def test_evaluation_without_held_out_pairs_is_refused(tmp_path):
    with pytest.raises(ValueError, match="training.eval_strategy='epoch' needs data.validation"):
        load_finetuning_config(
            config_file(tmp_path, tmp_path), ["data.validation=null", "training.eval_strategy=epoch"]
        )


def test_the_shipped_file_needs_only_its_data(tmp_path):
    files = write_reversals(tmp_path, "train", 3)
    data = [f"data.{name}.{side}={path}" for name in ("train", "validation") for side, path in files.items()]
    config = load_finetuning_config(Path(__file__).parents[2] / "configs" / "finetune.yaml", data)
    assert config.training["learning_rate"] == 1e-4
    assert config.lora is None
