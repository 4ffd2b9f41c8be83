# SPDX-License-Identifier: Apache-2.0
"""Which operators MPS has, by the table from which the installed torch was built.

torch ships this table, native_functions.yaml, in its package torchgen, on every platform. It names the kernel of each
operator for each device. Where it names a composite kernel, this kernel calls other operators: `CALLS` has those of
the composite kernels that the models need, read in torch 2.13's ATen and seen in its profiler, in November 2026.
"""

from functools import cache
from pathlib import Path
from typing import Any

import torchgen
import yaml

TABLE = Path(torchgen.__file__).parent / "packaged" / "ATen" / "native" / "native_functions.yaml"

VIEWS = "alias detach expand lift_fresh select slice split split_with_sizes squeeze t transpose transpose_ unbind"
CALLS: dict[str, str] = dict.fromkeys(f"{VIEWS} unsqueeze _unsafe_view unsafe_split".split(), "as_strided")
CALLS |= dict.fromkeys(["empty_like", "new_empty", "new_empty_strided"], "empty.memory_format empty_strided")
CALLS |= dict.fromkeys(["zeros", "zeros_like", "new_zeros"], "empty.memory_format zero_")
CALLS |= dict.fromkeys(
    ["ones", "ones_like", "new_ones", "full", "full_like", "new_full", "scalar_tensor"], "fill_.Scalar"
)
CALLS |= {
    "_foreach_add_": "add_.Tensor",
    "_foreach_lerp_": "lerp_.Tensor",
    "_foreach_mul_": "mul_.Tensor",
    "_foreach_norm": "linalg_vector_norm",
    "_foreach_sub_": "sub_.Tensor",
    "_pack_padded_sequence": "as_strided cat",
    "_safe_softmax": "_softmax isneginf all.dim where.self",
    "_to_copy": "empty_strided _copy_from",
    "abs": "abs.out",
    "arange": "arange.start_out",
    "clone": "empty_strided _copy_from",
    "copy_": "_copy_from",
    "div_": "div.Tensor",
    "embedding": "index_select",
    "index_put_": "_index_put_impl_",
    "logspace": "logspace.out",
    "masked_fill": "masked_fill_.Scalar masked_fill_.Tensor",
    "mul": "mul.Tensor",
    "mv": "addmv.out",
    "remainder": "remainder.Tensor",
    "rsub": "sub.Tensor",
    "select_backward": "zero_ as_strided _copy_from",
    "slice_backward": "zero_ as_strided _copy_from",
    "sort": "sort.values_stable",
    "stack": "cat",
    "sum": "sum.IntList_out",
}
# Attention and normalisation on a CPU have kernels of their own. These take their place on MPS.
ON_MPS: dict[str, str] = {
    "_scaled_dot_product_flash_attention_for_cpu": "_scaled_dot_product_attention_math_for_mps",
    "_scaled_dot_product_flash_attention_for_cpu_backward": "_scaled_dot_product_attention_math_for_mps",
}


@cache
def _table() -> dict[str, dict[str, Any]]:
    entries = yaml.load(TABLE.read_text("utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return {entry["func"].partition("(")[0]: entry for entry in entries}


def _kernels(name: str) -> set[str]:
    """The devices, or kinds of composite kernel, for which the table names a kernel; with those of its `out` form."""
    entry = _table()[name]
    kernels = {key for keys in entry.get("dispatch", {}) for key in keys.split(", ")}
    if "structured_delegate" in entry:
        kernels |= _kernels(entry["structured_delegate"])
    return kernels


def lack_on_mps(name: str) -> str | None:
    """What MPS lacks to compute the operator `name`, such as "add.Tensor"; `None`: nothing."""
    name = ON_MPS.get(name, name)
    kernels, called = _kernels(name), CALLS.get(name.partition(".")[0])
    if "MPS" in kernels:
        return None
    if called is None or not any(kernel.startswith("CompositeExplicitAutograd") for kernel in kernels):
        return name
    missing = [callee for callee in called.split() if "MPS" not in _kernels(callee)]
    return f"{name} (it calls {', '.join(missing)})" if missing else None
