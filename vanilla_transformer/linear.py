# SPDX-License-Identifier: Apache-2.0
"""Linear maps that are fast where few rows meet a large matrix, as in decoding, and where several read one input."""

from collections.abc import Sequence

import torch
from torch import nn

MAX_ROWS = 128  # with more rows a single product is as fast
MIN_ELEMENTS = 2**20  # with a smaller matrix the extra calls cost more than they save


def linear_in_blocks(input: torch.Tensor, blocks: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """x W^T + b with W^T in blocks, `(threads, in_features, block)`: `(…, in_features)` → `(…, out_features)`."""
    threads, in_features, _ = blocks.shape
    inputs = input.reshape(1, -1, in_features).expand(threads, -1, -1)  # (threads, rows, in_features)
    # (threads, rows, block)
    product = torch.bmm(inputs, blocks) if bias is None else torch.baddbmm(bias.view(threads, 1, -1), inputs, blocks)
    return product.transpose(0, 1).reshape(*input.shape[:-1], -1)


class Linear(nn.Linear):
    """`nn.Linear` that splits its outputs into one block per CPU thread where no gradient is needed.

    MKL computes the product of one row in a single thread, and splits the product of a few rows badly: with 512 inputs
    and 37,000 outputs, two threads take 6.5 ms for one row and 15.4 ms for four; in two blocks 3.8 ms and 9.4 ms.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """`(…, in_features)` → `(…, out_features)`."""
        if self.in_features * self.out_features < MIN_ELEMENTS or not self._is_faster_in_blocks(input):
            return nn.functional.linear(input, self.weight, self.bias)
        blocks = self.weight.unflatten(0, (torch.get_num_threads(), -1)).transpose(1, 2)
        return linear_in_blocks(input, blocks, self.bias)

    def _is_faster_in_blocks(self, input: torch.Tensor) -> bool:
        # Sharded weights and compiled code split the product by themselves.
        if torch.compiler.is_compiling() or torch.is_grad_enabled() or type(self.weight) is not nn.Parameter:
            return False
        threads = torch.get_num_threads()
        has_few_rows = input.numel() <= MAX_ROWS * self.in_features
        is_divisible = threads > 1 and self.out_features % threads == 0
        return has_few_rows and is_divisible and input.device.type == "cpu" and input.dtype == torch.float32


def joint_linear(input: torch.Tensor, layers: Sequence[nn.Module]) -> Sequence[torch.Tensor]:
    """Each layer's output for the same `input` `(…, in_features)`; while gradients are needed, in a single product.

    One large product is faster than several small ones, forwards and backwards, and its gradient for `input` needs no
    sum. Layers with adapters, hooks or sharded weights compute by themselves.
    """
    if not torch.is_grad_enabled() or not all(map(_is_plain, layers)):
        return [layer(input) for layer in layers]
    linears = [layer for layer in layers if isinstance(layer, Linear)]
    biases: list[torch.Tensor] = [linear.bias for linear in linears if linear.bias is not None]
    weights: list[torch.Tensor] = [linear.weight for linear in linears]
    weight = torch.cat(weights)  # (all out_features, in_features)
    output = nn.functional.linear(input, weight, torch.cat(biases) if biases else None)
    return output.split([linear.out_features for linear in linears], dim=-1)


def _is_plain(layer: nn.Module) -> bool:
    hooks = layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks
    is_own = type(layer) is Linear and type(layer.weight) is nn.Parameter and "forward" not in vars(layer)
    return is_own and not hooks
