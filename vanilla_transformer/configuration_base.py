# SPDX-License-Identifier: Apache-2.0
"""The base of both configurations: bounds of fields, the decoder's depth, and the code that a saved model carries."""

import copy
import os
import shutil
from collections.abc import Callable
from dataclasses import field, fields
from pathlib import Path
from typing import Any, ClassVar

from transformers import PreTrainedConfig
from transformers.utils.hub import TRANSFORMERS_DYNAMIC_MODULE_NAME

from .transformers_differences import CACHE

# transformers runs the code of a model folder from a package of this name.
IS_CODE_OF_A_FOLDER = __name__.startswith(f"{TRANSFORMERS_DYNAMIC_MODULE_NAME}.")
PIPELINE = {"impl": "pipeline_translation.TranslationPipeline", "pt": ["AutoModelForSeq2SeqLM"], "type": "text"}

# Files of the package, and their names in the folder custom_generate/ of a model.
IMPORTED_BY_GENERATION = ("ensemble.py", "search.py", "decoder.py", "transformers_differences.py")
IMPORTED_BY_GENERATION += ("transformers_version.py",)
CUSTOM_GENERATE = {"generation.py": "generate.py"} | {name: name for name in IMPORTED_BY_GENERATION}

ATTENTION_BACKENDS = ("eager", "sdpa", "flex_attention")

Bound = tuple[Callable[[Any], bool], str]  # a test of a field's value, and what the error says of one that fails
SIZE: Bound = (lambda value: 1 <= value <= 2**31, "must lie between 1 and 2^31")
RATE: Bound = (lambda value: 0 <= value < 1, "must be at least 0 and less than 1")
POSITIVE: Bound = (lambda value: value > 0, "must be greater than 0")
NOT_NEGATIVE: Bound = (lambda value: value >= 0, "must be at least 0")


def check_attention(name: str, backend: Any) -> None:
    """Raise ValueError if `backend`, the value of the field `name`, is flash attention, also as a kernel of the Hub.

    transformers drops padding before it calls any of them. In attention over the source it looks for the queries'
    padding in the source's mask: the result is wrong, without an error, wherever a source is padded.
    """
    if isinstance(backend, str) and ("flash" in backend or "/" in backend):
        raise ValueError(
            f"{name}={backend!r}: transformers' flash attention takes the source's padding for that of the queries, "
            "so that translations of padded batches are wrong (transformers#35032); choose another attention backend"
        )


def bounded(bound: Bound, default: Any) -> Any:
    """A dataclass field whose value must fulfil `bound`, unless it is `None`."""
    return field(default=default, metadata={"bound": bound})


class Seq2SeqConfig(PreTrainedConfig):
    """The base of a configuration whose saved folder contains the model's code.

    transformers alone would write the `auto_map` entry of the saved class only; `AutoModel` could then not open a
    folder that was written by the model for translation.
    """

    _auto_class: ClassVar[str | None] = "AutoConfig"  # transformers then copies the code into saved folders
    # Outputs without a row per sentence, which transformers' Trainer cannot gather as predictions.
    keys_to_ignore_at_inference = [CACHE, "negative_log_likelihood"]
    base_model_fsdp_plan = {}  # encoder and decoder have plans of their own

    vocab_size: int
    decoder_vocab_size: int | None = bounded(SIZE, None)
    tie_word_embeddings: bool
    share_encoder_decoder_embeddings: bool | None = None
    num_layers: int
    num_decoder_layers: int | None = bounded(SIZE, None)
    use_cache: bool = True
    is_encoder_decoder: bool = True
    pad_token_id: int | None = 0
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2
    decoder_start_token_id: int = 1

    def __post_init__(self, **kwargs):
        if not IS_CODE_OF_A_FOLDER:  # the installed package is the code; pipelines then need no trust_remote_code
            kwargs.pop("auto_map", None)
            kwargs.pop("custom_pipelines", None)
        super().__post_init__(**kwargs)  # sets fields that are given by transformers' names, such as hidden_size
        for spec in fields(self):
            value = getattr(self, spec.name)
            if value is not None and "bound" in spec.metadata:
                is_allowed, rule = spec.metadata["bound"]
                if not is_allowed(value):
                    raise ValueError(f"{spec.name}={value} {rule}")
        if self.num_decoder_layers is None:
            self.num_decoder_layers = self.num_layers
        if self.shares_embeddings:
            if self.decoder_vocab_size not in (None, self.vocab_size):
                raise ValueError(
                    f"decoder_vocab_size={self.decoder_vocab_size} differs from vocab_size={self.vocab_size}, so that "
                    "source and target cannot share a matrix; set share_encoder_decoder_embeddings to False"
                )
            self.decoder_vocab_size = None  # one vocabulary, which changes its size as a whole

    @property
    def shares_embeddings(self) -> bool:
        """Whether source and target embedding are one matrix."""
        shared = self.share_encoder_decoder_embeddings
        return self.tie_word_embeddings if shared is None else shared

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> PreTrainedConfig:
        """As in transformers; the decoder's view has the decoder's number of layers, which sizes the caches.

        For the whole model, `vocab_size` is the target's: `generate` takes it for the width of the logits.
        """
        if encoder or not (decoder or self.decoder_vocab_size):
            return super().get_text_config(decoder=decoder, encoder=encoder)
        assert self.num_decoder_layers is not None  # since __post_init__
        config = copy.copy(self)  # transformers' deep copy would slow down each call of `generate`, which makes three
        config.vocab_size = self.decoder_vocab_size or self.vocab_size
        if decoder:
            config.num_layers = self.num_decoder_layers
        return config

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs: Any) -> None:
        """As in transformers; also writes the code of the model, the pipeline and the paper's decoding.

        Args:
            save_directory: gets config.json, the code, and custom_generate/generate.py, which is generation.py, with
                the files that it imports.
        """
        complete = copy.copy(self)
        module, name = self.model_type, type(self).__name__.removesuffix("Config")
        # Without a repository's name, which a model pulled from the Hub has in these fields.
        complete.auto_map = {
            "AutoConfig": f"configuration_{module}.{name}Config",
            "AutoModel": f"modeling_{module}.{name}Model",
            "AutoModelForSeq2SeqLM": f"modeling_{module}.{name}ForConditionalGeneration",
        }
        complete.custom_pipelines = {task: dict(PIPELINE) for task in ("translation", "vanilla-translation")}
        decoding = Path(save_directory) / "custom_generate"
        decoding.mkdir(parents=True, exist_ok=True)
        for name, published in CUSTOM_GENERATE.items():
            shutil.copyfile(Path(__file__).with_name(name), decoding / published)
        super(Seq2SeqConfig, complete).save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)
