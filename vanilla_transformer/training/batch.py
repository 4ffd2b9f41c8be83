# SPDX-License-Identifier: Apache-2.0
"""Micro-batches: pairs as padded tensors, and the counts of their tokens, which are known before they travel."""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from vanilla_transformer.data.tokenized_pairs import LINKS
from vanilla_transformer.loss import IGNORE_INDEX

BATCHES_AHEAD = 4  # prepared while the device computes: enough for a long batch after several short ones


class Batch(dict[str, torch.Tensor]):
    """The model's inputs `input_ids` and `attention_mask` `(batch, source_length)`, `labels` `(batch, target_length)`.

    With guided alignment also `links` `(batch, target_length, source_length)`: for each target token, 1 divided among
    the source tokens that it is linked to; all 0 without a link.

    Args:
        tensors: on the CPU, where counting them waits for no device.
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor]):
        super().__init__(tensors)
        self.source_tokens = int(np.count_nonzero(self["attention_mask"].numpy()))
        self.target_tokens = int(np.count_nonzero(self["labels"].numpy() != IGNORE_INDEX))

    def positions(self) -> int:
        """Source and target positions, padding included: what the batch's activations take memory for."""
        return self["input_ids"].numel() + self["labels"].numel()

    def is_padded(self) -> bool:
        return self.source_tokens + self.target_tokens < self.positions()

    def split(self, pairs: int) -> list["Batch"]:
        """The first `pairs` pairs, and the others; nothing is left out, and no part is empty."""
        parts = (slice(0, pairs), slice(pairs, None)) if 0 < pairs < len(self["labels"]) else (slice(None),)
        return [Batch({name: tensor[rows] for name, tensor in self.items()}) for rows in parts]

    def halves(self) -> list["Batch"]:
        return self.split(len(self["labels"]) // 2)


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A copy that the host does not wait for: a GPU reads pinned memory by itself."""
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def collate(rows: Sequence[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase) -> Batch:
    """Pad pairs with `input_ids` and `labels` as transformers' DataCollatorForSeq2Seq does, in half its time."""
    tensors, first = {}, {}
    for name, padding in (("input_ids", tokenizer.pad_token_id), ("labels", IGNORE_INDEX)):
        lengths = np.array([[len(row[name])] for row in rows])  # (batch, 1)
        columns = np.arange(lengths.max())
        is_real = columns < lengths if tokenizer.padding_side == "right" else columns >= lengths.max() - lengths
        padded = np.full(is_real.shape, padding, dtype=np.int64)
        padded[is_real] = np.concatenate([row[name] for row in rows])
        tensors[name] = torch.from_numpy(padded)
        first[name] = is_real.argmax(axis=1)  # (batch), the column of each pair's first token
        if name == "input_ids":
            tensors["attention_mask"] = torch.from_numpy(is_real.astype(np.int64))
    if LINKS in rows[0]:
        links = torch.zeros(len(rows), tensors["labels"].shape[1], tensors["input_ids"].shape[1])
        for i, row in enumerate(rows):
            source, target = np.asarray(row[LINKS], dtype=np.int64).reshape(-1, 2).T
            links[i, target + first["labels"][i], source + first["input_ids"][i]] = 1
        tensors[LINKS] = links / links.sum(dim=-1, keepdim=True).clamp(min=1)
    return Batch(tensors)


class PreparedAhead:
    """The batches of a loader in its order, read by a thread while the device computes.

    A thread and not a process: a stream counts its dropped pairs, and the run reports them; and a batch need not be
    copied between processes. The loader draws from its own generator and leaves the run's alone.

    Args:
        loader: can be iterated over once an epoch.
    """

    def __init__(self, loader: Iterable[Batch]):
        self.loader = loader
        self.seconds_waited = 0.0  # for batches that were not there yet

    def __iter__(self) -> Iterator[Batch]:
        """An error of the loader comes where its batch would have come."""
        batches = iter(self.loader)
        thread = ThreadPoolExecutor(1, thread_name_prefix="batches")
        try:
            ahead = [thread.submit(next, batches, None) for _ in range(BATCHES_AHEAD)]
            while True:
                start = time.perf_counter()
                batch = ahead.pop(0).result()
                self.seconds_waited += time.perf_counter() - start
                if batch is None:
                    return
                ahead.append(thread.submit(next, batches, None))
                yield batch
        finally:
            thread.shutdown(cancel_futures=True)
