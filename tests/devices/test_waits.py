# SPDX-License-Identifier: Apache-2.0
"""Where the host waits for an accelerator: in updates, and in steps of decoding."""

from itertools import pairwise

import pytest
import torch
from transformers import GenerationConfig

from tests.devices.stand_in import WAIT, stand_in
from tests.families import END, FAMILIES, PAD, START, tiny_batch
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


@pytest.mark.parametrize("mask_is_on", ["cpu", "meta"])
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_forward_and_backward_wait_at_most_once_and_never_for_lengths_that_the_host_has(family, mask_is_on):
    """An RNN packs sentences by lengths that torch wants on the CPU; the Transformer needs none there."""
    model, batch = family.model(), tiny_batch()
    model(**batch, skip_logits=True).loss.backward()
    expected = {name: parameter.grad for name, parameter in model.named_parameters()}
    is_recurrent = family.name.startswith("rnn")
    with stand_in() as device:
        model = family.model().to("meta")
        model(**{name: tensor.to("meta") for name, tensor in batch.items()})  # makes tables
        keeps_mask = is_recurrent and mask_is_on == "cpu"
        inputs = {name: tensor.to("meta") for name, tensor in batch.items() if name != "attention_mask"}
        inputs["attention_mask"] = batch["attention_mask"].to("cpu" if keeps_mask else "meta")
        before = device.waits()
        model(**inputs, skip_logits=True).loss.backward()
        waits = device.waits() - before
        gradients = {name: parameter.grad.cpu() for name, parameter in model.named_parameters()}
    assert waits.total() == (1 if is_recurrent and mask_is_on == "meta" else 0), waits
    torch.testing.assert_close(gradients, expected)


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
    # Waits after the last step belong to the batch.
    for start, end in pairwise(starts):
        waits = [event for event in device.history[start:end] if event.startswith(WAIT)]
        assert len(waits) <= 1, waits
