# SPDX-License-Identifier: Apache-2.0
"""The machine that is measured: its hardware, its precisions, its packages, and the order of imports."""

import os
import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from vanilla_transformer.inference.native.compiler import cpu_features

# Instructions for matrix products, on x86 and Arm.
FLAGS = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "asimd", "bf16", "i8mm")
BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}
PACKAGES = ("torch", "transformers", "ctranslate2", "x-transformers", "vanilla-transformer")


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Processors, their instructions for matrix products, threads, and versions of packages (`None`: missing)."""
    arithmetic = f"float32 products {'by' if torch.backends.cuda.matmul.allow_tf32 else 'without'} TF32"
    return {
        "device": f"{torch.cuda.get_device_name(device)}, {arithmetic}" if device.type == "cuda" else device.type,
        "cpu": _cpu_info().get("model name") or platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "flags": [flag for flag in FLAGS if flag in cpu_flags()],
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:  # a checkout on the PYTHONPATH is not installed
        return None


def cpu_flags() -> set[str]:
    """The processor's instructions, by their names in Linux; empty on other systems."""
    info = _cpu_info()
    return set((info.get("flags") or info.get("Features") or "").split())


def _cpu_info() -> dict[str, str]:
    pairs = (line.partition(":") for line in cpu_features().splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def lacks_precision(precision: str, device: torch.device) -> str | None:
    """Why a device does not compute in a precision; `None`: it does."""
    if precision == "int8" and device.type != "cpu":
        return f"int8 computes on a CPU, and the device is {device}"
    if precision == "bfloat16" and device.type == "cpu" and not cpu_flags() & BFLOAT16_FLAGS:
        return f"this CPU has no bfloat16 instructions ({', '.join(sorted(BFLOAT16_FLAGS))})"
    return None


def check_import_order(modules: Iterable[str]) -> None:
    """Raise RuntimeError if torch was imported before CTranslate2.

    Both would share torch's libgomp, whose barriers yield the processor once there are more OpenMP threads in the
    process than cores: both become several times slower. `modules` are in the order of their import, as `sys.modules`.
    """
    order = list(modules)
    if "ctranslate2._ext" not in order or order.index("torch") < order.index("ctranslate2._ext"):
        raise RuntimeError(
            "torch was imported before ctranslate2, which makes both slow in one process: run scripts/benchmark.py, "
            "or import ctranslate2 first"
        )
