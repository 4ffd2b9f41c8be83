# SPDX-License-Identifier: Apache-2.0
"""The Transformer of "Attention Is All You Need", as a Hugging Face model.

Importing the package registers models, tokenizer and pipeline, so that `AutoModelForSeq2SeqLM.from_pretrained` and
`pipeline("translation", …)` open their folders.
Importing torch and transformers takes seconds, which `vanilla-transformer --help` must not: the classes are
imported when first named (PEP 562), and registered when transformers' own registries are imported.
"""

import sys
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import PathFinder
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .configuration_rnn_seq2seq import RNNSeq2SeqConfig
    from .configuration_vanilla_transformer import VanillaTransformerConfig
    from .inference.translator import Translator
    from .modeling_rnn_seq2seq import (
        RNNSeq2SeqForConditionalGeneration,
        RNNSeq2SeqModel,
        RNNSeq2SeqPreTrainedModel,
    )
    from .modeling_vanilla_transformer import (
        VanillaTransformerForConditionalGeneration,
        VanillaTransformerModel,
        VanillaTransformerPreTrainedModel,
    )

__version__ = "0.1.0"

__all__ = [
    "RNNSeq2SeqConfig",
    "RNNSeq2SeqForConditionalGeneration",
    "RNNSeq2SeqModel",
    "RNNSeq2SeqPreTrainedModel",
    "Translator",
    "VanillaTransformerConfig",
    "VanillaTransformerForConditionalGeneration",
    "VanillaTransformerModel",
    "VanillaTransformerPreTrainedModel",
]

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


def __getattr__(name: str):
    if name in _MODULE_OF:
        return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _register_config(auto, ours) -> None:
    (name,) = ours.__all__
    config = getattr(ours, name)
    auto.AutoConfig.register(config.model_type, config, exist_ok=True)


def _register_models(auto, ours) -> None:
    conditional_generation, base, _ = (getattr(ours, name) for name in ours.__all__)
    auto.AutoModel.register(base.config_class, base, exist_ok=True)
    auto.AutoModelForSeq2SeqLM.register(base.config_class, conditional_generation, exist_ok=True)


def _register_tokenizer(auto, ours) -> None:
    (name,) = ours.__all__
    tokenizer = import_module(f"{__name__}.data.tokenizer_class").VanillaTransformerTokenizer
    auto.AutoTokenizer.register(getattr(ours, name), tokenizer_class=tokenizer, exist_ok=True)


def _register_pipeline(pipelines, ours) -> None:
    """A task of our own name; and "translation", which transformers 5 refuses, saying that it was removed."""
    model = import_module("transformers").AutoModelForSeq2SeqLM
    pipelines.REMOVED_TASKS.pop("translation", None)
    for task in {"vanilla-translation", "translation"} - pipelines.PIPELINE_REGISTRY.supported_tasks.keys():
        pipelines.PIPELINE_REGISTRY.register_pipeline(task, ours.TranslationPipeline, model, type="text")


_AUTO, _PIPELINES = "transformers.models.auto", "transformers.pipelines"
_CONFIGS, _MODELS, _TOKENIZERS = (f"{_AUTO}.{kind}_auto" for kind in ("configuration", "modeling", "tokenization"))
# The last imports others of them, and our models import it.
_THEIRS = {_CONFIGS, _MODELS, _TOKENIZERS, _PIPELINES, "transformers.modeling_layers"}
# transformers' module, our module, what to do once both are imported
_REGISTRATIONS = [
    row
    for model in ("vanilla_transformer", "rnn_seq2seq")
    for row in (
        (_CONFIGS, f"{__name__}.configuration_{model}", _register_config),
        (_MODELS, f"{__name__}.modeling_{model}", _register_models),
        (_TOKENIZERS, f"{__name__}.configuration_{model}", _register_tokenizer),
    )
] + [(_PIPELINES, f"{__name__}.pipeline_translation", _register_pipeline)]
# Importing ours is all: it refuses versions that are not supported.
_REGISTRATIONS.insert(0, ("transformers", f"{__name__}.transformers_version", lambda auto, ours: None))


class _RegisterAfterImport(MetaPathFinder, Loader):
    """Leaves the import of the modules above to the usual loaders, and registers our classes after it.

    Any of them may be imported first: our models import parts of transformers that import the auto modules, which
    are then finished in the midst of both. So nothing is registered before all of them are.
    """

    def __init__(self):
        self._loaders: dict[str, Loader] = {}
        self._under_way: set[str] = set()  # found, and being executed

    def find_spec(self, fullname, path=None, target=None):
        is_ours = fullname.rpartition(".")[0] == __name__
        if not (is_ours or fullname in _THEIRS):
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.loader is None:
            return None
        self._loaders[fullname], spec.loader = spec.loader, self
        return spec

    def create_module(self, spec):
        return self._loaders[spec.name].create_module(spec)

    def exec_module(self, module):
        loader, spec = self._loaders[module.__name__], module.__spec__
        assert spec is not None
        module.__loader__ = spec.loader = loader  # for whoever looks for the module's source or data
        self._under_way.add(module.__name__)
        try:
            loader.exec_module(module)
        finally:
            self._under_way.remove(module.__name__)
        self.register()

    def register(self) -> None:
        if self._under_way:
            return
        for auto, ours, register in _REGISTRATIONS:
            if auto in sys.modules:
                register(sys.modules[auto], import_module(ours))


_registrar = _RegisterAfterImport()
sys.meta_path.insert(0, _registrar)
_registrar.register()
