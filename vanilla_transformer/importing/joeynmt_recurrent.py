# SPDX-License-Identifier: Apache-2.0
"""JoeyNMT's recurrent models as an `RNNSeq2Seq`, exactly.

JoeyNMT has its own width for each embedding and for each state, where `RNNSeq2Seq` has one for both embeddings and one
for both states. Zeros widen the narrower ones: a unit whose weights are zero stays zero, and no output changes. Nor
does fine-tuning change such weights: the gradient of a weight between two zeros is zero.
"""

import math
from typing import Any

import torch

from vanilla_transformer.importing.imported_model import ImportedModel, Weights
from vanilla_transformer.importing.names import DECODER, ENCODER, HEAD

BRIDGE = "model.decoder.bridge.projections"
READOUT = "model.decoder.readout.linear"
ATTENTIONS = {"bahdanau": "additive", "luong": "multiplicative"}
GATES = {"gru": 3, "lstm": 4}
Blocks = list[tuple[int, int]]  # widths in JoeyNMT and here


def read_recurrent(imported: ImportedModel, model: dict[str, Any]) -> None:
    """Add the fields of an `RNNSeq2SeqConfig`, and give the weights our widths.

    Raises:
        ValueError: what an `RNNSeq2Seq` cannot have; sizes that do not fit each other.
    """
    encoder, decoder = model["encoder"], model["decoder"]
    cell, feeding = encoder.get("rnn_type", "gru"), decoder.get("input_feeding", True)
    for name, value, allowed in (
        ("encoder.rnn_type", cell, GATES),
        ("decoder.rnn_type", decoder.get("rnn_type", "gru"), (cell,)),
        ("encoder.bidirectional", encoder.get("bidirectional", True), (True,)),  # JoeyNMT cannot run others
        ("decoder.activation", decoder.get("activation", "tanh"), ("tanh",)),
        ("decoder.attention", decoder.get("attention", "bahdanau"), ATTENTIONS),
    ):
        if value not in allowed:
            raise ValueError(f"{imported.origin} has {name}={value!r}; use {' or '.join(map(repr, allowed))}")
    imported.architecture = "rnn_seq2seq"
    imported.stated |= {
        "cell": cell,
        "num_layers": encoder.get("num_layers", 1),
        "num_decoder_layers": decoder.get("num_layers", 1),
        "attention": ATTENTIONS[decoder.get("attention", "bahdanau")],
    }
    _scale_embeddings(imported.weights, model)
    start = decoder.get("init_hidden", "bridge")
    states = encoder.get("hidden_size", 1), decoder.get("hidden_size", 0)
    _add_bridges(imported.weights, start, decoder.get("num_layers", 1) * (2 if cell == "lstm" else 1), *states)
    if (readout := f"{READOUT}.weight") in imported.weights:  # JoeyNMT's reads the state before the context
        imported.weights[readout] = imported.weights[readout].roll(-states[1], dims=1)
    blocks = _blocks(model, feeding)
    for name, tensor in imported.weights.items():
        gates = GATES[cell] if ".recurrence." in name else 1
        rows, columns = next((blocks[part] for part in blocks if name.startswith(part)), ([], []))
        for axis, parts in ((0, rows * gates), (1, columns)):
            if parts and axis < tensor.dim():
                tensor = _widen(tensor, axis, parts, f"{imported.origin}: the weights for {name}")
        imported.weights[name] = tensor
    imported.settings["input_feeding"] = "attentional" if feeding else "none"
    imported.settings["bridge"] = "top_linear" if start == "last" else "top"


def _embeddings(model: dict[str, Any], stack: str) -> dict[str, Any]:
    """The settings of a stack's embeddings; if tied, those of the encoder."""
    return model["encoder" if model.get("tied_embeddings") else stack].get("embeddings", {})


def _scale_embeddings(weights: Weights, model: dict[str, Any]) -> None:
    """Scale the weights that read the embeddings, where JoeyNMT scales the embeddings by the root of their width."""
    for stack in ("encoder", "decoder"):
        embeddings = _embeddings(model, stack)
        if embeddings.get("scale", False):
            width = embeddings.get("embedding_dim", 64)
            for name in [name for name in weights if f"{stack}.stack.layers.0.recurrence.weight_ih" in name]:
                weights[name][:, :width] *= math.sqrt(width)


def _add_bridges(weights: Weights, start: str, count: int, encoder_state: int, decoder_state: int) -> None:
    """Copies of JoeyNMT's one bridge for each state, or bridges that choose the forward state ("last") or zeros."""
    bridge = {kind: weights.pop(f"{BRIDGE}.0.{kind}", None) for kind in ("weight", "bias")}
    if start != "bridge":
        make = torch.eye if start == "last" else torch.zeros
        bridge = {"weight": make(decoder_state, 2 * encoder_state), "bias": torch.zeros(decoder_state)}
    for kind, tensor in bridge.items():
        if tensor is not None:
            weights |= {f"{BRIDGE}.{index}.{kind}": tensor for index in range(count)}


def _blocks(model: dict[str, Any], feeding: bool) -> dict[str, tuple[Blocks, Blocks]]:
    """Rows (of one gate) and columns of the weights by the beginnings of their names, the first that fits counts."""
    stacks = [model[stack] for stack in ("encoder", "decoder")]
    sizes = [_embeddings(model, stack).get("embedding_dim", 64) for stack in ("encoder", "decoder")]
    states = stacks[0].get("hidden_size", 1), stacks[1].get("hidden_size", 0)
    width, state_width = max(*sizes, states[1]), max(states)
    source, target = ([(size, width)] for size in sizes)
    of_encoder, of_decoder = ([(state, state_width)] for state in states)
    both, attentional = of_encoder * 2, [(states[1], width)]
    encoder, decoder = (f"model.{stack}.stack.layers." for stack in ("encoder", "decoder"))
    layers = range(1, max(stack.get("num_layers", 1) for stack in stacks))
    return {
        ENCODER: ([], source),
        DECODER: ([], target),
        HEAD: ([], attentional),
        READOUT: (attentional, both + of_decoder),
        BRIDGE: (of_decoder, both),
        "model.decoder.attention.k_proj": (of_decoder, both),
        "model.decoder.attention.q_proj": (of_decoder, of_decoder),
        "model.decoder.attention.v": ([], of_decoder),
        f"{encoder}0.recurrence.weight_ih": (of_encoder, source),
        f"{decoder}0.recurrence.weight_ih": (of_decoder, target + (attentional if feeding else [])),
        **{f"{encoder}{layer}.recurrence.weight_ih": (of_encoder, both) for layer in layers},
        encoder: (of_encoder, of_encoder),
        decoder: (of_decoder, of_decoder),
    }


def _widen(tensor: torch.Tensor, axis: int, blocks: Blocks, what: str) -> torch.Tensor:
    """Widen each block of rows (`axis` 0) or columns (1) to its width here, by zeros."""
    if tensor.shape[axis] != sum(before for before, _ in blocks):
        stated = " + ".join(str(before) for before, _ in blocks)
        raise ValueError(f"{what} have {tensor.shape[axis]} {('rows', 'columns')[axis]}, and config.yaml has {stated}")
    parts = []
    for part, (before, after) in zip(tensor.split([before for before, _ in blocks], axis), blocks, strict=True):
        missing = (after - before, *part.shape[1:]) if axis == 0 else (len(part), after - before)
        parts += [part, part.new_zeros(missing)]
    return torch.cat(parts, dim=axis)
