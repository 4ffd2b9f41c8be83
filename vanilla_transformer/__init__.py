# SPDX-License-Identifier: Apache-2.0
"""The Transformer of "Attention Is All You Need" and the RNN that it replaced, as Hugging Face models.

Importing this package registers its models, tokenizer and pipeline with transformers: `AutoModelForSeq2SeqLM`,
`AutoTokenizer` and `pipeline("translation", …)` open its model folders. torch and transformers are imported when a
program first needs them.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from .registration.after_import import after_import

if TYPE_CHECKING:
    from .configuration_rnn_seq2seq import RNNSeq2SeqConfig
    from .configuration_vanilla_transformer import VanillaTransformerConfig
    from .inference.translator import Translator
    from .modeling_rnn_seq2seq import RNNSeq2SeqForConditionalGeneration, RNNSeq2SeqModel, RNNSeq2SeqPreTrainedModel
    from .modeling_vanilla_transformer import (
        VanillaTransformerForConditionalGeneration,
        VanillaTransformerModel,
        VanillaTransformerPreTrainedModel,
    )

__version__ = "0.1.0"

_MODULE_OF = {
    "RNNSeq2SeqConfig": "configuration_rnn_seq2seq",
    "RNNSeq2SeqForConditionalGeneration": "modeling_rnn_seq2seq",
    "RNNSeq2SeqModel": "modeling_rnn_seq2seq",
    "RNNSeq2SeqPreTrainedModel": "modeling_rnn_seq2seq",
    "Translator": "inference.translator",
    "VanillaTransformerConfig": "configuration_vanilla_transformer",
    "VanillaTransformerForConditionalGeneration": "modeling_vanilla_transformer",
    "VanillaTransformerModel": "modeling_vanilla_transformer",
    "VanillaTransformerPreTrainedModel": "modeling_vanilla_transformer",
}
__all__ = list(_MODULE_OF)  # pyright: ignore[reportUnsupportedDunderAll] -- the imports above tell pyright


def __getattr__(name: str):
    """Import a class when it is first named (PEP 562)."""
    if name in _MODULE_OF:
        return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@after_import("transformers")
def _check_version() -> None:
    import_module(f"{__name__}.transformers_version")  # refuses versions that are not supported


@after_import("transformers.models.auto.configuration_auto")
def _register_configs() -> None:
    from transformers import AutoConfig

    from .configuration_rnn_seq2seq import RNNSeq2SeqConfig
    from .configuration_vanilla_transformer import VanillaTransformerConfig

    for config in RNNSeq2SeqConfig, VanillaTransformerConfig:
        AutoConfig.register(config.model_type, config, exist_ok=True)


@after_import("transformers.models.auto.modeling_auto")
def _register_models() -> None:
    from transformers import AutoModel, AutoModelForSeq2SeqLM

    from .modeling_rnn_seq2seq import RNNSeq2SeqForConditionalGeneration, RNNSeq2SeqModel
    from .modeling_vanilla_transformer import VanillaTransformerForConditionalGeneration, VanillaTransformerModel

    for base in (RNNSeq2SeqModel, VanillaTransformerModel):
        AutoModel.register(base.config_class, base, exist_ok=True)
    for seq2seq in (RNNSeq2SeqForConditionalGeneration, VanillaTransformerForConditionalGeneration):
        AutoModelForSeq2SeqLM.register(seq2seq.config_class, seq2seq, exist_ok=True)


@after_import("transformers.models.auto.tokenization_auto")
def _register_tokenizer() -> None:
    from transformers import AutoTokenizer

    from .configuration_rnn_seq2seq import RNNSeq2SeqConfig
    from .configuration_vanilla_transformer import VanillaTransformerConfig
    from .data.tokenizer_class import VanillaTransformerTokenizer

    for config in (RNNSeq2SeqConfig, VanillaTransformerConfig):
        AutoTokenizer.register(config, tokenizer_class=VanillaTransformerTokenizer, exist_ok=True)


@after_import("transformers.pipelines")
def _register_pipeline() -> None:
    """A task of our own, and "translation", which transformers 5 has removed and would refuse to open."""
    from transformers import AutoModelForSeq2SeqLM
    from transformers.pipelines import PIPELINE_REGISTRY

    from .pipeline_translation import TranslationPipeline
    from .transformers_differences import restore_removed_task

    restore_removed_task("translation")
    for task in {"vanilla-translation", "translation"} - PIPELINE_REGISTRY.supported_tasks.keys():
        PIPELINE_REGISTRY.register_pipeline(task, TranslationPipeline, AutoModelForSeq2SeqLM, type="text")
