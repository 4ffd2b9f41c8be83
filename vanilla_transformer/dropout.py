# SPDX-License-Identifier: Apache-2.0
"""Section 5.4 of the paper: dropout, with random numbers that a CPU draws quickly."""

import torch
from torch import nn


class Dropout(nn.Dropout):
    """`nn.Dropout`, whose mask on a CPU comes from 16 random bits per element.

    On a CPU torch draws a double for each element (`bernoulli_`), a sixth of a training step at small widths. Here one
    64-bit number serves four elements. The rate is exact to 2^-16, and the scale is that of the rate in force, so the
    expectation is exact. Other devices and compiled graphs use torch's own kernel.
    """

    def __call__(self, input: torch.Tensor) -> torch.Tensor:
        """In evaluation mode the input itself, without the cost of a module's call: 3% of a decoding step."""
        return super().__call__(input) if self.training else input

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Any shape; the same shape."""
        kept = self._kept(input)
        return super().forward(input) if kept is None else _MaskedSum.apply(None, input, *kept)  # pyright: ignore[reportReturnType] -- apply is untyped in torch

    def add(self, residual: torch.Tensor, input: torch.Tensor) -> torch.Tensor:
        """`residual + dropout(input)`, on a CPU in one pass over memory instead of two."""
        kept = self._kept(input)
        return residual + self(input) if kept is None else _MaskedSum.apply(residual, input, *kept)  # pyright: ignore[reportReturnType] -- as above

    def _kept(self, input: torch.Tensor) -> tuple[torch.Tensor, float] | None:
        """0 or 1 for each element, and the scale; `None` where torch's own dropout serves, or nothing is dropped."""
        if not self.training or self.p == 0 or input.device.type != "cpu" or torch.compiler.is_compiling():
            return None
        dropped = min(round(self.p * 2**16), 2**16 - 1)  # how many of the 2^16 values drop their element
        words = torch.empty((input.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
        bits = words.view(torch.int16)[: input.numel()].view(input.shape)  # uniform on -2^15 … 2^15 - 1
        # In place, where `>=` writes integers of the width that it reads: ten times as fast as through booleans.
        return bits.ge_(dropped - 2**15), 2**16 / (2**16 - dropped)


class _MaskedSum(torch.autograd.Function):
    """`input * mask`, and the residual if there is one. Saves a byte for each element, a quarter of a float32 mask."""

    @staticmethod
    def forward(ctx, residual, input, kept, scale):
        ctx.save_for_backward(kept.to(torch.uint8))
        ctx.scale, ctx.dtype, ctx.residual_dtype = scale, input.dtype, None if residual is None else residual.dtype
        mask = kept.to(input.dtype).mul_(scale)
        return input * mask if residual is None else torch.addcmul(residual, input, mask)

    @staticmethod
    def backward(ctx, *grad_outputs):
        (kept,), grad = ctx.saved_tensors, grad_outputs[0]
        grad_input = (grad * kept.to(ctx.dtype).mul_(ctx.scale)).to(ctx.dtype)
        return None if ctx.residual_dtype is None else grad.to(ctx.residual_dtype), grad_input, None, None
