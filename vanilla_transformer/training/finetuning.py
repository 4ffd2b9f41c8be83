# SPDX-License-Identifier: Apache-2.0
"""Fine-tuning a model folder with transformers' Seq2SeqTrainer: whole, or by a LoRA adapter of PEFT.

Batches are of as many tokens as in the training loop, and scores are of the translations that `translate` gives.
"""

import json
import logging
from dataclasses import asdict, dataclass, field, fields, make_dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_type_hints

import torch
import transformers
import yaml
from datasets import Dataset
from huggingface_hub.dataclasses import strict
from transformers import (
    DataCollatorForSeq2Seq,
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Seq2SeqTrainingArguments,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint, sort_checkpoints

from vanilla_transformer.configuration_vanilla_transformer import VanillaTransformerConfig
from vanilla_transformer.data.corpus import CorpusConfig, fingerprint, load_corpus, prepare_pairs
from vanilla_transformer.data.tokenizer import load_tokenizer
from vanilla_transformer.distributed.processes import process_state
from vanilla_transformer.evaluation.translation_quality import score_translations
from vanilla_transformer.inference.model_folder import load_model_folder
from vanilla_transformer.inference.weight_files import is_pickle_name
from vanilla_transformer.seq2seq_base import BaseForConditionalGeneration
from vanilla_transformer.training.checkpoint import replaced_whole
from vanilla_transformer.training.corpora import check_same_text
from vanilla_transformer.training.export import MODEL, RESULTS
from vanilla_transformer.training.manifest import find_damage
from vanilla_transformer.training.output_dir import identity
from vanilla_transformer.training.progress import Progress
from vanilla_transformer.training.run_state import PROGRESS
from vanilla_transformer.training.token_batch_trainer import INPUTS, SMOOTHED_ALREADY, TokenBatchTrainer
from vanilla_transformer.training.yaml_sections import build_section, read_yaml

logger = logging.getLogger(__name__)

ADAPTER, RESOLVED = "adapter", "config.yaml"  # in training.output_dir
OPTIMIZERS = ("adamw_torch", "adamw_torch_fused", "sgd", "adagrad", "rmsprop")  # whose state is tensors alone

# Fields of Seq2SeqTrainingArguments that would be given for nothing, or for harm.
REFUSED = {
    "label_smoothing_factor": SMOOTHED_ALREADY,
    "per_device_train_batch_size": "batches are of as many tokens as batches.max_source_tokens and "
    "batches.max_target_tokens allow",
    "auto_find_batch_size": "lower batches.max_source_tokens and batches.max_target_tokens",
    "train_sampling_strategy": "batches are of pairs of similar length, in an order that the seed decides",
    "dataloader_drop_last": "every pair is seen once an epoch",
    "remove_unused_columns": "the columns are known",
    "resume_from_checkpoint": "the same command goes on from the last checkpoint in training.output_dir",
    "predict_with_generate": "translations are always scored",
    "fsdp": "every process holds the whole model",
    "deepspeed": "every process holds the whole model",
    "push_to_hub": "`vanilla-transformer push` sends the finished model, checked and in one commit",
    "hub_token": "a token has no place in a file; log in with `hf auth login` or set HF_TOKEN",
}


@strict
@dataclass(kw_only=True)
class FineTuningDataConfig:
    """Corpora of parallel text.

    Args:
        train: to learn from; no stream.
        validation: translated and scored whenever `training.eval_strategy` says so, and at the end.
        max_length: longest side of a pair, in tokens with the end of the sentence; longer pairs are dropped and
            counted.
    """

    train: CorpusConfig
    validation: CorpusConfig | None = None
    max_length: int = 256


@strict
@dataclass(kw_only=True)
class BatchesConfig:
    """Padded size of a batch per side, process and micro-batch."""

    max_source_tokens: int = 4096
    max_target_tokens: int = 4096


@strict
@dataclass(kw_only=True)
class LoRASectionConfig:
    """Low-rank adapters (Hu et al. 2021): W + alpha / r * B A, of which A and B alone are learnt.

    Args:
        r: rank.
        alpha: scale of the adapter's part, before it is divided by r.
        dropout: of the adapter's input.
        target_modules: names of the linear layers that get one, such as q_proj and v_proj; for an RNN k_proj and
            linear.
    """

    r: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    target_modules: list[str]


@strict
@dataclass(kw_only=True)
class FineTuningConfig:
    """One run of fine-tuning.

    Args:
        model: folder or Hub id of a Transformer or RNN of this package, with its tokenizer.
        training: fields of transformers' Seq2SeqTrainingArguments; `output_dir` is required.
        lora: `None`: all weights are learnt.
    """

    model: str
    data: FineTuningDataConfig
    batches: BatchesConfig = field(default_factory=BatchesConfig)
    training: dict[str, Any]
    lora: LoRASectionConfig | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def load_finetuning_config(path: str | Path, overrides: list[str] | None = None) -> FineTuningConfig:
    """Read a YAML file, apply `section.key=value` overrides, and check everything that needs no model.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not YAML, an unknown key, a wrong type, a value out of range; one line that names the place.
    """
    config = build_section(FineTuningConfig, read_yaml(Path(path), overrides), where="")
    numbers = {
        "data.max_length": config.data.max_length,
        "batches.max_source_tokens": config.batches.max_source_tokens,
        "batches.max_target_tokens": config.batches.max_target_tokens,
    }
    if config.lora is not None:
        numbers["lora.r"] = config.lora.r
        if not 0 <= config.lora.dropout < 1:
            raise ValueError(f"lora.dropout={config.lora.dropout} must be at least 0 and less than 1")
        if not config.lora.target_modules:
            raise ValueError("lora.target_modules=[] must name at least one linear layer, such as q_proj")
    for where, value in numbers.items():
        if value < 1:
            raise ValueError(f"{where}={value} must be at least 1")
    for name, corpus in (("train", config.data.train), ("validation", config.data.validation)):
        if corpus is not None and corpus.streaming:
            raise ValueError(f"data.{name}.streaming=true: fine-tuning reads its corpora whole; leave it out")
    _check_training_section(config)
    return config


def _check_training_section(config: FineTuningConfig) -> None:
    """Numbers become what their fields want; transformers itself takes any value, and fails on it later."""
    types = get_type_hints(Seq2SeqTrainingArguments)
    allowed = [one.name for one in fields(Seq2SeqTrainingArguments) if one.init and one.name not in REFUSED]
    for key, value in config.training.items():
        if key in REFUSED and value:
            shown = "***" if key == "hub_token" else repr(value)
            raise ValueError(f"training.{key}={shown}: {REFUSED[key]}; leave it out")
        if key not in allowed and key not in REFUSED:
            raise ValueError(f"unknown key training.{key}; known are the fields of Seq2SeqTrainingArguments")
    optimizer = config.training.get("optim", OPTIMIZERS[0])
    if optimizer not in OPTIMIZERS:
        raise ValueError(f"training.optim={optimizer!r} must be one of {', '.join(OPTIMIZERS)}")
    given = strict(make_dataclass("Given", [(key, types[key]) for key in config.training], kw_only=True))
    config.training = asdict(build_section(given, config.training, where="training"))
    if not config.training.get("output_dir"):
        raise ValueError("training.output_dir is missing")
    if config.training.get("eval_strategy", "no") != "no" and config.data.validation is None:
        raise ValueError(
            f"training.eval_strategy={config.training['eval_strategy']!r} needs data.validation; give it, or set 'no'"
        )


def finetune(config: FineTuningConfig) -> tuple[Path, dict[str, float]]:
    """Fine-tune as configured, going on from the last checkpoint in `training.output_dir`.

    Writes there `model`, a model folder with its tokenizer, and with `lora` also `adapter`, which `model` has merged;
    and `results.json`, the facts for a model card.

    Returns:
        The folder `model`, and the scores of `data.validation` (none without one).

    Raises:
        ValueError, FileNotFoundError, PermissionError: unusable model, data, configuration or folder, before any
            update.
        RuntimeError: a worker of training.dataloader_num_workers died.
    """
    state = process_state()
    output_dir = Path(config.training["output_dir"])
    model, tokenizer = _load(config)
    with state.main_process_first():
        _claim(output_dir, config)
        train = _pairs(config, "train", config.data.train, tokenizer)
        validation = config.data.validation
        held_out = None if validation is None else _pairs(config, "validation", validation, tokenizer)
    assert state.device is not None  # of several on CPUs it is cpu:0
    options: dict[str, Any] = {"use_cpu": state.device.type == "cpu", "predict_with_generate": True}
    options |= {name: value for name, value in config.training.items() if name not in REFUSED}
    arguments = Seq2SeqTrainingArguments(**options)
    set_seed(arguments.seed)  # Trainer does so later; an adapter's weights are drawn here
    adapted = model if config.lora is None else _with_adapter(model, config.lora)
    metric = None if held_out is None else TranslationMetric(tokenizer, held_out["target"][:])
    checkpoint = _last_checkpoint(output_dir)
    corpora = Progress(
        corpus=fingerprint(config.data.train),
        validation_corpus={} if validation is None else fingerprint(validation),
    )
    if checkpoint is not None:
        _check_corpora(output_dir, Path(checkpoint), corpora)
    trainer = TokenBatchTrainer(
        budgets=asdict(config.batches),
        corpora=corpora,
        model=adapted,
        args=arguments,
        train_dataset=train,
        eval_dataset=None if held_out is None else held_out.select_columns(INPUTS),
        data_collator=DataCollatorForSeq2Seq(tokenizer),
        processing_class=tokenizer,
        compute_metrics=metric,
    )
    try:
        trainer.train(resume_from_checkpoint=checkpoint)
    except (EOFError, ConnectionError) as error:  # all that is known of one that died while it handed over a batch
        raise RuntimeError("a DataLoader worker died; the same command goes on from the last checkpoint") from error
    scores = trainer.evaluate() if held_out is not None else {}
    if state.is_main_process:
        _write(output_dir, adapted, tokenizer, has_adapter=config.lora is not None)
        results = {
            "config": config.to_dict(),
            "model_type": model.config.model_type,
            "parameters": model.num_parameters(),
            "pairs": len(train),
            "updates": trainer.state.global_step,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "loss": scores.get("eval_loss"),
            "scores": metric.scores() if metric is not None else [],
        }
        (output_dir / RESULTS).write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    trainer.accelerator.wait_for_everyone()
    return output_dir / MODEL, scores


def _load(config: FineTuningConfig) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    model = load_model_folder(config.model)
    if not isinstance(model, BaseForConditionalGeneration):
        raise ValueError(
            f"model={config.model} has model_type={model.config.model_type!r}; fine-tuning is for the models of this "
            "package, vanilla_transformer and rnn_seq2seq"
        )
    tokenizer = load_tokenizer(config.model)
    if len(tokenizer) > model.config.vocab_size:
        raise ValueError(
            f"model={config.model}: its tokenizer has {len(tokenizer)} tokens, its config.json "
            f"vocab_size={model.config.vocab_size}; they belong to different models"
        )
    of_model = model.config
    has_table = isinstance(of_model, VanillaTransformerConfig) and of_model.position_embedding == "learned"
    if has_table and of_model.max_position_embeddings < config.data.max_length:
        raise ValueError(
            f"data.max_length={config.data.max_length} is more than max_position_embeddings="
            f"{of_model.max_position_embeddings} of model={config.model}; lower it"
        )
    return model, tokenizer


def _claim(output_dir: Path, config: FineTuningConfig) -> None:
    """Raise if the folder holds the checkpoints of another run; write what this one is."""
    resolved, values = output_dir / RESOLVED, config.to_dict()
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        if get_last_checkpoint(output_dir) is not None:
            before = yaml.safe_load(resolved.read_text("utf-8")) if resolved.is_file() else {}
            for section in sorted(values.keys() - {"training"}):  # a resumed run may be longer, or log more
                if identity(section, before.get(section)) != identity(section, values[section]):
                    raise ValueError(
                        f"{output_dir} holds checkpoints of a run with another section {section}; choose another "
                        "training.output_dir, or remove that folder to start anew"
                    )
        if process_state().is_main_process:
            resolved.write_text(yaml.safe_dump(values, sort_keys=False, allow_unicode=True), encoding="utf-8")
    except OSError as error:
        raise PermissionError(
            f"training.output_dir={output_dir} cannot be written ({error.strerror}); choose another folder"
        ) from error


def _last_checkpoint(output_dir: Path) -> str | None:
    """The newest that is whole; damaged ones are named. Raise if it holds pickles, as those of earlier versions do."""
    for checkpoint in reversed(sort_checkpoints(str(output_dir))):
        pickled = sorted(file.name for file in Path(checkpoint).iterdir() if is_pickle_name(file.name))
        if pickled:
            raise ValueError(
                f"checkpoint {checkpoint} has pickles ({', '.join(pickled)}), which are not read, since to open one is "
                "to run whatever it says; choose another training.output_dir to start anew"
            )
        damage = find_damage(Path(checkpoint))
        if damage is None:
            return checkpoint
        logger.warning(f"checkpoint {checkpoint} is damaged and not used: {damage}")
    return None


def _check_corpora(output_dir: Path, checkpoint: Path, now: Progress) -> None:
    """Raise if a corpus has another text than at this checkpoint. Checkpoints of earlier versions do not tell."""
    before = Progress()
    before.load_state_dict(json.loads((checkpoint / PROGRESS).read_text("utf-8")))
    if before.corpus:
        check_same_text(output_dir, "tuned", before.corpus, now.corpus, "the rest of the epoch is not known")
    if before.validation_corpus:
        harm = "scores cannot be compared with those before"
        check_same_text(output_dir, "validated", before.validation_corpus, now.validation_corpus, harm)


def _pairs(config: FineTuningConfig, name: str, corpus: CorpusConfig, tokenizer: PreTrainedTokenizerBase) -> Dataset:
    text = load_corpus(corpus)
    assert isinstance(text, Dataset)  # the configuration admits no stream
    pairs, dropped = prepare_pairs(text, tokenizer, config.data.max_length)
    if process_state().is_main_process:
        logger.info(f"data.{name}: {dropped}")
    return pairs


def _with_adapter(model: PreTrainedModel, lora: LoRASectionConfig) -> Any:
    """The model with a new adapter, whose own weights alone are learnt.

    Raises:
        ValueError: peft is not installed; no module of such a name.
    """
    if find_spec("peft") is None:
        raise ValueError("lora needs peft: pip install 'vanilla-transformer[finetuning]'")
    from peft import LoraConfig, TaskType, get_peft_model

    settings = LoraConfig(
        task_type=TaskType.SEQ_2_SEQ_LM,
        r=lora.r,
        lora_alpha=lora.alpha,  # pyright: ignore[reportArgumentType] -- peft divides it, whatever number it is
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
    )
    return get_peft_model(model, settings)


class TranslationMetric:
    """BLEU and chrF of decoded predictions against the corpus's own text, which labels may not spell whole."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, references: list[str]):
        self.tokenizer = tokenizer
        self.references = references
        self.found: dict[str, Any] = {}  # the last time

    def __call__(self, prediction: EvalPrediction) -> dict[str, float]:
        tokens: Any = prediction.predictions
        # Several processes see the first pairs twice where they do not divide evenly; those come last.
        tokens = tokens[: len(self.references)]
        tokens[tokens < 0] = self.tokenizer.pad_token_id  # Trainer's padding between batches
        found = score_translations(self.tokenizer.batch_decode(tokens, skip_special_tokens=True), self.references)
        self.found = dict(found)
        return {"bleu": found["bleu"], "chrf": found["chrf"]}

    def scores(self) -> list[dict[str, Any]]:
        """As results.json of a run has them."""
        return [
            {
                "data": "validation",
                "metric": name,
                "value": self.found[key],
                "signature": self.found[f"{key}_signature"],
            }
            for name, key in (("BLEU", "bleu"), ("chrF", "chrf"))
        ]


def _write(output_dir: Path, model: Any, tokenizer: PreTrainedTokenizerBase, has_adapter: bool) -> None:
    if has_adapter:
        with replaced_whole(output_dir / ADAPTER) as folder:
            model.save_pretrained(folder)
        model = model.merge_and_unload()
    with replaced_whole(output_dir / MODEL) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
