# SPDX-License-Identifier: Apache-2.0
"""Modes of a model that last as long as a block."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import PreTrainedModel


@contextmanager
def evaluation_mode(model: PreTrainedModel) -> Iterator[None]:
    """`model.eval()`, and the mode from before afterwards."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


@contextmanager
def eager_attention(model: PreTrainedModel) -> Iterator[None]:
    """The attention backend that alone returns the weights, and the model's own afterwards."""
    backend: Any = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(backend)
