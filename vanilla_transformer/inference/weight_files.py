# SPDX-License-Identifier: Apache-2.0
"""Names of weight files, and of files that cannot be opened without unpickling."""

from pathlib import PurePath

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLE_SUFFIXES = {".bin", ".ckpt", ".dill", ".joblib", ".npy", ".npz", ".p", ".pickle", ".pkl", ".pt", ".pth"}


def is_pickle_name(name: str | PurePath) -> bool:
    """Whether a file of this name would be unpickled when opened, which can run any code."""
    return PurePath(name).suffix.lower() in PICKLE_SUFFIXES
