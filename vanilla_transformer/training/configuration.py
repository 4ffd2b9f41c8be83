# SPDX-License-Identifier: Apache-2.0
"""A training run as one YAML file: sections, checked before any work starts."""

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, get_origin

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassFieldValidationError
from transformers import PreTrainedConfig

from vanilla_transformer.configuration_base import ATTENTION_BACKENDS, Seq2SeqConfig, check_attention
from vanilla_transformer.configuration_rnn_seq2seq import RNNSeq2SeqConfig
from vanilla_transformer.configuration_vanilla_transformer import VanillaTransformerConfig
from vanilla_transformer.data.corpus import CorpusConfig
from vanilla_transformer.data.mixture import MixedCorpusConfig, NamedCorpusConfig, by_place, check_list, check_mixture
from vanilla_transformer.data.tokenizer import TokenizerConfig
from vanilla_transformer.training.bounds import at_least, finite, positive, probability
from vanilla_transformer.training.yaml_sections import build_section, convert_fields, field_error, read_yaml

# The tokenizer or the run sets these; the section `model` may have the config's other fields.
MODEL_FIELDS_SET_BY_THE_RUN = {"vocab_size", "use_cache", "is_encoder_decoder", "pad_token_id", "bos_token_id"}
MODEL_FIELDS_SET_BY_THE_RUN |= {"decoder_vocab_size", "eos_token_id", "decoder_start_token_id"}
MODEL_CONFIGS = {config.model_type: config for config in (VanillaTransformerConfig, RNNSeq2SeqConfig)}


@strict
@dataclass(kw_only=True)
class CorporaConfig:
    """Corpora of parallel text to learn from.

    Args:
        train: required; one corpus, or a list of them, each with a name, mixed as `MixedCorpusConfig` says.
        validation: scored every `training.validate_every` updates, and at the end; one, or a list, each with a name.
        temperature: T mixes the list `train` in proportion to the corpora's sizes to the power of 1 / T, in place of
            weights: 1 in proportion to the sizes, larger nearer to equal shares. An epoch has as many pairs as all.
        max_length: longest side of a pair, in tokens with the end of the sentence; longer pairs are dropped and
            counted.
    """

    train: CorpusConfig | list[MixedCorpusConfig] | None = None
    validation: CorpusConfig | list[NamedCorpusConfig] | None = None
    temperature: float | None = positive(default=None)
    max_length: int = at_least(1, default=256)


@strict
@dataclass(kw_only=True)
class DataConfig(CorporaConfig):
    """`CorporaConfig`, a test corpus, and facts for the model card.

    Args:
        test: scored at the end, against all the references that it has; one corpus, or a list, each with a name.
        source_language, target_language: codes such as "en".
        name, license: the data's.
        weights_license: of the trained model: the Hub's identifier, such as "cc-by-4.0".
    """

    test: CorpusConfig | list[NamedCorpusConfig] | None = None
    source_language: str | None = None
    target_language: str | None = None
    name: str | None = None
    license: str | None = None
    weights_license: str | None = None


@strict
@dataclass(kw_only=True)
class OptimizerConfig:
    """The optimizer and the learning rate's schedule (section 5.3).

    Args:
        name: "adam" is the paper's; "muon" orthogonalises the updates of the layers' matrices (Jordan et al. 2024), and
            leaves all other weights to Adam, at the same learning rate.
        beta1, beta2, eps: Adam's.
        learning_rate_scale: factor on d_model^-0.5 * min(step^-0.5, step * warmup_steps^-1.5); for an RNN, d_model is
            its hidden_size.
        schedule: "inverse_sqrt" is the paper's; "linear" and "cosine" rise to the same peak, then decay to 0 at the
            first of training.max_updates, max_epochs and max_minutes, which the mean speed so far lets expect.
        warmup_steps: updates over which the rate rises.
        max_grad_norm: clip the gradient's global norm to this; `None`: do not, as in the paper.
    """

    name: Literal["adam", "muon"] = "adam"
    beta1: float = probability(default=0.9)
    beta2: float = probability(default=0.98)
    eps: float = positive(default=1e-9)
    schedule: Literal["inverse_sqrt", "linear", "cosine"] = "inverse_sqrt"
    warmup_steps: int = at_least(1, default=4000)
    learning_rate_scale: float = positive(default=1.0)
    max_grad_norm: float | None = positive(default=None)


@strict
@dataclass(kw_only=True)
class TrainingConfig:
    """The training loop (section 5).

    Args:
        output_dir: folder of the run; the same command resumes from its last checkpoint.
        resume: continue from the last checkpoint in output_dir, if there is one; `False`: refuse a folder with any.
        max_updates, max_epochs, max_minutes: training ends at the first that is reached; one is required. Minutes
            count training itself (not validation, nor the preparation of data), summed over resumed parts.
        max_source_tokens, max_target_tokens: padded size of a batch per side, process and micro-batch.
        gradient_accumulation_steps: micro-batches in an update; the last update of an epoch may have fewer.
        tokens_per_update: padded target tokens of an update, over processes and micro-batches, to the nearest number of
            micro-batches, in place of gradient_accumulation_steps; `None`: that decides.
        mixed_precision: "auto" takes bf16 where a matrix product is measured to be faster in it than in float32.
        attention: the attention backend of training, "eager", "sdpa" or "flex_attention"; `None`: the model's own.
        max_skipped_in_a_row: updates whose loss or gradient is not finite are skipped; this many in a row end the run.
        gradient_checkpointing: recompute activations in the backward pass instead of keeping them.
        compile: a Transformer's layers by torch.compile, one by one, for batches of any shape.
        deterministic: deterministic algorithms on a GPU too, which are slower: a resumed run ends in the same bits.
        seed: decides initialisation, dropout and the order of the data.
        log_every, validate_every, checkpoint_every: in updates; `None`: the latter two not by updates.
        validate_every_minutes, checkpoint_every_minutes: also after so many minutes of training since the last time, or
            later where it would take more than 3% of the time; `None`: not by minutes. With checkpoint_every, the
            checkpoints by minutes are removed by the next one.
        validation_beams: beam width of the validation's translations; `None`: the model's own.
        validation_sentences: validation pairs that are translated for BLEU (`None`: all); all count for the loss.
        patience: validations in a row without an improvement that end the run; `None`: do not. The finished model is
            then `best/`, unless average_checkpoints says otherwise.
        best_by: the measure by which `best/` is chosen: BLEU, the smoothed loss, or sentence_error_rate, the
            share of the `validation_sentences` that are not exactly the reference (of pronunciations: of words).
        best_on: the name of the validation corpus by which it is chosen; `None`: the mean over all of them.
        profile_updates: write torch.profiler's trace of so many updates, after 7 others, to output_dir/profile.
        keep_checkpoints: the newest that stay on disk.
        average_checkpoints: the newest whose mean becomes the finished model (section 6.1); 0: the last weights, and
            with patience those of the best validation.
        trackers: Accelerate's, such as tensorboard.
    """

    output_dir: str
    resume: bool = True
    max_updates: int | None = at_least(1, default=None)
    max_epochs: int | None = at_least(1, default=None)
    max_minutes: float | None = positive(default=None)
    max_source_tokens: int = at_least(1, default=25000)
    max_target_tokens: int = at_least(1, default=25000)
    gradient_accumulation_steps: int = at_least(1, default=1)
    tokens_per_update: int | None = at_least(1, default=None)
    mixed_precision: Literal["no", "bf16", "fp16", "auto"] = "no"
    attention: str | None = "sdpa"
    max_skipped_in_a_row: int = at_least(1, default=10)
    gradient_checkpointing: bool = False
    compile: bool = False
    deterministic: bool = False
    seed: int = 1
    log_every: int = at_least(1, default=50)
    validate_every: int | None = at_least(1, default=1000)
    validate_every_minutes: float | None = positive(default=None)
    checkpoint_every: int | None = at_least(1, default=1000)
    checkpoint_every_minutes: float | None = positive(default=None)
    validation_beams: int | None = at_least(1, default=1)
    validation_sentences: int | None = at_least(1, default=1000)
    patience: int | None = at_least(1, default=None)
    best_by: Literal["bleu", "loss", "sentence_error_rate"] = "bleu"
    best_on: str | None = None
    profile_updates: int | None = at_least(1, default=None)
    keep_checkpoints: int = at_least(1, default=5)
    average_checkpoints: int = 5
    trackers: list[str] = field(default_factory=lambda: ["tensorboard"])

    def __post_init__(self):
        if (self.max_updates, self.max_epochs, self.max_minutes) == (None, None, None):
            raise ValueError(
                "training has no end: set training.max_updates, training.max_epochs or training.max_minutes"
            )
        check_attention("training.attention", self.attention)
        if self.attention not in (None, *ATTENTION_BACKENDS):
            raise ValueError(f"training.attention={self.attention!r} must be one of {', '.join(ATTENTION_BACKENDS)}")
        if self.tokens_per_update is not None and self.gradient_accumulation_steps > 1:
            raise ValueError(
                f"training.tokens_per_update={self.tokens_per_update} and training.gradient_accumulation_steps="
                f"{self.gradient_accumulation_steps} both decide how many micro-batches an update has; give one of them"
            )
        if not 0 <= self.average_checkpoints <= self.keep_checkpoints:
            raise ValueError(
                f"training.average_checkpoints={self.average_checkpoints} must lie between 0 and "
                f"training.keep_checkpoints={self.keep_checkpoints}"
            )

        if self.patience is not None and (self.validate_every, self.validate_every_minutes) == (None, None):
            raise ValueError(
                f"training.patience={self.patience} counts validations, and there are none before the end: set "
                "training.validate_every or training.validate_every_minutes"
            )

    def finishes_with_best(self) -> bool:
        """Whether the finished model is that of the best validation."""
        return self.patience is not None and self.average_checkpoints == 0

    def micro_batches(self, processes: int) -> int:
        """Micro-batches of each process in an update."""
        if self.tokens_per_update is None:
            return self.gradient_accumulation_steps
        return max(1, round(self.tokens_per_update / (processes * self.max_target_tokens)))


@strict
@dataclass(kw_only=True)
class BatchTokensConfig:
    """Decoding.

    Args:
        batch_tokens: padded source tokens times beams in a batch.
    """

    batch_tokens: int = at_least(1, default=8192)


@strict
@dataclass(kw_only=True)
class GenerationSectionConfig(BatchTokensConfig):
    """Decoding of the finished model (section 6.1), written to its generation_config.json.

    Args:
        num_beams: beam width.
        alpha: exponent of the paper's length penalty ((5 + length) / 6)^alpha, which this package uses.
        length_penalty: exponent p in score / length^p, which transformers' `generate()` uses.
        max_tokens_beyond_source: the longest output is the source's length plus this.
    """

    num_beams: int = at_least(1, default=4)
    alpha: float = finite(default=0.6)
    length_penalty: float = finite(default=0.6)
    max_tokens_beyond_source: int = at_least(1, default=50)


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
    """Build the configuration, and check everything that can be checked before any work starts.

    Raises:
        ValueError: as `load_run_config`.
    """
    config = build_section(RunConfig, values, where="")
    check_model_section(config.model)
    _check_corpora(config)
    _check_model(config)
    return config


def model_config_of(model: dict[str, Any], **from_the_tokenizer: Any) -> PreTrainedConfig:
    """The model's configuration, from the section `model` and the tokenizer's values."""
    values = {name: value for name, value in model.items() if name != "model_type"}
    return _model_config_class(model)(**values, **from_the_tokenizer)


def _model_config_class(model: dict[str, Any]) -> type[PreTrainedConfig]:
    name = model.get("model_type", VanillaTransformerConfig.model_type)
    if name not in MODEL_CONFIGS:
        raise ValueError(f"model.model_type={name!r} must be one of {', '.join(MODEL_CONFIGS)}")
    return MODEL_CONFIGS[name]


def check_model_section(model: dict[str, Any]) -> None:
    """Raise ValueError for an impossible section `model`; convert its values to the types of their fields."""
    # The paper's fields, without those of PreTrainedConfig.
    annotations = _model_config_class(model).__annotations__ | Seq2SeqConfig.__annotations__
    types = {"model_type": str} | {
        name: kind
        for name, kind in annotations.items()
        if get_origin(kind) is not ClassVar and name not in MODEL_FIELDS_SET_BY_THE_RUN
    }
    model.update(convert_fields(types, model, "model"))
    try:
        model_config_of(model)
    except StrictDataclassFieldValidationError as error:
        raise field_error(error, types, model, "model") from error
    except ValueError as error:
        raise ValueError(f"model.{error}") from error


def check_data(data: CorporaConfig, training: TrainingConfig) -> None:
    """Raise ValueError for lists of corpora that cannot be used, and for settings of validations that there are not."""
    check_mixture("data.train", data.train, data.temperature)
    check_list("data.validation", data.validation)
    if training.patience is not None and data.validation is None:
        raise ValueError(f"training.patience={training.patience} needs validations: give data.validation")
    names = [corpus.name for corpus in data.validation] if isinstance(data.validation, list) else []
    if training.best_on is not None and training.best_on not in names:
        raise ValueError(
            f"training.best_on={training.best_on!r} must be the name of a corpus of the list data.validation"
            f"{', one of ' * bool(names)}{', '.join(names)}"
        )


def _check_corpora(config: RunConfig) -> None:
    data, training = config.data, config.training
    check_data(data, training)
    check_list("data.test", data.test)
    train = by_place("data.train", data.train)
    scored = by_place("data.validation", data.validation) | (tests := by_place("data.test", data.test))
    for place, corpus in (train | scored).items():
        if corpus.streaming and place in scored:
            raise ValueError(f"{place}.streaming=true: only data.train can be a stream; the others are scored whole")
        if isinstance(corpus.target, list) and place not in tests:
            raise ValueError(
                f"{place}.target={corpus.target}: only data.test can have several references; name one file"
            )
    is_stream = any(corpus.streaming for corpus in train.values())
    schedule = config.optimizer.schedule
    is_by_epochs = training.max_updates is None and training.max_minutes is None
    if is_stream and is_by_epochs and schedule != "inverse_sqrt":
        raise ValueError(
            f"optimizer.schedule={schedule!r} ends with the run, and nobody knows beforehand how many updates "
            f"training.max_epochs={training.max_epochs} of a stream have; set training.max_updates or max_minutes"
        )
    budget = min(training.max_source_tokens, training.max_target_tokens)
    if is_stream and data.max_length > budget:
        raise ValueError(
            f"data.max_length={data.max_length} is more than a batch holds (training.max_source_tokens="
            f"{training.max_source_tokens}, max_target_tokens={training.max_target_tokens}); a stream would show a "
            "pair between them in the middle of an epoch"
        )


def _check_model(config: RunConfig) -> None:
    model = model_config_of(config.model)
    if not config.tokenizer.shared and model.share_encoder_decoder_embeddings:
        raise ValueError(
            "model.share_encoder_decoder_embeddings=true is one matrix for source and target, and "
            "tokenizer.shared=false two vocabularies; leave one of them out"
        )
    if isinstance(model, RNNSeq2SeqConfig) and config.training.attention not in ("eager", None):
        raise ValueError(
            f"training.attention={config.training.attention!r} is for the Transformer; an RNN has its attention in "
            "model.attention: set training.attention to 'eager'"
        )
    refuse_compiled_rnn(model, config.training)
    length = config.data.max_length + config.generation.max_tokens_beyond_source
    if max_positions(model) < length:
        raise ValueError(
            f"model.max_position_embeddings={max_positions(model)} is less than {length}, which "
            f"data.max_length={config.data.max_length} and generation.max_tokens_beyond_source="
            f"{config.generation.max_tokens_beyond_source} allow"
        )


def refuse_compiled_rnn(model: PreTrainedConfig, training: TrainingConfig) -> None:
    """Raise ValueError for `training.compile` of an RNN."""
    if training.compile and isinstance(model, RNNSeq2SeqConfig):
        raise ValueError(
            "training.compile=true is for the Transformer: torch.compile would unroll an RNN's steps into a graph for "
            "each length; set training.compile to false"
        )


def max_positions(model: PreTrainedConfig) -> float:
    """The longest text that the model can read or write, in tokens; infinite without learned positions."""
    has_limit = isinstance(model, VanillaTransformerConfig) and model.position_embedding == "learned"
    return model.max_position_embeddings if has_limit else math.inf
