# SPDX-License-Identifier: Apache-2.0
"""Where the host waits for an accelerator: in updates, and in steps of decoding."""

from itertools import pairwise

import pytest
import torch
from transformers import GenerationConfig

from tests.devices.stand_in import WAIT, stand_in
from tests.families import END, FAMILIES, PAD, START
from vanilla_transformer.generation import beam_search

STEP = "a step of decoding"


def sources() -> dict[str, torch.Tensor]:
    """Nine sources of 1 to 9 tokens, padded."""
    input_ids = torch.randint(3, 31, (9, 9), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(9) <= torch.arange(9)[:, None]).long()
    return {"input_ids": input_ids.masked_fill(mask == 0, PAD), "attention_mask": mask}


def decode(model, device: torch.device, on_step=lambda: None, **options):
    """Decode `sources` by the model's fast decoder; each has a maximum length of its own."""
    decoder = model.build_decoder()
    begin = decoder.begin

    class State:
        def __init__(self, state):
            self.state = state

        def __getattr__(self, name):
            return getattr(self.state, name)

        def __call__(self, tokens):
            on_step()
            return self.state(tokens)

        def select(self, batch_indices):
            self.state.select(batch_indices)

    decoder.begin = lambda *arguments, **given: State(begin(*arguments, **given))
    config = {"pad_token_id": PAD, "eos_token_id": END, "decoder_start_token_id": START}
    model.generation_config = GenerationConfig(**config, max_tokens_beyond_source=4)
    inputs = {name: tensor.to(device) for name, tensor in sources().items()}
    encoded = decoder.encode(**inputs)
    output = model.generate(
        **inputs,
        encoder_outputs=encoded,
        custom_generate=beam_search,
        decoder=decoder,
        return_dict_in_generate=True,
        **options,
    )
    return {name: output[name].cpu() for name in ("sequences", "sequences_scores") if name in output}


SEARCHES = {
    "greedy": {"num_beams": 1},
    "beams": {"num_beams": 4, "num_return_sequences": 2},
    "beams until as many are finished": {"num_beams": 3, "early_stopping": True},
    "coverage": {"num_beams": 3, "coverage_penalty": 0.2},
    "transformers' rule": {"num_beams": 3, "rule": "transformers"},
}


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("family", FAMILIES[:2], ids=lambda family: family.name)
def test_a_step_of_decoding_waits_at_most_once_for_the_device(family, search):
    expected = decode(family.model(), torch.device("cpu"), **SEARCHES[search])
    with stand_in() as device:
        model = family.model().to("meta")
        found = decode(model, torch.device("meta"), lambda: device.history.append(STEP), **SEARCHES[search])
    torch.testing.assert_close(found, expected)
    starts = [index for index, event in enumerate(device.history) if event == STEP]
    assert len(starts) > 5
    # What comes after the last step belongs to the batch.
    for start, end in pairwise(starts):
        waits = [event for event in device.history[start:end] if event.startswith(WAIT)]
        assert len(waits) <= 1, waits
