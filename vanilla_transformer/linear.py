# SPDX-License-Identifier: Apache-2.0
"""Linear maps that are quick where few rows meet a large matrix, as at every step of decoding."""

import torch
from torch import nn

FEW = 128  # rows: from here on a single product is as fast
LARGE = 2**20  # elements: below, the further calls cost more than they save


class Linear(nn.Linear):
    """`nn.Linear`, of which each thread of a CPU computes a block of the outputs where no gradient is asked for.

    MKL leaves one row by a matrix to a single thread, and cuts a product of a few rows badly: with 37,000 outputs of
    512 inputs, two threads take 6.5 ms for one row and 15.4 for four in one product, 3.8 and 9.4 in two.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """`(…, in_features)` → `(…, out_features)`."""
        if self.in_features * self.out_features < LARGE or not self._gains(input):
            return nn.functional.linear(input, self.weight, self.bias)
        rows, threads = input.numel() // self.in_features, torch.get_num_threads()
        rows_of_all = input.reshape(1, rows, -1).expand(threads, -1, -1)  # (threads, rows, in_features)
        blocks = self.weight.unflatten(0, (threads, -1)).transpose(1, 2)  # (threads, in_features, block)
        if self.bias is None:
            product = torch.bmm(rows_of_all, blocks)  # (threads, rows, block)
        else:
            product = torch.baddbmm(self.bias.view(threads, 1, -1), rows_of_all, blocks)
        return product.transpose(0, 1).reshape(*input.shape[:-1], self.out_features)

    def _gains(self, input: torch.Tensor) -> bool:
        """Whether blocks are faster; not for shards and what is compiled, which have their own ways."""
        if torch.compiler.is_compiling() or torch.is_grad_enabled() or type(self.weight) is not nn.Parameter:
            return False
        threads = torch.get_num_threads()
        is_few = input.numel() <= FEW * self.in_features and threads > 1 and self.out_features % threads == 0
        return is_few and input.device.type == "cpu" and input.dtype == torch.float32
