# SPDX-License-Identifier: Apache-2.0
"""Several steps in one call of the native engine, against single steps and PyTorch's engine."""

from typing import Any

import pytest
import torch

from tests.families import FAMILIES
from tests.inference.native.test_transformer import sources
from vanilla_transformer.generation import beam_search
from vanilla_transformer.inference.native.engine import native_decoder
from vanilla_transformer.search import BeamSearchConfig, greedy_search

BOTH = pytest.mark.parametrize("build", [FAMILIES[0].model, FAMILIES[1].model], ids=["Transformer", "RNN"])


class Recorded:
    """A state without `select`, as another engine may have it, and the `max_steps` of each call."""

    def __init__(self, state: Any):
        self.state, self.max_steps = state, []
        self.attention: torch.Tensor | None = None
        self.reorder = state.reorder

    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.state(tokens)

    def topk_steps(self, *arguments: Any) -> Any:
        self.max_steps.append(arguments[-1])
        return self.state.topk_steps(*arguments)


class RecordedAndSelected(Recorded):
    def select(self, batch_indices: torch.Tensor) -> None:
        self.state.select(batch_indices)


@BOTH
@pytest.mark.parametrize("beams", [1, 4])
@pytest.mark.parametrize("length", [5, 40])  # a call for all; more than a block of the cache holds
def test_several_steps_in_a_call_choose_as_single_steps_do(build, beams, length):
    decoder = native_decoder(build(), "float32", "native")
    assert decoder is not None
    encoded, eos = decoder.encode(*sources(3)), torch.tensor([], dtype=torch.long)

    def search(max_steps: int) -> tuple[torch.Tensor, torch.Tensor | None, int]:
        """The targets, the attention of their last token, and the number of calls."""
        state, calls = decoder.begin(encoded, None, length, beams, output_attentions=True), 0
        targets, totals = torch.full((3, 1, 1), 3), None if beams == 1 else torch.zeros(3, 1)
        while (left := length + 1 - targets.shape[2]) > 0:
            steps = min(max_steps, left)
            scores, parents, tokens, prefixes = state.topk_steps(targets[:, :, -1], totals, beams, eos, steps)
            if prefixes is not None:
                targets = torch.cat([targets.take_along_dim(prefixes[:, :, :1], dim=1), prefixes[:, :, 1:]], dim=2)
            targets = torch.cat([targets.take_along_dim(parents[:, :, None], dim=1), tokens[:, :, None]], dim=2)
            totals, calls = None if beams == 1 else scores, calls + 1
            state.reorder(parents)
        return targets, state.attention, calls

    (expected, attention, single_calls), (found, own_attention, calls) = search(1), search(7)
    assert torch.equal(found, expected)
    torch.testing.assert_close(own_attention, attention)
    assert single_calls == length
    assert calls <= length // 4


@BOTH
def test_a_step_with_fewer_candidates_than_asked_for_is_the_last_of_its_call(build):
    """20 beams need 40 candidates, for each may end; the first step of a vocabulary of 31 tokens has 31."""
    decoder = native_decoder(build(), "float32", "native")
    assert decoder is not None
    encoded, tokens = decoder.encode(*sources(1)), torch.tensor([[3]])
    least = decoder.begin(encoded, None, 9, 1)(tokens).argmin(dim=1)  # as EOS it is not among the best 20
    scores, _, _, prefixes = decoder.begin(encoded, None, 9, 20).topk_steps(tokens, torch.zeros(1, 1), 20, least, 5)
    assert scores.shape == (1, 31)
    assert prefixes is None


@BOTH
@pytest.mark.parametrize("beams", [1, 4])
@pytest.mark.parametrize("prompt_length", [1, 3])
def test_hypotheses_that_end_within_a_call(build, beams, prompt_length):
    """Ends of several kinds, and limits of 5 and 9 source tokens plus 30."""
    model, (ids, mask) = build(), sources(12)
    model.generation_config.max_tokens_beyond_source = 30
    prompt = torch.randint(3, 31, (12, prompt_length))
    options = {"custom_generate": beam_search, "num_beams": beams, "alpha": 0.6, "eos_token_id": [2, 5, 9]}
    options |= {"attention_mask": mask, "decoder_input_ids": prompt}
    expected = model.generate(ids, **options)
    found = model.generate(ids, **options, decoder=native_decoder(model, "float32", "native"))
    assert torch.equal(found, expected)
    lengths = (expected != 0).sum(dim=1)
    assert len(lengths.unique()) > 1


def greedy(build, wrapper: type[Recorded], max_lengths: list[int], eos: list[int]) -> tuple[torch.Tensor, list[int]]:
    """The targets, and the `max_steps` of each call."""
    torch.manual_seed(1)
    decoder = native_decoder(build(), "float32", "native")
    assert decoder is not None
    count, config = len(max_lengths), BeamSearchConfig(1, 1, lambda length: length, torch.tensor(eos), 0)
    state = wrapper(decoder.begin(decoder.encode(*sources(count)), None, 1 + max(max_lengths), 1))
    targets = greedy_search(state, torch.full((count, 1), 3), torch.tensor(max_lengths), config)
    return targets, state.max_steps


@BOTH
@pytest.mark.parametrize("eos", [[], [5, 9, 17]])
def test_greedy_without_select_pads_what_has_ended(build, eos):
    limits = [7, 30, 12, 30, 30]
    expected, _ = greedy(build, RecordedAndSelected, limits, eos)
    found, _ = greedy(build, Recorded, limits, eos)
    assert torch.equal(found, expected)
    for row, limit in zip(found[:, 1:], limits, strict=True):
        assert not row[limit:].any()


@BOTH
def test_greedy_asks_for_as_many_steps_as_the_remaining_sentences_have(build):
    _, max_steps = greedy(build, RecordedAndSelected, [7, 30, 12, 30, 30], [])
    assert max_steps == [7, 5, 18]
