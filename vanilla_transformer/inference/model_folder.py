# SPDX-License-Identifier: Apache-2.0
"""Opening a model folder, with a one-line error for each way in which a folder can be broken."""

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from huggingface_hub.errors import HFValidationError, StrictDataclassError
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    AutoModelForSeq2SeqLM,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils import logging
from transformers.utils.hub import cached_file
from transformers.utils.peft_utils import find_adapter_config_file

from vanilla_transformer.inference.weight_files import INDEX, WEIGHTS

UNPICKLING = (
    "opening it can run any code, so it is not opened: if you trust it, open it with transformers and save it again, "
    "which writes safetensors"
)


def load_model_folder(path: str | Path, device: torch.device | None = None) -> PreTrainedModel:
    """`AutoModelForSeq2SeqLM.from_pretrained(path)` for a local folder or a Hub id, in evaluation mode.

    No code of the folder is executed (this package's is instead): nothing is unpickled, config.json can make
    transformers fetch nothing, and no file outside the folder is read.

    Args:
        device: `None`: the CPU.

    Raises:
        FileNotFoundError: no such folder or Hub id, or one without config.json or safetensors weights.
        ValueError: no encoder-decoder; an adapter; weights that are truncated, or that do not fit config.json; names
            or links that lead out of the folder.
    """
    if "://" in str(path):  # not repeated: it may hold a password
        raise ValueError("the model must be a folder or user/name on the Hub, not an address")
    folder = Path(path)
    is_local = folder.exists() or not _may_be_on_hub(str(path))
    if is_local:
        _check_folder(folder)
    try:
        _check_config(path)
        _check_index(path)
        with _without_reports():
            model, report = AutoModelForSeq2SeqLM.from_pretrained(
                path,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                trust_remote_code=False,
                use_safetensors=True,
            )
    except SafetensorError as error:
        raise ValueError(f"the weights in {path} are damaged (truncated download or copy?): {error}") from error
    except StrictDataclassError as error:
        raise ValueError(f"config.json in {path} is no configuration of a model: {_one_line(error)}") from error
    except (json.JSONDecodeError, KeyError) as error:
        raise ValueError(f"a json file in {path} is damaged: {_one_line(error)}") from error
    except OSError as error:
        if "use_safetensors" in str(error):
            raise FileNotFoundError(f"{path} has no {WEIGHTS}; if it has weights as a pickle: {UNPICKLING}") from error
        where = "" if is_local else "there is no such folder, and on the Hub: "
        raise FileNotFoundError(f"cannot open the model {path}: {where}{_one_line(error)}") from error
    if report["mismatched_keys"]:
        name, found, expected = min(report["mismatched_keys"])
        raise ValueError(
            f"the weights in {path} do not fit its config.json: {len(report['mismatched_keys'])} have another shape, "
            f"the first is {name}: {tuple(found)}, where config.json asks for {tuple(expected)}"
        )
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise ValueError(f"{path} lacks {len(missing)} of the model's weights, the first is {missing[0]}")
    return model.to(device).eval()


def _may_be_on_hub(path: str) -> bool:
    """Whether it has the form of a Hub id, `user/name`."""
    try:
        validate_repo_id(path)
    except HFValidationError:
        return False
    return not path.startswith(".")


def default_device() -> torch.device:
    """The accelerator that torch finds (cuda, mps, …), or the CPU."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def _check_folder(folder: Path) -> None:
    if not folder.exists():
        raise FileNotFoundError(f"model folder {folder} does not exist, nor is it the id of a model on the Hub")
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file; give the model folder that it is in")
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} is not a model folder: it has no config.json")
    _check_links(folder)
    if not any((folder / name).is_file() for name in (WEIGHTS, INDEX)):
        pickled = sorted(path.name for path in folder.glob("pytorch_model*.bin"))
        why = f"; it has {pickled[0]}, a pickle: {UNPICKLING}" if pickled else ""
        raise FileNotFoundError(f"{folder} has no weights: expected {WEIGHTS} (or {INDEX} and its shards){why}")


def _check_links(folder: Path) -> None:
    """Somebody else's folder may link to any file of this machine; the Hub's cache links to its blobs."""
    folder = folder.resolve()
    allowed = [folder] if folder.parent.name != "snapshots" else [folder, folder.parents[1] / "blobs"]
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() and not any(path.resolve().is_relative_to(place) for place in allowed):
            name = path.relative_to(folder)
            raise ValueError(f"{folder} has a link {name} to something outside of it; replace it by what it points to")


def _check_index(path: str | Path) -> None:
    """transformers opens the files that an index names, and would unpickle those not called .safetensors."""
    index = None
    with suppress(OSError):  # no index; or no network, which opening the model reports
        index = cached_file(path, INDEX)
    if index is None:
        return
    try:
        names = sorted(set(json.loads(Path(index).read_text("utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} is damaged: it has no readable weight_map") from error
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise ValueError(f"{index} names {name!r}, which is not a .safetensors file of the folder")


def _check_config(path: str | Path) -> None:
    """For an unknown model_type transformers would run the folder's code; other fields make it fetch from the Hub."""
    config = PreTrainedConfig.get_config_dict(path)[0]
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        raise ValueError(f"config.json in {path} has model_type={model_type!r}, which transformers does not know")
    if CONFIG_MAPPING[model_type] not in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING:
        raise ValueError(f"config.json in {path} has model_type={model_type!r}, which is no encoder-decoder")
    if (name := config.get("transformers_weights")) is not None:
        raise ValueError(f"config.json in {path} has transformers_weights={name!r}: only {WEIGHTS} is read; remove it")
    if "/" in str(kernel := config.get("attn_implementation")):
        raise ValueError(
            f"config.json in {path} has attn_implementation={kernel!r}: code of the Hub is not executed; remove it"
        )
    if find_adapter_config_file(str(path)) is not None:
        raise ValueError(f"{path} has an adapter_config.json: merge the adapter into its model, and open that")


@contextmanager
def _without_reports() -> Iterator[None]:
    """transformers logs a table of all weights that are missing or differ; here that is a one-line error."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:400]
