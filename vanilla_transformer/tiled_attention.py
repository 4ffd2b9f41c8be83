# SPDX-License-Identifier: Apache-2.0
"""Equation 1 of the paper by tiles of scores: training in bfloat16 on a CPU, where torch's own kernel is slow.

With 512 tokens torch's flash attention reaches a third of the rate at which oneDNN multiplies in bfloat16, and it
computes the scores that a causal mask hides. Here a tile of scores stays in the CPU's cache between two products. In
float32 tiles save 1% to 2% of an update at most, and torch's kernel serves.
"""

import math
from collections.abc import Iterator

import torch
from torch.autograd.function import once_differentiable

from .packed_linear import onednn_has

TILE_BYTES = 2**20  # of the scores of a tile; with smaller ones the calls cost more than they save
CAUSAL_ROWS = 128  # queries of a tile under a causal mask: fewer skip more scores, more make faster products
IS_FASTER = onednn_has(torch.bfloat16) and not torch.cpu._is_amx_tile_supported()  # unmeasured with AMX

Tile = tuple[slice, slice, int]  # heads of all sentences, queries, and how many keys these see


def is_faster_in_tiles(
    query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None, dropout: float, is_causal: bool
) -> bool:
    """Whether `tiled_attention` serves for these arguments and is faster than torch's kernel: never without gradients.

    Args:
        query, key, mask, is_causal: as for `tiled_attention`.
        dropout: rate on the weights.
    """
    if not IS_FASTER or query.device.type != "cpu" or query.dtype != torch.bfloat16 or query.dtype != key.dtype:
        return False
    if type(query) is not torch.Tensor or torch.compiler.is_compiling() or dropout or not query.requires_grad:
        return False
    has_cache = is_causal and query.shape[2] != key.shape[2]
    return not has_cache if mask is None else mask.dtype == torch.bool


def tiled_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    **kwargs,
) -> tuple[torch.Tensor, None]:
    """softmax(Q K^T * scaling) V; an attention backend as transformers calls it.

    Args:
        module: the attention module. Without a mask, and if it `is_causal`, query i sees the keys up to i.
        query: `(batch, num_heads, query_length, d_k)`.
        key: `(batch, num_heads, key_length, d_k)`.
        value: `(batch, num_heads, key_length, d_v)`.
        attention_mask: `(batch, 1, query_length, key_length)`, true where a query sees a key. As in the eager backend,
            a query that sees none has the mean of all values.
        scaling: 1 / sqrt(d_k).

    Returns:
        `(batch, query_length, num_heads, d_v)`, and no weights.
    """
    is_causal = module.is_causal and attention_mask is None
    return _TiledAttention.apply(query, key, value, attention_mask, scaling, is_causal), None  # pyright: ignore[reportReturnType] -- apply is untyped in torch


class _TiledAttention(torch.autograd.Function):
    """Saves only its inputs: memory grows as the length. `backward` computes the weights again, to the same bits."""

    @staticmethod
    def forward(ctx, query, key, value, mask, scaling, is_causal):
        batch, num_heads, query_length, _ = query.shape
        # Contiguous, `(batch * num_heads, length, width)`: bmm copies other slices.
        query, key, value = (tensor.flatten(0, 1).contiguous() for tensor in (query, key, value))
        if mask is not None:  # the term added to scores
            mask = query.new_zeros(mask.shape).masked_fill_(~mask, torch.finfo(query.dtype).min)
        ctx.save_for_backward(query, key, value, mask)
        ctx.scaling, ctx.is_causal = scaling, is_causal
        output = value.new_empty(batch * num_heads, query_length, value.shape[-1])
        for (heads, rows, keys), weights, _ in _tiles(query, key, mask, scaling, is_causal):
            torch.bmm(weights, value[heads, :keys], out=output[heads, rows])
        return output.unflatten(0, (batch, num_heads)).transpose(1, 2).contiguous()

    @staticmethod
    @once_differentiable
    def backward(ctx, *grad_outputs):
        query, key, value, mask = ctx.saved_tensors
        batch, _, num_heads, _ = grad_outputs[0].shape  # (batch, query_length, num_heads, d_v)
        grad_output = grad_outputs[0].transpose(1, 2).flatten(0, 1)
        grad_query = torch.empty_like(query)
        # Several tiles add to these: in float32, as in torch's kernel. Transposed their products are faster in MKL.
        grad_key, grad_value = (torch.zeros_like(tensor.mT, dtype=torch.float32) for tensor in (key, value))
        for (heads, rows, keys), weights, buffer in _tiles(query, key, mask, ctx.scaling, ctx.is_causal):
            grads = grad_output[heads, rows]
            torch.bmm(grads, value[heads, :keys].mT, out=buffer)  # the gradient of the weights
            grad_value[heads, :, :keys] += torch.bmm(grads.mT, weights)
            torch.ops.aten._softmax_backward_data.out(buffer, weights, -1, buffer.dtype, grad_input=buffer)
            torch.bmm(buffer, key[heads, :keys], out=grad_query[heads, rows])
            grad_key[heads, :, :keys] += torch.bmm(query[heads, rows].mT, buffer)
        grad_key, grad_value = grad_key.mul_(ctx.scaling).mT.to(key.dtype), grad_value.mT.to(value.dtype)
        grads = grad_query.mul_(ctx.scaling), grad_key, grad_value
        return *(grad.unflatten(0, (batch, num_heads)) for grad in grads), None, None, None


def _tiles(
    query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None, scaling: float, is_causal: bool
) -> Iterator[tuple[Tile, torch.Tensor, torch.Tensor]]:
    """Each tile with its attention weights `(heads, rows, keys)`, and a buffer of this shape; both until the next."""
    all_heads, query_length, _ = query.shape
    key_length, lowest, elements = key.shape[1], torch.finfo(query.dtype).min, TILE_BYTES // query.element_size()
    most_rows = max(1, min(query_length, CAUSAL_ROWS if is_causal else elements // key_length))
    most_heads = max(1, min(all_heads, elements // (most_rows * key_length)))
    buffers = query.new_empty(2, most_heads * most_rows * key_length)
    later = query.new_full((most_rows, most_rows), lowest).triu_(1) if is_causal else None
    for head in range(0, all_heads, most_heads):
        heads = slice(head, min(head + most_heads, all_heads))
        for start in range(0, query_length, most_rows):
            rows = slice(start, min(start + most_rows, query_length))
            keys = rows.stop if is_causal else key_length
            shape = heads.stop - heads.start, rows.stop - rows.start, keys
            scores, weights = (buffer[: math.prod(shape)].view(shape) for buffer in buffers)
            torch.baddbmm(scores, query[heads, rows], key[heads, :keys].mT, beta=0, alpha=scaling, out=scores)
            if later is not None:
                scores[:, :, start:] += later[: shape[1], : shape[1]]
            elif mask is not None:
                sentences = torch.arange(heads.start, heads.stop) // (all_heads // len(mask))
                scores += mask[:, 0, rows].index_select(0, sentences)
            torch.softmax(scores, dim=-1, out=weights)
            yield (heads, rows, keys), weights, scores
