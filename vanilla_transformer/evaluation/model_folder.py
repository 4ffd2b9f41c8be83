# SPDX-License-Identifier: Apache-2.0
"""Opening a model folder, with one clear line for each way in which a folder can be broken."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    AutoModelForSeq2SeqLM,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils import logging

import vanilla_transformer  # noqa: F401 -- registers the models with the auto classes

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def load_model_folder(path: str | Path, device: torch.device | None = None) -> PreTrainedModel:
    """`AutoModelForSeq2SeqLM.from_pretrained(path)` for a local folder or a Hub id, in evaluation mode.

    Code in the folder is not executed; this package's is.

    Args:
        device: where the model is put; `None`: it stays on the CPU.

    Raises:
        FileNotFoundError: no such folder or Hub id, or one without config.json or weights.
        ValueError: no encoder-decoder; weights that are truncated, or that do not fit config.json.
    """
    folder = Path(path)
    if folder.exists() or folder.is_absolute() or str(path).startswith("."):
        _check_folder(folder)
    try:
        _check_kind(path)
        with _without_reports():
            model, report = AutoModelForSeq2SeqLM.from_pretrained(
                path, output_loading_info=True, ignore_mismatched_sizes=True, trust_remote_code=False
            )
    except SafetensorError as error:
        raise ValueError(f"the weights in {path} are damaged (truncated download or copy?): {error}") from error
    except StrictDataclassError as error:
        raise ValueError(f"config.json in {path} is no configuration of a model: {_one_line(error)}") from error
    except (json.JSONDecodeError, KeyError) as error:
        raise ValueError(f"a json file in {path} is damaged: {_one_line(error)}") from error
    except OSError as error:
        raise FileNotFoundError(f"cannot open the model {path}: {_one_line(error)}") from error
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


def default_device() -> torch.device:
    """The accelerator that torch finds (cuda, mps, …), or the CPU."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise FileNotFoundError(f"model folder {folder} does not exist")
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} is not a model folder: it has no config.json")
    if (folder / WEIGHTS).is_file():
        return
    if not (folder / INDEX).is_file():
        raise FileNotFoundError(f"{folder} has no weights: expected {WEIGHTS} (or {INDEX} and its shards)")
    for name in _shards(folder / INDEX):
        if Path(name).name != name:
            raise ValueError(f"{folder / INDEX} names {name!r}, which is not a file of the folder")
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} lacks {name}, which {INDEX} names")


def _shards(index: Path) -> list[str]:
    try:
        return sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} is damaged: it has no readable weight_map") from error


def _check_kind(path: str | Path) -> None:
    """transformers would offer to run the folder's code for a model_type that it does not know."""
    model_type = PreTrainedConfig.get_config_dict(path)[0].get("model_type")
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        raise ValueError(f"config.json in {path} has model_type={model_type!r}, which transformers does not know")
    if CONFIG_MAPPING[model_type] not in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING:
        raise ValueError(f"config.json in {path} has model_type={model_type!r}, which is no encoder-decoder")


@contextmanager
def _without_reports() -> Iterator[None]:
    """transformers logs a table of all weights that are missing or differ; here that is an error in one line."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:400]
