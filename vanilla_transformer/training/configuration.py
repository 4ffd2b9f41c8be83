# SPDX-License-Identifier: Apache-2.0
"""A training run as one YAML file: sections, checked before any work starts."""

import math
import re
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml
from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassFieldValidationError

from vanilla_transformer.configuration_vanilla_transformer import VanillaTransformerConfig
from vanilla_transformer.data.corpus import CorpusConfig
from vanilla_transformer.data.tokenizer import TokenizerConfig

# What the tokenizer or the run decides; everything else of the model's config may stand in the section `model`.
MODEL_FIELDS_SET_BY_THE_RUN = {"vocab_size", "use_cache", "is_encoder_decoder", "pad_token_id", "bos_token_id"}
MODEL_FIELDS_SET_BY_THE_RUN |= {"eos_token_id", "decoder_start_token_id"}


@strict
@dataclass(kw_only=True)
class DataConfig:
    """Corpora of parallel text, and what a person should know of them.

    Args:
        train, validation, test: corpora; `train` is required to train, `test` is scored at the end.
        source_language, target_language: codes such as "en", for the model card.
        name, license: of the data, for the model card.
        max_length: longest side of a pair, in tokens with the end of the sentence; longer pairs are dropped and
            counted.
    """

    train: CorpusConfig | None = None
    validation: CorpusConfig | None = None
    test: CorpusConfig | None = None
    source_language: str | None = None
    target_language: str | None = None
    name: str | None = None
    license: str | None = None
    max_length: int = 256


@strict
@dataclass(kw_only=True)
class OptimizerConfig:
    """Adam and the paper's schedule (section 5.3).

    Args:
        beta1, beta2, eps: of Adam.
        learning_rate_scale: factor on d_model^-0.5 * min(step^-0.5, step * warmup_steps^-1.5).
        warmup_steps: updates over which the rate rises.
        max_grad_norm: clip the global norm of the gradient; `None`: do not (the paper does not).
    """

    beta1: float = 0.9
    beta2: float = 0.98
    eps: float = 1e-9
    warmup_steps: int = 4000
    learning_rate_scale: float = 1.0
    max_grad_norm: float | None = None


@strict
@dataclass(kw_only=True)
class TrainingConfig:
    """The loop (section 5).

    Args:
        output_dir: folder of the run; the same command resumes from its last checkpoint.
        resume: continue from the last checkpoint in output_dir, if there is one; `False`: refuse a folder with any.
        max_updates, max_epochs, max_minutes: training ends at the first that is reached; one is required. Minutes
            count training itself (not validation, nor the preparation of data), summed over resumed parts.
        max_source_tokens, max_target_tokens: padded size of a batch per side, process and micro-batch.
        gradient_accumulation_steps: micro-batches in an update; the last update of an epoch may have fewer.
        mixed_precision: "auto" takes bf16 where a matrix product is faster in bf16 than in float32, measured.
        attention: the attention backend of training.
        gradient_checkpointing: keep less for the backward pass, and compute it again.
        seed: of initialisation, dropout and the order of the data.
        log_every, validate_every, checkpoint_every: in updates.
        validation_beams: beam width of the validation's translations.
        validation_sentences: how many of the validation pairs are translated for BLEU; all count for the loss.
        keep_checkpoints: the newest that stay on disk.
        average_checkpoints: the newest whose mean becomes the finished model (section 6.1); 0: the last weights.
        trackers: of Accelerate.
    """

    output_dir: str
    resume: bool = True
    max_updates: int | None = None
    max_epochs: int | None = None
    max_minutes: float | None = None
    max_source_tokens: int = 25000
    max_target_tokens: int = 25000
    gradient_accumulation_steps: int = 1
    mixed_precision: Literal["no", "bf16", "fp16", "auto"] = "no"
    attention: Literal["eager", "sdpa", "flex_attention", "flash_attention_2"] = "sdpa"
    gradient_checkpointing: bool = False
    seed: int = 1
    log_every: int = 50
    validate_every: int = 1000
    checkpoint_every: int = 1000
    validation_beams: int = 1
    validation_sentences: int = 1000
    keep_checkpoints: int = 5
    average_checkpoints: int = 5
    trackers: list[str] = field(default_factory=lambda: ["tensorboard"])


@strict
@dataclass(kw_only=True)
class GenerationSectionConfig:
    """Decoding of the finished model (section 6.1), written to its generation_config.json.

    Args:
        num_beams: beam width.
        length_penalty: exponent p in transformers' score / length^p.
        max_tokens_beyond_source: the longest output is the source's length plus this.
        batch_tokens: padded source tokens times beams in a batch of decoding.
    """

    num_beams: int = 4
    length_penalty: float = 0.6
    max_tokens_beyond_source: int = 50
    batch_tokens: int = 8192


@strict
@dataclass(kw_only=True)
class RunConfig:
    """One training run."""

    data: DataConfig = field(default_factory=DataConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    model: dict[str, Any] = field(default_factory=dict)
    training: TrainingConfig
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    generation: GenerationSectionConfig = field(default_factory=GenerationSectionConfig)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def load_run_config(path: str | Path, overrides: list[str] | None = None) -> RunConfig:
    """Read a YAML file, apply `section.key=value` overrides, and check everything.

    A file may begin with `extends: other.yaml` (relative to itself); sections are merged key by key.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not YAML, an unknown key, a wrong type, a value out of range; one line that names the place.
    """
    values = _read_with_bases(Path(path))
    for override in overrides or []:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise ValueError(f"override {override!r}: write section.key=value, for example training.max_updates=100")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ValueError(
                f"override {override!r}: {text!r} is not a YAML value; quote it inside, as '\"{text}\"'"
            ) from error
        _set(values, key.split("."), value, override)
    config = _build(RunConfig, values, where="")
    _check_model_section(config.model)
    _check_numbers(config)
    _check_streams(config)
    _check_lengths(config)
    return config


def model_config_of(config: RunConfig, **from_the_tokenizer: Any) -> VanillaTransformerConfig:
    """The model's configuration: the section `model`, and what the tokenizer decides."""
    return VanillaTransformerConfig(**config.model, **from_the_tokenizer)


def _read_with_bases(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"configuration {path} does not exist")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"configuration {path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ValueError(f"configuration {path} must hold sections (data, model, training, …), not a {type(values)}")
    base = values.pop("extends", None)
    if base is None:
        return values
    if not isinstance(base, str):
        raise ValueError(f"configuration {path}: extends={base!r} must be the name of a file")
    return _merged(_read_with_bases(path.parent / base), values)


def _merged(base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in change.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = _merged(result[key], value) if both else value
    return result


def _set(values: dict[str, Any], keys: list[str], value: Any, override: str) -> None:
    for key in keys[:-1]:
        if values.get(key) is None:
            values[key] = {}
        values = values[key]
        if not isinstance(values, dict):
            raise ValueError(f"override {override!r}: {key} is a value, not a section")
    values[keys[-1]] = value


def _build(cls: type, values: Any, where: str) -> Any:
    """A strict dataclass from nested dictionaries; errors name the dotted place."""
    if not isinstance(values, dict):
        raise ValueError(f"{where or 'configuration'}: expected a section with keys, got {values!r}")
    known = {f.name: f for f in fields(cls)}
    for key in values:
        if key not in known:
            raise ValueError(f"unknown key {_dotted(where, key)}; known keys are {', '.join(known)}")
    types = get_type_hints(cls)
    built = {key: _convert(types[key], value, _dotted(where, key)) for key, value in values.items()}
    for name, f in known.items():
        if name not in built and f.default is MISSING and f.default_factory is MISSING:
            raise ValueError(f"{_dotted(where, name)} is missing")
    try:
        return cls(**built)
    except StrictDataclassFieldValidationError as error:
        name = _field_of(error)
        raise ValueError(
            f"{_dotted(where, name)}={built[name]!r}: expected {_type_name(types[name])}, "
            f"got {type(built[name]).__name__}"
        ) from error


def _convert(annotation: Any, value: Any, where: str) -> Any:
    """Sections to dataclasses; whole numbers and YAML's "1e-9", which it reads as a string, to float."""
    choices = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    section = next((choice for choice in choices if is_dataclass(choice)), None)
    if section is not None and not (value is None and NoneType in choices):
        return _build(section, value, where)  # pyright: ignore[reportArgumentType] -- is_dataclass above
    if float in choices and isinstance(value, (str, int)) and not isinstance(value, bool):
        try:
            return float(value)
        except ValueError:
            return value  # the strict dataclass names it
    return value


def _field_of(error: StrictDataclassFieldValidationError) -> str:
    """huggingface_hub names the field in the message alone."""
    found = re.match("Validation error for field '(.+)'", str(error))
    assert found is not None, error
    return found[1]


def _check_model_section(model: dict[str, Any]) -> None:
    types = VanillaTransformerConfig.__annotations__  # the paper's fields, without those of PreTrainedConfig
    allowed = [name for name in types if name not in MODEL_FIELDS_SET_BY_THE_RUN]
    for key, value in list(model.items()):
        if key not in allowed:
            raise ValueError(f"unknown key model.{key}; known keys are {', '.join(allowed)}")
        model[key] = _convert(types[key], value, f"model.{key}")
    try:
        VanillaTransformerConfig(**model)
    except StrictDataclassFieldValidationError as error:
        name = _field_of(error)
        raise ValueError(f"model.{name}={model[name]!r}: expected {_type_name(types[name])}") from error
    except ValueError as error:
        raise ValueError(f"model.{error}") from error


def _check_numbers(config: RunConfig) -> None:
    training, optimizer, generation = config.training, config.optimizer, config.generation
    at_least_one = {
        "data.max_length": config.data.max_length,
        "optimizer.warmup_steps": optimizer.warmup_steps,
        "generation.num_beams": generation.num_beams,
        "generation.max_tokens_beyond_source": generation.max_tokens_beyond_source,
        "generation.batch_tokens": generation.batch_tokens,
    }
    counts = ("max_source_tokens", "max_target_tokens", "gradient_accumulation_steps", "log_every", "validate_every")
    for name in (*counts, "checkpoint_every", "validation_beams", "validation_sentences", "keep_checkpoints"):
        at_least_one[f"training.{name}"] = getattr(training, name)
    for name in ("max_updates", "max_epochs"):
        if getattr(training, name) is not None:
            at_least_one[f"training.{name}"] = getattr(training, name)
    for where, value in at_least_one.items():
        if value < 1:
            raise ValueError(f"{where}={value} must be at least 1")
    positive = {"optimizer.eps": optimizer.eps, "optimizer.learning_rate_scale": optimizer.learning_rate_scale}
    if training.max_minutes is not None:
        positive["training.max_minutes"] = training.max_minutes
    if optimizer.max_grad_norm is not None:
        positive["optimizer.max_grad_norm"] = optimizer.max_grad_norm
    for where, value in positive.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{where}={value} must be greater than 0, and finite")
    for where, value in {"optimizer.beta1": optimizer.beta1, "optimizer.beta2": optimizer.beta2}.items():
        if not 0 <= value < 1:
            raise ValueError(f"{where}={value} must be at least 0 and less than 1")
    if training.max_updates is None and training.max_epochs is None and training.max_minutes is None:
        raise ValueError("training has no end: set training.max_updates, training.max_epochs or training.max_minutes")
    if not 0 <= training.average_checkpoints <= training.keep_checkpoints:
        raise ValueError(
            f"training.average_checkpoints={training.average_checkpoints} must lie between 0 and "
            f"training.keep_checkpoints={training.keep_checkpoints}"
        )


def _check_streams(config: RunConfig) -> None:
    for name in ("validation", "test"):
        corpus = getattr(config.data, name)
        if corpus is not None and corpus.streaming:
            raise ValueError(
                f"data.{name}.streaming=true: only data.train can be a stream; the others are scored whole"
            )
    budget = min(config.training.max_source_tokens, config.training.max_target_tokens)
    if config.data.train is not None and config.data.train.streaming and config.data.max_length > budget:
        raise ValueError(
            f"data.max_length={config.data.max_length} is more than a batch holds (training.max_source_tokens="
            f"{config.training.max_source_tokens}, max_target_tokens={config.training.max_target_tokens}); of a "
            "stream, a pair between them would be found in the middle of an epoch"
        )


def _check_lengths(config: RunConfig) -> None:
    """Learned positions must reach as far as the run's sentences and their translations may."""
    model = VanillaTransformerConfig(**config.model)
    longest = config.data.max_length + config.generation.max_tokens_beyond_source
    if model.position_embedding == "learned" and model.max_position_embeddings < longest:
        raise ValueError(
            f"model.max_position_embeddings={model.max_position_embeddings} is less than {longest}, which "
            f"data.max_length={config.data.max_length} and generation.max_tokens_beyond_source="
            f"{config.generation.max_tokens_beyond_source} allow"
        )


def _dotted(where: str, key: str) -> str:
    return f"{where}.{key}" if where else str(key)


def _type_name(annotation: Any) -> str:
    choices = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    names = []
    for choice in choices:
        if get_origin(choice) is Literal:
            names.extend(repr(value) for value in get_args(choice))
        else:
            names.append("null" if choice is NoneType else getattr(choice, "__name__", str(choice)))
    return " or ".join(names)
