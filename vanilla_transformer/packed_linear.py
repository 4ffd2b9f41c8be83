# SPDX-License-Identifier: Apache-2.0
"""Linear maps laid out for decoding, where few rows meet large matrices: reading the weights bounds the speed."""

import copy
from collections.abc import Sequence
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import nn

from .linear import linear_in_blocks

Precision = Literal["float32", "bfloat16", "int8"]
PRECISIONS = get_args(Precision)
# From this size on oneDNN's own layout is faster than a plain product for several rows (4 rows, weights larger than any
# cache: 1.5 to 3 times); below it the 25 microseconds of the call cost more than the layout saves.
ONEDNN_MIN_SIZE = 2**17  # elements
# Rows that oneDNN lays the weights out for: a layout for 1 is slow for more, this one is fast for 2 to hundreds.
ONEDNN_ROWS = 4
INT8_LEVELS = 127
Module = TypeVar("Module", bound=nn.Module)


def onednn_has(dtype: torch.dtype) -> bool:
    """Whether this machine's oneDNN computes in `dtype`; in bfloat16 only where the CPU has instructions for it."""
    if not torch.backends.mkldnn.is_available():
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def int8_scales(weight: torch.Tensor) -> torch.Tensor:
    """The scale of each row of a weight `(outputs, inputs)`, so that its largest element is level 127: `(outputs)`."""
    return (weight.float().abs().amax(dim=1) / INT8_LEVELS).clamp(min=1e-12)


def fused_projections(attention: Any, names: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Several projections of a `MultiHeadAttention` stacked into one, with 1 / sqrt(d_k) folded into the query's.

    Args:
        names: "q_proj", "k_proj", "v_proj", or some of them, in the order of the stacked outputs.

    Returns:
        The weight `(outputs, d_model)` and the bias `(outputs)`, or `None` without biases.
    """
    scaled = [(getattr(attention, name), attention.scaling if name == "q_proj" else 1.0) for name in names]
    biases = [linear.bias * scale for linear, scale in scaled if linear.bias is not None]
    return torch.cat([linear.weight * scale for linear, scale in scaled]), torch.cat(biases) if biases else None


class PackedLinear(nn.Module):
    """x W^T + b with W in the layout that the machine multiplies fastest; for inference, and not to be saved.

    float32 and bfloat16 on a CPU: oneDNN's blocked layout for large matrices, the transpose for small ones. int8 on a
    CPU: a scale for each row of W; a scale and an offset for each row of x, computed at each call. A row's result is
    therefore bitwise the same whatever other rows are in the batch.

    Args:
        weight: `(outputs, inputs)`.
        bias: `(outputs)`.
        precision: "int8", or "float32" or "bfloat16", which leave the weight's own dtype as it is.
        relu: max(0, x W^T + b).

    Raises:
        ValueError: int8 elsewhere than on a CPU.
    """

    def __init__(
        self, weight: torch.Tensor, bias: torch.Tensor | None, precision: Precision = "float32", relu: bool = False
    ):
        super().__init__()
        # Plain attributes: nothing here is a parameter.
        self.weight, self.bias = weight.detach(), None if bias is None else bias.detach()
        self.outputs, self.relu = weight.shape[0], relu
        # Layouts, made where they are first needed: each is another copy of the weights.
        self.packed: Any = None  # oneDNN's or FBGEMM's own
        self.transposed: torch.Tensor | None = None  # (inputs, outputs)
        self.blocks: torch.Tensor | None = None  # (threads, inputs, outputs / threads)
        on_cpu = weight.device.type == "cpu"
        # In bfloat16 a CPU's plain products are slow, whatever the size.
        is_large = weight.numel() >= ONEDNN_MIN_SIZE or weight.dtype == torch.bfloat16
        if precision == "int8":
            if not on_cpu:
                raise ValueError(f"precision='int8' computes on a CPU; the model is on {weight.device}: use bfloat16")
            zeros = torch.zeros(self.outputs, dtype=torch.long)
            quantized = torch.quantize_per_channel(self.weight.float(), int8_scales(weight), zeros, 0, torch.qint8)
            self.packed = torch.ops.quantized.linear_prepack(quantized, None)
            self.row_sums = quantized.dequantize().sum(dim=1)  # (outputs), the product with a row of ones
            self.weight = None
            self.multiply = self.multiply_row = self._int8
        elif on_cpu and is_large and onednn_has(weight.dtype):
            self.multiply = self._onednn
            self.multiply_row = self._onednn if weight.dtype == torch.bfloat16 else self._in_blocks
        else:
            self.multiply = self._plain
            self.multiply_row = self._in_blocks if on_cpu else self._plain

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """`(…, inputs)` → `(…, outputs)`."""
        return self.multiply(inputs)

    def gemv(self, inputs: torch.Tensor) -> torch.Tensor:
        """`forward` for a single row, `(1, …, inputs)`, call after call, which another layout does faster."""
        return self.multiply_row(inputs)

    def _int8(self, inputs: torch.Tensor) -> torch.Tensor:
        """torch's dynamic quantisation takes one range for all rows, so each row is first mapped to [0, 1].

        With x = offset + span x', W x = span W x' + offset W 1. Each row of x' has minimum 0 and maximum 1, or is all
        0: torch finds the same range for any rows.
        """
        offset = inputs.amin(dim=-1, keepdim=True)  # (…, 1)
        scaled = inputs - offset
        span = scaled.amax(dim=-1, keepdim=True).clamp_min_(torch.finfo(inputs.dtype).tiny)
        scaled.div_(span)
        # True: one bit less, or AVX2 and AVX512 without VNNI overflow.
        product = torch.ops.quantized.linear_dynamic(scaled, self.packed, True)
        result = self.row_sums * offset if self.bias is None else torch.addcmul(self.bias, self.row_sums, offset)
        result.addcmul_(product, span)
        return result.relu_() if self.relu else result

    def __getstate__(self) -> dict[str, Any]:
        """Leaves out the layouts that the weight gives again: oneDNN's cannot be serialized."""
        state = self.__dict__ | {"transposed": None, "blocks": None}
        return state if self.weight is None else state | {"packed": None}

    def _onednn(self, inputs: torch.Tensor) -> torch.Tensor:
        if self.packed is None:
            assert self.weight is not None
            self.packed = torch.ops.mkldnn._reorder_linear_weight(self.weight.contiguous(), ONEDNN_ROWS)
        operation = "relu" if self.relu else "none"
        return torch.ops.mkldnn._linear_pointwise(inputs, self.packed, self.bias, operation, [], "")

    def _plain(self, inputs: torch.Tensor) -> torch.Tensor:
        if self.transposed is None:
            assert self.weight is not None
            self.transposed = self.weight.t().contiguous()
        flat, matrix, bias = inputs.reshape(-1, inputs.shape[-1]), self.transposed, self.bias
        product = torch.mm(flat, matrix) if bias is None else torch.addmm(bias, flat, matrix)
        product = product.view(*inputs.shape[:-1], self.outputs)
        return product.relu_() if self.relu else product

    def _in_blocks(self, inputs: torch.Tensor) -> torch.Tensor:
        """A block of outputs for each thread: MKL would compute a product of one row on one thread."""
        if self.blocks is None:
            assert self.weight is not None
            threads = torch.get_num_threads() if self.outputs % torch.get_num_threads() == 0 else 1
            self.blocks = self.weight.unflatten(0, (threads, -1)).transpose(1, 2).contiguous()
        product = linear_in_blocks(inputs, self.blocks, self.bias)
        return product.relu_() if self.relu else product


def quantized_linears(module: Module) -> Module:
    """A copy of `module` for inference with an int8 `PackedLinear` for every `nn.Linear`; it cannot be saved.

    The copy shares all other parameters with `module`.

    Raises:
        ValueError: elsewhere than on a CPU.
    """
    copied = copy.deepcopy(module, {id(parameter): parameter for parameter in module.parameters()}).eval()
    for parent in list(copied.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.Linear):
                setattr(parent, name, PackedLinear(child.weight, child.bias, "int8"))
    return copied
