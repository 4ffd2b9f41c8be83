# SPDX-License-Identifier: Apache-2.0
"""A training run as one YAML file: sections, checked before any work starts."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassFieldValidationError
from transformers import PreTrainedConfig

from vanilla_transformer.configuration_rnn_seq2seq import RNNSeq2SeqConfig
from vanilla_transformer.configuration_vanilla_transformer import VanillaTransformerConfig
from vanilla_transformer.data.corpus import CorpusConfig
from vanilla_transformer.data.tokenizer import TokenizerConfig
from vanilla_transformer.training.bounds import at_least, finite, positive, probability
from vanilla_transformer.training.yaml_sections import build_section, convert, field_of, read_yaml, type_name, words_of

# What the tokenizer or the run decides; everything else of the model's config may stand in the section `model`.
MODEL_FIELDS_SET_BY_THE_RUN = {"vocab_size", "use_cache", "is_encoder_decoder", "pad_token_id", "bos_token_id"}
MODEL_FIELDS_SET_BY_THE_RUN |= {"eos_token_id", "decoder_start_token_id"}
MODEL_CONFIGS = {config.model_type: config for config in (VanillaTransformerConfig, RNNSeq2SeqConfig)}


@strict
@dataclass(kw_only=True)
class DataConfig:
    """Corpora of parallel text, and what a person should know of them.

    Args:
        train, validation, test: corpora; `train` is required to train, `test` is scored at the end, against all the
            references that it has.
        source_language, target_language: codes such as "en", for the model card.
        name, license: of the data, for the model card.
        weights_license: of the model trained on it, for its card: the Hub's identifier, such as "cc-by-4.0".
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
    weights_license: str | None = None
    max_length: int = at_least(1, default=256)


@strict
@dataclass(kw_only=True)
class OptimizerConfig:
    """Adam and the paper's schedule (section 5.3).

    Args:
        beta1, beta2, eps: of Adam.
        learning_rate_scale: factor on d_model^-0.5 * min(step^-0.5, step * warmup_steps^-1.5); for an RNN, d_model is
            its hidden_size.
        warmup_steps: updates over which the rate rises.
        max_grad_norm: clip the global norm of the gradient; `None`: do not (the paper does not).
    """

    beta1: float = probability(default=0.9)
    beta2: float = probability(default=0.98)
    eps: float = positive(default=1e-9)
    warmup_steps: int = at_least(1, default=4000)
    learning_rate_scale: float = positive(default=1.0)
    max_grad_norm: float | None = positive(default=None)


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
        max_skipped_in_a_row: an update whose loss or gradient is not finite is skipped; so many in a row end the run.
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
    max_updates: int | None = at_least(1, default=None)
    max_epochs: int | None = at_least(1, default=None)
    max_minutes: float | None = positive(default=None)
    max_source_tokens: int = at_least(1, default=25000)
    max_target_tokens: int = at_least(1, default=25000)
    gradient_accumulation_steps: int = at_least(1, default=1)
    mixed_precision: Literal["no", "bf16", "fp16", "auto"] = "no"
    attention: Literal["eager", "sdpa", "flex_attention", "flash_attention_2"] = "sdpa"
    max_skipped_in_a_row: int = at_least(1, default=10)
    gradient_checkpointing: bool = False
    seed: int = 1
    log_every: int = at_least(1, default=50)
    validate_every: int = at_least(1, default=1000)
    checkpoint_every: int = at_least(1, default=1000)
    validation_beams: int = at_least(1, default=1)
    validation_sentences: int = at_least(1, default=1000)
    keep_checkpoints: int = at_least(1, default=5)
    average_checkpoints: int = 5
    trackers: list[str] = field(default_factory=lambda: ["tensorboard"])


@strict
@dataclass(kw_only=True)
class GenerationSectionConfig:
    """Decoding of the finished model (section 6.1), written to its generation_config.json.

    Args:
        num_beams: beam width.
        alpha: of the paper's length penalty ((5 + length) / 6)^alpha, by which this package decodes everywhere.
        length_penalty: exponent p in transformers' score / length^p, which `generate()` by itself has.
        max_tokens_beyond_source: the longest output is the source's length plus this.
        batch_tokens: padded source tokens times beams in a batch of decoding.
    """

    num_beams: int = at_least(1, default=4)
    alpha: float = finite(default=0.6)
    length_penalty: float = 0.6
    max_tokens_beyond_source: int = at_least(1, default=50)
    batch_tokens: int = at_least(1, default=8192)


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

    A file may begin with `extends: other.yaml` (relative to itself); sections are merged key by key, except that a
    section `model` with a `model_type` replaces the other's.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not YAML, an unknown key, a wrong type, a value out of range; one line that names the place.
    """
    return run_config_of(read_yaml(Path(path), overrides))


def run_config_of(values: dict[str, Any]) -> RunConfig:
    """Check everything that can be checked before any work starts.

    Raises:
        ValueError: as `load_run_config`.
    """
    config = build_section(RunConfig, values, where="")
    check_model_section(config.model)
    _check_end(config.training)
    _check_streams(config)
    _check_references(config)
    _check_lengths(config)
    _check_attention(config)
    return config


def model_config_of(model: dict[str, Any], **from_the_tokenizer: Any) -> PreTrainedConfig:
    """The model's configuration: the section `model`, and what the tokenizer decides."""
    values = {name: value for name, value in model.items() if name != "model_type"}
    return _model_config_class(model)(**values, **from_the_tokenizer)


def _model_config_class(model: dict[str, Any]) -> type[PreTrainedConfig]:
    name = model.get("model_type", VanillaTransformerConfig.model_type)
    if name not in MODEL_CONFIGS:
        raise ValueError(f"model.model_type={name!r} must be one of {', '.join(MODEL_CONFIGS)}")
    return MODEL_CONFIGS[name]


def check_model_section(model: dict[str, Any]) -> None:
    """Raise ValueError for a section `model` that no model can be made of; values become what their fields want."""
    types = _model_config_class(model).__annotations__  # the paper's fields, without those of PreTrainedConfig
    allowed = ["model_type", *(name for name in types if name not in MODEL_FIELDS_SET_BY_THE_RUN)]
    for key, value in list(model.items()):
        if key not in allowed:
            raise ValueError(f"unknown key model.{key}; known keys are {', '.join(allowed)}")
        if key != "model_type":
            model[key] = convert(types[key], value, f"model.{key}", words_of(model).get(key))
    try:
        model_config_of(model)
    except StrictDataclassFieldValidationError as error:
        name = field_of(error)
        raise ValueError(f"model.{name}={model[name]!r}: expected {type_name(types[name])}") from error
    except ValueError as error:
        raise ValueError(f"model.{error}") from error


def _check_end(training: TrainingConfig) -> None:
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


def _check_references(config: RunConfig) -> None:
    for name in ("train", "validation"):
        corpus = getattr(config.data, name)
        if corpus is not None and isinstance(corpus.target, list):
            raise ValueError(
                f"data.{name}.target={corpus.target}: only data.test can have several references; name one file"
            )


def _check_attention(config: RunConfig) -> None:
    if isinstance(model_config_of(config.model), RNNSeq2SeqConfig) and config.training.attention != "eager":
        raise ValueError(
            f"training.attention={config.training.attention!r} is for the Transformer; an RNN has its attention in "
            "model.attention: set training.attention to 'eager'"
        )


def _check_lengths(config: RunConfig) -> None:
    """Learned positions must reach as far as the run's sentences and their translations may."""
    model = model_config_of(config.model)
    longest = config.data.max_length + config.generation.max_tokens_beyond_source
    if not isinstance(model, VanillaTransformerConfig):
        return
    if model.position_embedding == "learned" and model.max_position_embeddings < longest:
        raise ValueError(
            f"model.max_position_embeddings={model.max_position_embeddings} is less than {longest}, which "
            f"data.max_length={config.data.max_length} and generation.max_tokens_beyond_source="
            f"{config.generation.max_tokens_beyond_source} allow"
        )
