# SPDX-License-Identifier: Apache-2.0
"""Fine-tuning both models with transformers' Trainer and Seq2SeqTrainer, PEFT, and pipelines."""

import copy
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoModelForSeq2SeqLM,
    DataCollatorForSeq2Seq,
    GenerationConfig,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
    TrainingArguments,
    pipeline,
    set_seed,
)

import vanilla_transformer as package
from tests.conftest import write_reversals
from vanilla_transformer.data.tokenizer import TokenizerConfig, train_tokenizer
from vanilla_transformer.generation import beam_search

MODELS = {
    "transformer": (
        package.VanillaTransformerForConditionalGeneration,
        package.VanillaTransformerConfig(vocab_size=12, d_model=16, d_ff=32, num_layers=1, num_heads=2),
        ["q_proj", "v_proj"],
    ),
    "rnn": (
        package.RNNSeq2SeqForConditionalGeneration,
        package.RNNSeq2SeqConfig(
            vocab_size=12, embedding_size=16, hidden_size=16, dropout=0.1, label_smoothing=0.1, tie_word_embeddings=True
        ),
        ["q_proj", "k_proj", "linear"],  # LoRA adapts Linear, and torch's recurrent layers are none
    ),
}


@pytest.fixture(params=MODELS)
def kind(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["a b c d e f g h"], TokenizerConfig(kind="symbols"))


@pytest.fixture(scope="module")
def pairs(tokenizer, tmp_path_factory) -> list[dict[str, list[int]]]:
    files = write_reversals(tmp_path_factory.mktemp("pairs"), "train", 48)
    sides = [
        tokenizer(Path(files[side]).read_text(encoding="utf-8").splitlines())["input_ids"]
        for side in ("source", "target")
    ]
    return [{"input_ids": source, "labels": target} for source, target in zip(*sides, strict=True)]


def new_model(kind: str, **changes):
    set_seed(3)
    model_class, config, _ = MODELS[kind]
    config = copy.deepcopy(config)
    config.update(changes)
    return model_class(config)


def trainer_of(model, tokenizer, pairs, folder, class_=Trainer, arguments=TrainingArguments, **options):
    options = {"max_steps": 6, "per_device_train_batch_size": 8, "learning_rate": 3e-3, "report_to": []} | options
    return class_(
        model=model,
        args=arguments(output_dir=str(folder), use_cpu=True, **options),
        train_dataset=pairs,
        eval_dataset=pairs,
        data_collator=DataCollatorForSeq2Seq(tokenizer, model=model),
        processing_class=tokenizer,
    )


def seq2seq_trainer_of(*arguments, **options):
    return trainer_of(*arguments, class_=Seq2SeqTrainer, arguments=Seq2SeqTrainingArguments, **options)


def test_training_lowers_the_loss(kind, tokenizer, pairs, tmp_path):
    trainer = trainer_of(new_model(kind), tokenizer, pairs, tmp_path, max_steps=30, learning_rate=1e-2)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < 0.95 * before


def test_resuming_gives_the_uninterrupted_weights(kind, tokenizer, pairs, tmp_path):
    whole = trainer_of(new_model(kind), tokenizer, pairs, tmp_path / "whole", save_steps=3)
    whole.train()
    checkpoint = str(tmp_path / "whole" / "checkpoint-3")
    resumed = trainer_of(new_model(kind), tokenizer, pairs, tmp_path / "resumed")
    resumed.train(resume_from_checkpoint=checkpoint)
    for (name, found), expected in zip(resumed.model.named_parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(found, expected), name


def test_a_checkpoint_of_the_trainer_is_an_ordinary_model_folder(kind, tokenizer, pairs, tmp_path):
    trainer = trainer_of(new_model(kind), tokenizer, pairs, tmp_path, save_steps=6)
    trainer.train()
    loaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "checkpoint-6").state_dict()
    for name, weight in trainer.model.state_dict().items():
        assert torch.equal(loaded[name], weight), name


def test_predictions_are_the_logits_of_every_pair(kind, tokenizer, pairs, tmp_path):
    predictions = trainer_of(new_model(kind), tokenizer, pairs, tmp_path).predict(pairs).predictions
    logits, encoded = predictions  # as with transformers' own encoder-decoders
    assert logits.shape == (48, 7, 12)
    assert encoded.shape[:2] == (48, 7)


@pytest.mark.parametrize("where", ["model", "trainer"])
def test_labels_are_smoothed_once(kind, tokenizer, pairs, tmp_path, where):
    """In the model, or in the trainer, which then keeps the labels from the model."""
    model = new_model(kind)
    model.config.label_smoothing = {"model": 0.1, "trainer": 0.3}[where]  # a second smoothing would show
    factor = {"model": 0.0, "trainer": 0.1}[where]
    trainer = trainer_of(model, tokenizer, pairs, tmp_path, label_smoothing_factor=factor)
    batch = trainer.data_collator(pairs[:8])
    labels = batch["labels"].clone()
    loss = trainer.compute_loss(model.eval(), dict(batch)).item()
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "decoder_input_ids")}
    logits = model(**inputs).logits
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), label_smoothing=0.1)
    assert loss == pytest.approx(expected.item(), rel=1e-5)


def test_predict_with_generate_decodes_every_source(kind, tokenizer, pairs, tmp_path):
    model = new_model(kind)
    trainer = seq2seq_trainer_of(model, tokenizer, pairs, tmp_path, predict_with_generate=True)
    found = trainer.predict(pairs[:10], max_length=9, num_beams=2).predictions
    batch = tokenizer.pad({"input_ids": [pair["input_ids"] for pair in pairs[:8]]}, return_tensors="pt")
    expected = model.generate(**batch, max_length=9, num_beams=2)
    assert found.shape[0] == 10
    assert torch.equal(torch.tensor(found[:8, : expected.shape[1]]), expected)


def test_predictions_leave_the_generation_config_alone(kind, tokenizer, pairs, tmp_path):
    """Every batch decodes as the first, whatever Seq2SeqTrainer writes into the config between them."""
    model = new_model(kind)
    tokens = {"pad_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 1}
    model.generation_config = GenerationConfig(max_tokens_beyond_source=30, suppress_tokens=[2], **tokens)
    model.save_pretrained(tmp_path / "before")
    trainer = seq2seq_trainer_of(model, tokenizer, pairs, tmp_path, predict_with_generate=True)
    trainer.compute_metrics = lambda prediction: {"length": prediction.predictions.shape[1]}
    prediction = trainer.predict(pairs[:24])  # three batches
    longest = max(len(pair["input_ids"]) for pair in pairs[:24])
    assert prediction.metrics["test_length"] == 1 + longest + 30  # with no end, as many as are allowed
    trainer.save_model(tmp_path / "after")
    before, after = ((tmp_path / name / "generation_config.json").read_text("utf-8") for name in ("before", "after"))
    assert after == before


def test_a_user_sets_the_generation_config_after_predictions(kind, tokenizer, pairs, tmp_path):
    model = new_model(kind)
    trainer = seq2seq_trainer_of(model, tokenizer, pairs, tmp_path, predict_with_generate=True)
    trainer.predict(pairs[:8])
    model.generation_config.max_length = 7
    assert model.generation_config.max_length == 7
    assert model.generation_config.num_beams is None


def test_a_model_may_have_no_generation_config(kind):
    model = new_model(kind)
    model.generation_config = None
    assert model.generation_config is None


def test_evaluation_may_decode_with_a_built_decoder(kind, tokenizer, pairs, tmp_path):
    """Seq2SeqTrainer hands the labels to `generate`, which reads none."""
    model = new_model(kind)
    trainer = seq2seq_trainer_of(model, tokenizer, pairs, tmp_path, predict_with_generate=True)
    options = {"custom_generate": beam_search, "num_beams": 2, "max_new_tokens": 6}
    found, expected = (
        trainer.predict(pairs[:10], **options, **more).predictions
        for more in ({"decoder": model.build_decoder()}, {"use_cache": False})
    )
    assert (found == expected).all()


# -- the loss


class WeightedLossTrainer(Trainer):
    """A user's own loss, in which rare tokens count more."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs["labels"]
        logits = model(**inputs).logits
        weight = torch.linspace(0.5, 2.0, logits.shape[-1])
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), weight=weight)
        return (loss, {"loss": loss, "logits": logits}) if return_outputs else loss


def test_a_trainer_may_compute_a_loss_of_its_own(kind, tokenizer, pairs, tmp_path):
    model = new_model(kind)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    trainer_of(model, tokenizer, pairs, tmp_path, class_=WeightedLossTrainer, max_steps=1).train()
    assert all(not torch.equal(old, parameter) for old, parameter in zip(before, model.parameters(), strict=True))


def padded_with_pad(tokenizer):
    """A collator that pads labels like sources, as users write it."""

    def collate(rows):
        source, labels = (
            tokenizer.pad({"input_ids": [row[name] for row in rows]}, return_tensors="pt")
            for name in ("input_ids", "labels")
        )
        return {**source, "labels": labels["input_ids"]}

    return collate


def test_model_and_trainer_count_the_same_labels(kind, tokenizer, pairs, tmp_path):
    """Labels padded with the pad id count for both: the loss is torch's mean over all of them."""
    model = new_model(kind, dropout=0.0, label_smoothing=0.0)
    options = {"max_steps": 1, "logging_steps": 1, "learning_rate": 0.0, "per_device_train_batch_size": 48}
    trainer = trainer_of(model, tokenizer, pairs, tmp_path, **options)
    trainer.data_collator = padded_with_pad(tokenizer)
    batch = trainer.data_collator(pairs)
    logits = model(**batch).logits
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten())
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(expected.item(), rel=1e-3)  # it rounds to 4 digits


def test_a_batch_without_labels_leaves_the_weights_finite(kind, tokenizer, pairs, tmp_path):
    model = new_model(kind)
    nothing = [pair | {"labels": [-100] * 3} for pair in pairs]
    trainer_of(model, tokenizer, nothing, tmp_path, max_steps=2).train()
    assert all(parameter.isfinite().all() for parameter in model.parameters())


# -- adapters


@pytest.fixture
def adapted(kind, tmp_path):
    """The base model's folder, a trained adapter's folder, and the model with it."""
    new_model(kind).save_pretrained(tmp_path / "base")
    base = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "base")
    config = LoraConfig(task_type="SEQ_2_SEQ_LM", r=2, target_modules=MODELS[kind][2])
    model = get_peft_model(base, config)
    source, labels = torch.randint(3, 12, (4, 6)), torch.randint(3, 12, (4, 5))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    for _ in range(3):
        model(input_ids=source, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path, model.eval(), {"input_ids": source, "labels": labels}


def test_lora_trains_the_adapter_alone(kind, adapted):
    folder, model, batch = adapted
    base = AutoModelForSeq2SeqLM.from_pretrained(folder / "base")
    assert (model(**batch).logits - base(**batch).logits).abs().max() > 1e-2
    with model.disable_adapter():
        assert torch.equal(model(**batch).logits, base(**batch).logits)


def test_a_lora_adapter_loads_onto_the_base_model(kind, adapted):
    folder, model, batch = adapted
    loaded = PeftModel.from_pretrained(AutoModelForSeq2SeqLM.from_pretrained(folder / "base"), str(folder / "adapter"))
    torch.testing.assert_close(loaded.eval()(**batch).logits, model(**batch).logits)


def test_a_merged_lora_adapter_is_an_ordinary_model(kind, adapted):
    folder, model, batch = adapted
    expected = model(**batch).logits.detach()
    tokens = model.generate(input_ids=batch["input_ids"], max_new_tokens=6, num_beams=2)
    model.merge_and_unload().save_pretrained(folder / "merged")
    merged = AutoModelForSeq2SeqLM.from_pretrained(folder / "merged")
    torch.testing.assert_close(merged(**batch).logits, expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(merged.generate(batch["input_ids"], max_new_tokens=6, num_beams=2), tokens)


# -- pipelines


@pytest.fixture
def folder(kind, tokenizer, tmp_path):
    new_model(kind).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("task", ["translation", "vanilla-translation"])
def test_pipeline_equals_generate(folder, tokenizer, task):
    model = AutoModelForSeq2SeqLM.from_pretrained(folder)
    options = {"max_new_tokens": 6, "num_beams": 3}
    expected = model.generate(**tokenizer("a b c", return_tensors="pt"), **options, num_return_sequences=2)
    found = pipeline(task, str(folder))("a b c", **options, num_return_sequences=2)
    assert found == [{"translation_text": text} for text in tokenizer.batch_decode(expected, skip_special_tokens=True)]


def test_a_pipeline_takes_a_list_in_batches(folder):
    translator = pipeline("translation", str(folder), max_new_tokens=6)
    texts = ["a b c", "h", "d e f g a b"]
    assert translator(texts, batch_size=2) == [translator(text) for text in texts]


def test_a_pipeline_refuses_other_inputs_than_text(folder):
    with pytest.raises(ValueError, match="must be a string; int was given"):
        pipeline("translation", str(folder))(3)


def test_a_saved_pipeline_opens_again(folder, tmp_path):
    translator = pipeline("translation", str(folder), max_new_tokens=6)
    translator.save_pretrained(tmp_path / "again")
    again = pipeline("vanilla-translation", str(tmp_path / "again"), max_new_tokens=6)
    assert again("a b c") == translator("a b c")
