# SPDX-License-Identifier: Apache-2.0
"""Sampled targets that depend on the seed and the line alone: not on the batch, its order, or the process.

Greedy search samples if Gumbel noise is added to its scores: the largest of scores + noise is a draw from their softmax
(Maddison et al. 2014, arXiv:1411.0030). So every `Decoder` samples, and models of other packages do. The noise is
numpy's Philox, a counter-based generator (Salmon et al. 2011): its key is the seed, its counter line, sample and step.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from vanilla_transformer.generation import ALPHA, length_penalty
from vanilla_transformer.inference.forced_decoding import real_tokens

LARGEST_SEED = 2**64 - 1  # a word of Philox's key


@dataclass(frozen=True)
class Sampling:
    """From which tokens to draw, by transformers' own warpers, in its order.

    Args:
        temperature: divisor of the logits.
        top_k: draw from this number of most probable tokens; `None`: from all.
        top_p: draw from the fewest tokens that have this probability together (Holtzman et al. 2020); `None`: from all.
        alpha: of the paper's length penalty, for the scores alone.

    Raises:
        ValueError: a value out of range.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 1
    alpha: float = ALPHA

    def __post_init__(self):
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature={self.temperature} must be greater than 0, and finite")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k={self.top_k} must be at least 1 token")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p} must be greater than 0 and at most 1")
        if not 0 <= self.seed <= LARGEST_SEED:
            raise ValueError(f"seed={self.seed} must be at least 0 and at most {LARGEST_SEED}")

    def warpers(self) -> LogitsProcessorList:
        warpers = LogitsProcessorList()
        if self.temperature != 1:
            warpers.append(TemperatureLogitsWarper(float(self.temperature)))
        if self.top_k is not None:
            warpers.append(TopKLogitsWarper(self.top_k))
        if self.top_p is not None:
            warpers.append(TopPLogitsWarper(float(self.top_p)))
        return warpers


def gumbel_noise(seed: int, line: int, sample: int, step: int, count: int) -> np.ndarray:
    """The noise of the first `count` tokens of the vocabulary, `(count)` in float64, finite."""
    key, counter = np.array([seed, 0], np.uint64), np.array([0, step, sample, line], np.uint64)
    words = np.random.Philox(key=key, counter=counter).random_raw(-(-count // 2)).view(np.uint32)[:count]
    return -np.log(-np.log((words + 0.5) * 2.0**-32))


class GumbelSampler(LogitsProcessor):
    """Turns the greedy search of one batch into sampling; the last of its processors.

    Args:
        rows: numbers of the line and of the sample for each row of the batch.
    """

    def __init__(self, sampling: Sampling, rows: Sequence[tuple[int, int]]):
        self.seed, self.alpha, self.warpers, self.rows = sampling.seed, sampling.alpha, sampling.warpers(), rows
        self.chosen: list[torch.Tensor] = []  # log-probability of each row's token at every step but the last
        self.log_probs: torch.Tensor | None = None  # of the last step, (rows, vocab_size)

    def __call__(self, input_ids: torch.LongTensor, scores: torch.Tensor) -> torch.Tensor:
        """`(rows, target_length)` and `(rows, vocab_size)` → `(rows, vocab_size)`, where the largest is the draw."""
        self._record(input_ids[:, -1])
        self.log_probs = scores.log_softmax(dim=-1, dtype=torch.float32)
        step, size = input_ids.shape[1], scores.shape[1]
        noise = np.stack([gumbel_noise(self.seed, line, sample, step, size) for line, sample in self.rows])
        return self.warpers(input_ids, scores.float()) + torch.from_numpy(noise).float().to(scores.device)

    def scores(self, sequences: torch.Tensor, eos_token_ids: torch.Tensor, pad_token_id: int) -> list[float]:
        """Log-probability by the model, before temperature, top-k and top-p, over the length penalty; called once.

        Args:
            sequences: the search's output, `(rows, target_length)`.
            eos_token_ids: `(eos_tokens)`.
        """
        self._record(sequences[:, -1])
        tokens = sequences[:, -len(self.chosen) :]  # without the prompt
        is_real = real_tokens(tokens, eos_token_ids, pad_token_id)
        totals = torch.stack(self.chosen, dim=1).masked_fill(~is_real, 0.0).sum(dim=1)
        return (totals / length_penalty(is_real.sum(dim=1), self.alpha)).tolist()

    def _record(self, tokens: torch.Tensor) -> None:
        if self.log_probs is not None:
            self.chosen.append(self.log_probs.gather(1, tokens[:, None])[:, 0])
