# SPDX-License-Identifier: Apache-2.0
"""Section 5.4 of the paper: dropout, with random numbers that a CPU draws quickly."""

import torch
from torch import nn


class Dropout(nn.Dropout):
    """`nn.Dropout`, whose mask on a CPU comes from 16 random bits an element.

    torch draws a double for each element on a CPU (`bernoulli_`): a sixth of a whole training step at small
    widths. Here one 64-bit number serves four elements; the rate is exact to 2^-16 and the scale is that of the
    rate in force, so the expectation is exact. On other devices it is torch's own fused kernel.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Any shape; the same shape."""
        if not self.training:
            return input
        if self.p == 0 or input.device.type != "cpu":
            return super().forward(input)
        levels = min(round(self.p * 2**16), 2**16 - 1)  # of 2^16 equally likely values, how many drop the element
        words = torch.empty((input.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
        bits = words.view(torch.int16)[: input.numel()].view(input.shape)  # uniform on -2^15 … 2^15 - 1
        mask = (bits >= levels - 2**15).to(input.dtype).mul_(2**16 / (2**16 - levels))
        return input * mask
