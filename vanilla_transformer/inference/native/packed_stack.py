# SPDX-License-Identifier: Apache-2.0
"""Weights and memory as the kernels read them."""

from ctypes import c_void_p
from typing import Any

import torch
from torch import nn

from vanilla_transformer.inference.native import structures
from vanilla_transformer.inference.native.memory import Arena, BufferPool
from vanilla_transformer.packed_linear import Precision, fused_projections, int8_scales


class PackedStack:
    """The layers of an encoder or decoder, with weights in panels of outputs that the kernels compute together.

    Args:
        stack: with plain modules; later changes of its weights have no effect.
        precision: "bfloat16": weights and the inputs of products in bfloat16, summed in float32. "int8": weights in
            [-127, 127] with a scale for each output; the kernels quantize inputs to 256 levels with a scale and a zero
            point for each row, by the same integers on every CPU, and no sum overflows.
    """

    def __init__(self, stack: Any, precision: Precision, is_decoder: bool):
        self.library, self.precision = structures.load_library(), precision
        self.constants = self.library.constants()
        # Inputs of a step of the kernels.
        self.group = {"float32": 1, "bfloat16": 2, "int8": self.constants.group}[precision]
        self.arena = Arena()
        self.structure = self._pack_layers(stack, is_decoder)

    def _pack_layers(self, stack: Any, is_decoder: bool) -> Any:
        """Sets `layers` and `stride`, and returns the structure that the kernels read."""
        config = stack.config
        self.layers = (structures.Layer * len(stack.layers))(
            *(self._layer(layer, is_decoder) for layer in stack.layers)
        )
        widest = max(config.num_heads * (2 * config.d_k + config.d_v), config.d_ff, config.d_model)
        self.stride = self.row_stride(widest)
        return structures.Stack(
            layers=self.layers,
            num_layers=len(self.layers),
            **{name: getattr(config, name) for name in ("d_model", "d_ff", "num_heads", "d_k", "d_v")},
            is_pre_norm=config.norm_position == "pre",
            is_decoder=is_decoder,
            epsilon=config.layer_norm_eps,
            final_norm=self._norm(stack.norm),
            embedding_norm=self._norm(stack.input_embedding.norm),
        )

    def _layer(self, layer: Any, is_decoder: bool) -> structures.Layer:
        attention, network = layer.self_attention, layer.feed_forward
        linears = {
            "query_key_value": fused_projections(attention, ("q_proj", "k_proj", "v_proj")),
            "output": (attention.out_proj.weight, attention.out_proj.bias),
            "linear_1": (network.linear_1.weight, network.linear_1.bias),
            "linear_2": (network.linear_2.weight, network.linear_2.bias),
        }
        norms = [layer.self_attention_norm, layer.self_attention_norm, layer.feed_forward_norm]
        if is_decoder:
            attention = layer.cross_attention
            linears["cross_query"] = fused_projections(attention, ("q_proj",))
            linears["cross_key_value"] = fused_projections(attention, ("k_proj", "v_proj"))
            linears["cross_output"] = (attention.out_proj.weight, attention.out_proj.bias)
            norms[1] = layer.cross_attention_norm
        packed = {name: self.pack(*parameters) for name, parameters in linears.items()}
        return structures.Layer(**packed, norms=(structures.Norm * 3)(*map(self._norm, norms)))

    def pack(self, weight: torch.Tensor, bias: torch.Tensor | None) -> structures.Linear:
        """`weight` `(outputs, inputs)`, `bias` `(outputs)`."""
        outputs, inputs = weight.shape
        rows, panel_width = self.padded(outputs), self.constants.panel_width
        padded = nn.functional.pad(weight.detach().float(), (0, 0, 0, rows - outputs))  # (rows, inputs)
        scale = sums = None
        if self.precision == "int8":
            scale = int8_scales(padded)  # (rows)
            padded = (padded / scale[:, None]).round().to(torch.int8)
            sums = padded.sum(dim=1, dtype=torch.int32)  # (rows)
        elif self.precision == "bfloat16":
            padded = padded.bfloat16()
        padded = nn.functional.pad(padded, (0, -inputs % self.group))
        panels = padded.view(rows // panel_width, panel_width, -1, self.group).transpose(1, 2)
        full_bias = torch.zeros(rows)
        if bias is not None:
            full_bias[:outputs] = bias.detach()
        addresses = (
            None if tensor is None else self.arena.place(tensor) for tensor in (panels, scale, sums, full_bias)
        )
        return structures.Linear(*addresses, inputs, outputs, self.precision == "bfloat16")

    def _norm(self, norm: nn.Module) -> structures.Norm:
        if not isinstance(norm, nn.LayerNorm):  # an Identity
            return structures.Norm()
        return structures.Norm(*(self.arena.place(tensor.detach().float()) for tensor in (norm.weight, norm.bias)))

    def padded(self, width: int) -> int:
        """The next multiple of a panel's width, and so of a vector's."""
        return -(-width // self.constants.panel_width) * self.constants.panel_width

    def row_stride(self, widest: int) -> int:
        """The distance of two rows of `ScratchMemory`.

        With one more panel it is no power of two: rows would evict one another from the cache.
        """
        return self.padded(widest) + self.constants.panel_width


class ScratchMemory:
    """Intermediate results of one call.

    Args:
        rows: of states, at most.
        max_positions: that a row attends to.
    """

    def __init__(self, stack: PackedStack, buffers: BufferPool, rows: int, max_positions: int):
        threads, constants = torch.get_num_threads(), stack.constants
        max_positions = stack.padded(max_positions)
        rows = max(rows, threads * constants.max_replicated_rows)
        quantized = (0, 0) if stack.precision == "float32" else (rows, stack.stride)
        self.tensors = (
            *buffers.take(self, 5, rows, stack.stride),
            torch.empty(threads, constants.max_queries_per_tile, max_positions),  # scores
            torch.empty(threads, max_positions, dtype=torch.long),  # addresses
            buffers.take(self, *quantized, dtype=torch.int16),  # the widest
            torch.empty(rows, 2),  # scales and zero points
        )
        addresses = (tensor.data_ptr() for tensor in self.tensors)
        self.structure = structures.Scratch(*addresses, stride=stack.stride, max_positions=max_positions)


def address(tensor: torch.Tensor | None) -> c_void_p:
    return c_void_p(None if tensor is None else tensor.data_ptr())
