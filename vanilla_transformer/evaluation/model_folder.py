# SPDX-License-Identifier: Apache-2.0
"""Opening a model folder, with one clear line for each way in which a folder can be broken."""

from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoModelForSeq2SeqLM, PreTrainedModel

import vanilla_transformer  # noqa: F401 -- registers the models with the auto classes

WEIGHTS = ("model.safetensors", "model.safetensors.index.json")


def load_model_folder(path: str | Path, device: torch.device | None = None) -> PreTrainedModel:
    """`AutoModelForSeq2SeqLM.from_pretrained(path)` for a local folder or a Hub id, in evaluation mode.

    Args:
        device: where the model is put; `None`: it stays on the CPU.

    Raises:
        FileNotFoundError: a local folder without config.json or weights.
        ValueError: weights that are truncated, or that do not fit config.json.
    """
    folder = Path(path)
    if folder.exists() or folder.is_absolute() or str(path).startswith("."):
        _check_folder(folder)
    try:
        model, report = AutoModelForSeq2SeqLM.from_pretrained(path, output_loading_info=True)
    except SafetensorError as error:
        raise ValueError(f"the weights in {path} are damaged (truncated download or copy?): {error}") from error
    except StrictDataclassError as error:
        raise ValueError(f"config.json in {path} is no configuration of a model: {_one_line(error)}") from error
    except RuntimeError as error:  # shapes that differ from the configuration's
        raise ValueError(f"the weights in {path} do not fit its config.json: {_one_line(error)}") from error
    except OSError as error:
        raise FileNotFoundError(f"cannot open the model {path}: {_one_line(error)}") from error
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
    if not any((folder / name).is_file() for name in WEIGHTS):
        raise FileNotFoundError(f"{folder} has no weights: expected {WEIGHTS[0]} (or {WEIGHTS[1]} and its shards)")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:400]
