# SPDX-License-Identifier: Apache-2.0
"""A stand-in for an accelerator, on a machine without one: the `meta` device, with values.

torch's meta tensors have a device of their own, but no values. `StandIn` computes the values on the CPU, behind torch's
dispatcher, so that whole updates, searches and checkpoints run on `meta` as they would on a GPU:

- an operator that gets tensors of both devices raises, as on a GPU;
- each place where the host would wait for a GPU is counted, with the line of the program that waits;
- each operator is recorded, to be compared with those that a device has;
- each float64 tensor on the device is recorded, which MPS refuses.

Only `torch.autocast` knows no `meta` device: here it is never active.
"""

import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map

import vanilla_transformer

ACCELERATOR = torch.device("meta")
PACKAGE, TORCH = Path(vanilla_transformer.__file__).parent, Path(torch.__file__).parent
WAIT = "wait at "
aten = torch.ops.aten

# The size of their results depends on values, so that the host waits for these.
SIZED_BY_VALUES = {aten.nonzero, aten.masked_select, aten._unique2, aten.unique_dim, aten.unique_consecutive}
SIZED_BY_VALUES |= {aten.repeat_interleave, aten.bincount, aten.equal}
COPIES = {aten._to_copy, aten.copy_}
LENGTHS_ON_THE_CPU = {aten._pack_padded_sequence, aten._pad_packed_sequence, aten._pack_padded_sequence_backward}


class StandIn(TorchDispatchMode):
    """While it is active, tensors of the meta device have values.

    Attributes:
        history: in order, the operators that the device computed, and "wait at file:line function" where the host
            waited for it.
        operators: all of these operators.
        float64: the lines that made float64 tensors on the device.
    """

    def __init__(self):
        super().__init__()
        self.history: list[str] = []
        self.operators: set[Any] = set()
        self.float64: set[str] = set()
        # The address of a meta tensor's storage → this storage, so that it stays, and its values.
        self._memory: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [value for value in tree_iter((args, kwargs)) if isinstance(value, torch.Tensor)]
        makes = kwargs.get("device")
        if not any(tensor.is_meta for tensor in tensors) and (makes is None or torch.device(makes) != ACCELERATOR):
            return func(*args, **kwargs)
        if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"):
            with self:  # in inference mode these come here whole
                return func.decompose(*args, **kwargs)
        packet = func.overloadpacket
        if packet not in COPIES:
            _check_devices(func, tensors)
        self.operators.add(func)
        self.history.append(str(packet))
        if _host_waits(packet, args, kwargs):
            self.history.append(WAIT + line_of_the_program())
        returns = [result.alias_info for result in func._schema.returns]
        if torch.Tag.inplace_view in func.tags or any(alias is not None and not alias.is_write for alias in returns):
            return func(*args, **kwargs)  # a view, whose storage has values already
        on_cpu = {name: value for name, value in kwargs.items() if name != "device"}
        if makes is not None:
            on_cpu["device"] = torch.device("cpu")
        results = func(*tree_map(self._values, args), **tree_map(self._values, on_cpu))
        if packet is aten._local_scalar_dense or packet is aten.equal:
            return results
        if any(alias is not None for alias in returns):  # in place, or to `out`
            written = [kwargs[name] for name in ("out", "out0", "out1", "values", "indices") if name in kwargs]
            return args[0] if not written else written[0] if len(written) == 1 else tuple(written)
        if packet in LENGTHS_ON_THE_CPU and isinstance(results, tuple):
            return self._as_device_tensor(results[0]), results[1]
        to_host = packet is aten._to_copy and makes is not None and torch.device(makes).type == "cpu"
        return results if to_host else tree_map(self._as_device_tensor, results)

    def waits(self) -> Counter[str]:
        """How often the host has waited at each "file:line function"."""
        return Counter(event.removeprefix(WAIT) for event in self.history if event.startswith(WAIT))

    def _values(self, value: Any) -> Any:
        """The CPU tensor that has a device tensor's values."""
        if not isinstance(value, torch.Tensor) or not value.is_meta:
            return value
        storage = value.untyped_storage()
        if storage._cdata not in self._memory:
            assert not storage.nbytes(), f"{line_of_the_program()}: a tensor from outside the stand-in has no values"
            return torch.empty(value.shape, dtype=value.dtype)
        _, values = self._memory[storage._cdata]
        return torch.empty(0, dtype=value.dtype).set_(values, value.storage_offset(), value.shape, value.stride())

    def _as_device_tensor(self, result: Any) -> Any:
        if not isinstance(result, torch.Tensor):
            return result
        if result.dtype == torch.float64:
            self.float64.add(line_of_the_program())
        if result.storage_offset():
            result = result.clone()
        new = torch.empty_strided(result.shape, result.stride(), dtype=result.dtype, device=ACCELERATOR)
        storage = new.untyped_storage()
        self._memory[storage._cdata] = storage, result.untyped_storage()
        return new


def _host_waits(packet: Any, args: Any, kwargs: Any) -> bool:
    """Whether a GPU's host would wait: it reads a value, a size that depends on values, or copies and blocks."""
    if packet in COPIES:
        other = args[1].device if packet is aten.copy_ else torch.device(kwargs.get("device") or args[0].device)
        non_blocking = args[2] if packet is aten.copy_ and len(args) > 2 else kwargs.get("non_blocking", False)
        return args[0].device != other and not non_blocking
    if packet in (aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_, aten._unsafe_index):
        return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
    return packet is aten._local_scalar_dense or packet in SIZED_BY_VALUES


def _check_devices(func: Any, tensors: list[torch.Tensor]) -> None:
    """As on a GPU: beside its tensors an operator accepts only scalars of the CPU, and lengths where torch asks."""
    mixed = [tensor for tensor in tensors if not tensor.is_meta and tensor.dim()]
    if mixed and func.overloadpacket not in LENGTHS_ON_THE_CPU:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in mixed)
        raise RuntimeError(f"{func} got tensors of the accelerator and of the CPU ({shapes}), {line_of_the_program()}")


def line_of_the_program() -> str:
    """The innermost line of this package that is being run, else of whatever calls torch: "file:line function"."""
    frames = [(Path(frame.filename), frame) for frame in traceback.extract_stack()]
    frames = [(path, frame) for path, frame in frames if path != Path(__file__) and not path.is_relative_to(TORCH)]
    own = [(path.relative_to(PACKAGE), frame) for path, frame in frames if path.is_relative_to(PACKAGE)]
    path, frame = (own or frames)[-1]
    return f"{Path(*path.parts[-3:]).as_posix()}:{frame.lineno} {frame.name}"


@contextmanager
def stand_in() -> Iterator[StandIn]:
    """Compute on the meta device; see `StandIn`."""
    is_enabled, autocast, tensor, as_tensor = torch.is_autocast_enabled, torch.autocast, torch.tensor, torch.as_tensor

    apply = torch.nn.Module._apply

    def move(module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        # torch moves a parameter to a GPU in its place, but makes a new one on `meta` unless it may swap them.
        with mock.patch("torch.__future__._swap_module_params_on_conversion", True):
            return apply(module, *args, **kwargs)

    def no_autocast(device_type: str, *args: Any, **kwargs: Any) -> Any:
        return nullcontext() if device_type == "meta" else autocast(device_type, *args, **kwargs)

    get_module = torch.get_device_module
    generator = SimpleNamespace(
        get_rng_state=lambda _: torch.get_rng_state(), set_rng_state=lambda state, _: torch.set_rng_state(state)
    )

    def device_module(device: Any = None) -> Any:
        return generator if device == ACCELERATOR else get_module(device)

    def made(make):
        def on_device(data: Any, *args: Any, device: Any = None, **kwargs: Any) -> torch.Tensor:
            # torch makes a meta tensor without its values, where another device gets a copy of them.
            if device is None or torch.device(device) != ACCELERATOR:
                return make(data, *args, device=device, **kwargs)
            return make(data, *args, **kwargs).to(ACCELERATOR)

        return on_device

    with (
        mock.patch("torch.is_autocast_enabled", lambda *device: is_enabled(*device) if device != ("meta",) else False),
        mock.patch("torch.autocast", no_autocast),
        mock.patch("torch.tensor", made(tensor)),
        mock.patch("torch.as_tensor", made(as_tensor)),
        mock.patch("torch.get_device_module", device_module),
        mock.patch("torch.optim.optimizer._get_fused_kernels_supported_devices", return_value=["cpu", "meta"]),
        mock.patch("torch.accelerator.is_available", return_value=True),
        mock.patch("accelerate.PartialState.default_device", ACCELERATOR),
        mock.patch("torch.nn.Module._apply", move),
        StandIn() as device,
    ):
        yield device
