# SPDX-License-Identifier: Apache-2.0
"""A run of fine-tuning as one YAML file: the keys of a training run, a model to start from, and a LoRA adapter."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from huggingface_hub.dataclasses import strict

from vanilla_transformer.data.mixture import by_place
from vanilla_transformer.data.tokenizer import TokenizerConfig, check_tokens
from vanilla_transformer.training.bounds import at_least, positive, probability
from vanilla_transformer.training.configuration import BatchTokensConfig, CorporaConfig, TrainingConfig, check_data
from vanilla_transformer.training.lora import LoRASectionConfig
from vanilla_transformer.training.yaml_sections import build_section, merged, plain, read_yaml

EPOCHS = 3  # where the configuration gives no end
DEFAULTS = {  # of the section `training`, where they are not those of `train`
    "max_source_tokens": 4096,
    "max_target_tokens": 4096,
    "attention": None,
    "validation_beams": None,
    "validation_sentences": None,
    "average_checkpoints": 0,
    "trackers": [],
}

# Keys of transformers' Seq2SeqTrainingArguments, which configured fine-tuning before, and their names here.
RENAMED = {
    "training.num_train_epochs": "training.max_epochs",
    "training.max_steps": "training.max_updates",
    "training.logging_steps": "training.log_every",
    "training.eval_steps": "training.validate_every",
    "training.save_steps": "training.checkpoint_every",
    "training.save_total_limit": "training.keep_checkpoints",
    "training.learning_rate": "optimizer.learning_rate",
    "training.lr_scheduler_type": "optimizer.schedule",
    "training.warmup_steps": "optimizer.warmup_steps",
    "training.weight_decay": "optimizer.weight_decay",
    "training.adam_beta1": "optimizer.beta1",
    "training.adam_beta2": "optimizer.beta2",
    "training.adam_epsilon": "optimizer.eps",
    "training.max_grad_norm": "optimizer.max_grad_norm",
    "batches.max_source_tokens": "training.max_source_tokens",
    "batches.max_target_tokens": "training.max_target_tokens",
}
REMOVED = {
    "label_smoothing_factor": "the model smooths by itself, by label_smoothing of its config.json",
    "per_device_train_batch_size": "batches are of as many tokens as training.max_source_tokens and "
    "training.max_target_tokens allow",
    "per_device_eval_batch_size": "set generation.batch_tokens",
    "bf16": "set training.mixed_precision=bf16",
    "fp16": "set training.mixed_precision=fp16",
    "eval_strategy": "set training.validate_every, in updates; the end is always validated",
    "save_strategy": "set training.checkpoint_every, in updates; the end is always saved",
    "report_to": "set training.trackers, such as [tensorboard]",
    "load_best_model_at_end": "set training.patience, in validations; the best model is in best/ in any case",
    "metric_for_best_model": "set training.best_by",
    "optim": "the optimizer is AdamW, or Muon with optimizer.name=muon",
    "resume_from_checkpoint": "the same command goes on from the last checkpoint in training.output_dir",
    "push_to_hub": "`vanilla-transformer push` sends the finished model, checked and in one commit",
    "hub_token": "a token has no place in a file; log in with `hf auth login` or set HF_TOKEN",
}


@strict
@dataclass(kw_only=True)
class FineTuningOptimizerConfig:
    """AdamW or Muon, and the learning rate.

    Args:
        name: "adam": AdamW; "muon" as in training.
        learning_rate: the peak.
        schedule: transformers' `lr_scheduler_type`: linear and cosine decay to 0 at the run's end, minutes too.
        warmup_steps: updates over which the rate rises from 0.
        weight_decay, beta1, beta2, eps: AdamW's.
        max_grad_norm: clip the gradient's global norm to this; `None`: do not.
        keep_state: begin with the moments of `model`, which then is a checkpoint of a run with this optimizer, such as
            runs/my/checkpoints/update-00010000; those of new tokens are zero.

    Raises:
        ValueError: weight decay with Muon.
    """

    name: Literal["adam", "muon"] = "adam"
    learning_rate: float = positive(default=5e-5)
    schedule: Literal["linear", "constant", "constant_with_warmup", "cosine", "inverse_sqrt"] = "linear"
    warmup_steps: int = at_least(0, default=0)
    weight_decay: float = at_least(0, default=0.0)
    beta1: float = probability(default=0.9)
    beta2: float = probability(default=0.999)
    eps: float = positive(default=1e-8)
    max_grad_norm: float | None = positive(default=1.0)
    keep_state: bool = False

    def __post_init__(self):
        if self.name == "muon" and self.weight_decay:
            raise ValueError(f"optimizer.weight_decay={self.weight_decay} is AdamW's; leave it out with muon")


@strict
@dataclass(kw_only=True)
class FineTuningTokenizerConfig:
    """The model's own tokenizer.

    Args:
        add_tokens: as of `TokenizerConfig`; the model gets rows for them, and its other rows stay as they are.
    """

    add_tokens: list[str] | None = None

    def __post_init__(self):
        check_tokens(self.add_tokens)


@strict
@dataclass(kw_only=True)
class FineTuningConfig:
    """One run of fine-tuning.

    Args:
        model: folder or Hub id of a Transformer or RNN of this package, with its tokenizer.
        training: with `DEFAULTS`; without an end, it ends after 3 epochs.
        lora: `None`: all weights are trained.
    """

    model: str
    data: CorporaConfig
    training: TrainingConfig
    optimizer: FineTuningOptimizerConfig = field(default_factory=FineTuningOptimizerConfig)
    generation: BatchTokensConfig = field(default_factory=BatchTokensConfig)
    lora: LoRASectionConfig | None = None
    tokenizer: FineTuningTokenizerConfig = field(default_factory=FineTuningTokenizerConfig)

    def tokenizer_config(self) -> TokenizerConfig:
        """The model's own tokenizer, or both of them, with the new tokens."""
        return TokenizerConfig(path=self.model, shared=None, add_tokens=self.tokenizer.add_tokens)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def load_finetuning_config(path: str | Path, overrides: list[str] | None = None) -> FineTuningConfig:
    """Read a YAML file, apply `section.key=value` overrides, and check everything that needs no model.

    The names of transformers' Seq2SeqTrainingArguments that are the same under another name are accepted, too.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not YAML, an unknown key, a wrong type, a value out of range; one line that names the place.
    """
    values = merged({"training": DEFAULTS}, _renamed(read_yaml(Path(path), overrides)))
    section = values["training"]
    if isinstance(section, dict) and all(
        section.get(f"max_{unit}") is None for unit in ("updates", "epochs", "minutes")
    ):
        section["max_epochs"] = EPOCHS
    config = build_section(FineTuningConfig, values, where="")
    check_data(config.data, config.training)
    averaged = config.training.average_checkpoints
    if config.lora is not None and averaged:
        raise ValueError(f"training.average_checkpoints={averaged} is for all weights; leave it out with lora")
    corpora = by_place("data.train", config.data.train) | by_place("data.validation", config.data.validation)
    for place, corpus in corpora.items():
        if corpus.streaming:
            raise ValueError(f"{place}.streaming=true: fine-tuning reads its corpora whole; leave it out")
    if config.lora is not None and (config.optimizer.keep_state or config.optimizer.name == "muon"):
        key = "keep_state=true" if config.optimizer.keep_state else "name='muon'"
        raise ValueError(f"optimizer.{key} is for all weights, and lora trains new ones; leave one out")
    if config.lora is not None and config.tokenizer.add_tokens and config.optimizer.weight_decay:
        raise ValueError(
            f"optimizer.weight_decay={config.optimizer.weight_decay} would change the frozen rows beside those of "
            "tokenizer.add_tokens; set it to 0 with lora"
        )
    return config


def _renamed(values: dict[str, Any]) -> dict[str, Any]:
    """The values under today's names."""
    training = values.get("training")
    for key in REMOVED.keys() & (training if isinstance(training, dict) else {}):
        if value := plain(values["training"].pop(key)):  # false asks for nothing
            shown = "***" if key == "hub_token" else repr(value)
            raise ValueError(f"training.{key}={shown}: {REMOVED[key]}; leave it out")
    for old, new in RENAMED.items():
        old_section, old_key = old.split(".")
        new_section, new_key = new.split(".")
        section = values.get(old_section)
        if not isinstance(section, dict) or old_key not in section:
            continue
        if values.get(new_section) is None:
            values[new_section] = {}
        target = values[new_section]
        if new_key in target:
            raise ValueError(f"{old} is another name of {new}; give one of them")
        target[new_key] = section.pop(old_key)
    if values.get("batches") == {}:
        del values["batches"]
    return values
