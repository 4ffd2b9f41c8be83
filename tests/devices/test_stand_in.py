# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from tests.devices.stand_in import stand_in
from tests.families import FAMILIES, tiny_batch


def test_values_on_the_stand_in_equal_those_of_the_cpu():
    values = torch.randn(4, 6)
    with stand_in():
        on_device = values.to("meta")
        view = on_device[1:, ::2].t()  # a view of it, then in place
        view.mul_(2)
        on_device[0] = torch.tensor([1.0, 2, 3, 4, 5, 6], device="meta")
        result = torch.cat([on_device.topk(2).values, torch.full((4, 1), 7.0, device="meta")], dim=1)
        assert result.is_meta
        result = result.cpu()
    values[1:, ::2] *= 2
    values[0] = torch.arange(1.0, 7)
    assert torch.equal(result, torch.cat([values.topk(2).values, torch.full((4, 1), 7.0)], dim=1))


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_gradients_on_the_stand_in_equal_those_of_the_cpu(family):
    model, batch = family.model(), tiny_batch()
    model(**batch, skip_logits=True).loss.backward()
    expected = {name: parameter.grad for name, parameter in model.named_parameters()}
    with stand_in():
        model = family.model().to("meta")
        model(**{name: tensor.to("meta") for name, tensor in batch.items()}, skip_logits=True).loss.backward()
        gradients = {name: parameter.grad.cpu() for name, parameter in model.named_parameters()}
    torch.testing.assert_close(gradients, expected)


def test_tensors_of_both_devices_in_an_operator_raise_an_error():
    with stand_in():
        on_device = torch.ones(3, device="meta")
        assert (on_device + torch.tensor(1.0)).tolist() == [2, 2, 2]  # a scalar may come from the CPU
        with pytest.raises(RuntimeError, match=r"accelerator and of the CPU \(\(3,\)\).*test_stand_in.py:"):
            on_device.add(torch.ones(3))


WAITS = {
    "a value": lambda tensor: bool(tensor.any()),
    "values": lambda tensor: tensor.tolist(),
    "a copy to the CPU": lambda tensor: tensor.cpu(),
    "a copy from the CPU": lambda tensor: torch.ones(3).to(tensor.device),
    "a copy into a tensor": lambda tensor: torch.ones(3).copy_(tensor),
    "a tensor of a list": lambda tensor: torch.tensor([1, 2], device=tensor.device),
    "the number of results": lambda tensor: tensor.nonzero(),
    "a mask as an index": lambda tensor: tensor[tensor > 0],
    "an assignment by a mask": lambda tensor: tensor.__setitem__(tensor > 0, torch.ones(3, device="meta")),
}


@pytest.mark.parametrize("kind", WAITS)
def test_a_wait_is_recorded_with_its_line(kind):
    with stand_in() as device:
        tensor = torch.ones(3, device="meta")
        assert not device.waits()
        WAITS[kind](tensor)
        [(line, count)] = device.waits().items()
    assert (line.split(":")[0], count) == ("tests/devices/test_stand_in.py", 1)


def test_no_wait_is_recorded_where_the_device_goes_on():
    with stand_in() as device:
        tensor = torch.ones(3).to("meta", non_blocking=True)
        tensor[torch.arange(2, device="meta")] = 5.0
        tensor.masked_fill_(tensor > 4, 0.0)
        tensor[:2].argsort()
        assert not device.waits()
        assert tensor.tolist() == [0, 0, 1]


def test_float64_on_the_device_is_recorded_with_its_line():
    with stand_in() as device:
        torch.ones(3, dtype=torch.float64).sum()
        assert not device.float64
        torch.ones(3, device="meta").double()
    [line] = device.float64
    assert line.startswith("tests/devices/test_stand_in.py:")
