# SPDX-License-Identifier: Apache-2.0
"""Samples of a model for lines of text."""

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from vanilla_transformer.inference.sampling import GumbelSampler, Sampling
from vanilla_transformer.inference.translate import Translation, translate_lines


def sample_lines(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    lines: Sequence[str],
    *,
    sampling: Sampling,
    count: int,
    first_line: int = 1,
    **options,
) -> list[list[Translation]]:
    """For each line, in order, `count` samples; `options` and errors as for `translate_lines`.

    A sample depends on the seed, the number of its line and its own number: not on the batch or the threads.
    """
    own: dict[str, Any] = options | {"first_line": first_line, "at_once": 1, "num_beams": 1}
    drawn = [
        translate_lines(
            model,
            tokenizer,
            lines,
            new_sampler=lambda places, number=number: GumbelSampler(
                sampling, [(first_line + place, number) for place in places]
            ),
            **own,
        )
        for number in range(count)
    ]
    return [[translation for [translation] in of_line] for of_line in zip(*drawn, strict=True)]
