# SPDX-License-Identifier: Apache-2.0
"""The Transformer of "Attention Is All You Need", as a Hugging Face model.

Importing the package registers the models, so that `AutoModelForSeq2SeqLM.from_pretrained` opens their folders.
Importing torch and transformers takes seconds, which `vanilla-transformer --help` must not: the classes are
imported when first named (PEP 562), and registered when transformers' auto classes are imported.
"""

import sys
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .configuration_vanilla_transformer import VanillaTransformerConfig
    from .modeling_vanilla_transformer import (
        VanillaTransformerForConditionalGeneration,
        VanillaTransformerModel,
        VanillaTransformerPreTrainedModel,
    )

__version__ = "0.1.0"

__all__ = [
    "VanillaTransformerConfig",
    "VanillaTransformerForConditionalGeneration",
    "VanillaTransformerModel",
    "VanillaTransformerPreTrainedModel",
]

_MODULE_OF = {
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
    auto.AutoConfig.register("vanilla_transformer", ours.VanillaTransformerConfig, exist_ok=True)


def _register_models(auto, ours) -> None:
    config = ours.VanillaTransformerConfig
    auto.AutoModel.register(config, ours.VanillaTransformerModel, exist_ok=True)
    auto.AutoModelForSeq2SeqLM.register(config, ours.VanillaTransformerForConditionalGeneration, exist_ok=True)


# transformers' module, our module, what to do once both are imported
_REGISTRATIONS = [
    ("transformers.models.auto.configuration_auto", f"{__name__}.configuration_vanilla_transformer", _register_config),
    ("transformers.models.auto.modeling_auto", f"{__name__}.modeling_vanilla_transformer", _register_models),
]


class _RegisterAfterImport(MetaPathFinder, Loader):
    """Leaves the import of the modules above to the usual loaders, and registers our classes after it.

    Either module may be imported first, and ours imports parts of transformers that import the auto modules.
    """

    def __init__(self):
        self._names = {name for row in _REGISTRATIONS for name in row[:2]}
        self._loaders: dict[str, Loader] = {}
        self._under_way: set[str] = set()

    def find_spec(self, fullname, path=None, target=None):
        if fullname not in self._names or fullname in self._under_way:
            return None
        self._under_way.add(fullname)  # find_spec below must not come back here
        spec = find_spec(fullname)
        assert spec is not None, fullname
        assert spec.loader is not None, fullname
        self._loaders[fullname], spec.loader = spec.loader, self
        return spec

    def create_module(self, spec):
        return self._loaders[spec.name].create_module(spec)

    def exec_module(self, module):
        self._loaders[module.__name__].exec_module(module)
        self._under_way.remove(module.__name__)
        self.register()

    def register(self) -> None:
        for auto, ours, register in _REGISTRATIONS:
            if auto in sys.modules and not self._under_way & {auto, ours}:
                register(sys.modules[auto], import_module(ours))


_registrar = _RegisterAfterImport()
sys.meta_path.insert(0, _registrar)
_registrar.register()
