# SPDX-License-Identifier: Apache-2.0
"""Reading checkpoints of other toolkits without executing anything: tensors, plain values, and inert stand-ins."""

import re
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

# Classes that toolkits pickle beside their weights and that hold settings or statistics. None of them is imported: a
# stand-in keeps their attributes.
HARMLESS = (
    "argparse.Namespace",
    *("builtins.dict", "builtins.int", "builtins.list", "builtins.str", "builtins.tuple", "builtins.object"),
    "typing.Any",
    *("numpy.ndarray", "numpy.dtype", "numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct"),
    *("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar", "numpy.dtypes.Float64DType"),
    *("omegaconf.dictconfig.DictConfig", "omegaconf.listconfig.ListConfig"),
    *("omegaconf.base.ContainerMetadata", "omegaconf.base.Metadata"),
    *(f"omegaconf.nodes.{kind}Node" for kind in ("Any", "Boolean", "Enum", "Float", "Integer", "String")),
    *("torchtext.vocab.Vocab", "torchtext.data.utils._split_tokenizer", "functools.partial", "collections.Counter"),
    *(f"torchtext.data.field.{kind}Field" for kind in ("", "Raw", "Label")),
    *("onmt.inputters.text_dataset.TextMultiField", "onmt.inputters.text_dataset._feature_tokenize"),
    *("onmt.inputters.inputter.AlignField", "onmt.inputters.inputter.make_src", "onmt.inputters.inputter.make_tgt"),
    *("pathlib.PosixPath", "pathlib.WindowsPath", "pathlib._local.PosixPath"),
)


class StandIn:
    """An instance of a class that is not imported: its attributes, and the arguments that it was made of."""

    def __new__(cls, *arguments: Any, **_: Any) -> "StandIn":
        instance = super().__new__(cls)
        instance.__dict__["arguments"] = arguments
        return instance

    def __init__(self, *_: Any, **__: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.__dict__.update(state)


def read_checkpoint(path: Path) -> Any:
    """The content of a file that `torch.save` or safetensors wrote, on the CPU.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is truncated or no checkpoint; it holds a class that is neither torch's nor in `HARMLESS`.
    """
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {path} does not exist")
    stand_ins: dict[str, Any] = {
        name: type(name.rpartition(".")[2], (StandIn,), {"__module__": "stand_in"}) for name in HARMLESS
    }
    stand_ins["collections.defaultdict"] = _empty
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals([(kind, name) for name, kind in stand_ins.items()]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged (truncated download or copy?): {error}") from error
    except UnpicklingError as error:
        foreign = re.search(r"GLOBAL ([\w.]+)", str(error))
        if foreign is None:
            raise ValueError(f"{path} is no checkpoint that can be read as data, or it is damaged") from error
        raise ValueError(
            f"{path} holds an object of {foreign[1]}: making it could run any code, so the file is not read; if you "
            "trust it, open it with its own toolkit and save the weights alone"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError) as error:
        raise ValueError(f"{path} is no checkpoint, or it is damaged (truncated download or copy?)") from error


def _empty(*_: Any) -> dict[Any, Any]:
    """Stands for defaultdict, whose entries follow."""
    return {}


def plain(value: Any) -> Any:
    """Stand-ins of argparse and omegaconf as dictionaries, lists and values, at any depth."""
    if isinstance(value, StandIn):
        state = vars(value)
        if "_content" in state:  # omegaconf's containers
            return plain(state["_content"])
        if "_val" in state:  # omegaconf's values
            return plain(state["_val"])
        return {key: plain(item) for key, item in state.items() if key != "arguments"}
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value
