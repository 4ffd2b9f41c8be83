# SPDX-License-Identifier: Apache-2.0
"""The structures of the C++ headers as ctypes, and the check that both sides lay them out alike."""

import ctypes
from ctypes import POINTER, Structure, c_char_p, c_float, c_int32, c_int64, c_void_p
from itertools import count, takewhile

from vanilla_transformer.inference.native.compiler import library


def _fields(kind: type, names: str) -> list[tuple[str, type]]:
    return [(name, kind) for name in names.split()]


class Constants(Structure):
    _fields_ = _fields(c_int32, "panel_width group cache_block max_queries_per_tile max_replicated_rows")


class Linear(Structure):
    _fields_ = [*_fields(c_void_p, "weight scale sums bias"), *_fields(c_int32, "inputs outputs is_bfloat16")]


class Norm(Structure):
    _fields_ = _fields(c_void_p, "weight bias")


class Layer(Structure):
    _fields_ = [
        *_fields(Linear, "query_key_value output cross_query cross_key_value cross_output linear_1 linear_2"),
        ("norms", Norm * 3),
    ]


class Stack(Structure):
    _fields_ = [
        ("layers", POINTER(Layer)),
        *_fields(c_int32, "num_layers d_model d_ff num_heads d_k d_v is_pre_norm is_decoder"),
        ("epsilon", c_float),
        *_fields(Norm, "final_norm embedding_norm"),
    ]


class RecurrentLayer(Structure):
    _fields_ = [("input", Linear), ("hidden", Linear * 2), ("has_residual", c_int32)]


class RecurrentStack(Structure):
    _fields_ = [
        ("layers", POINTER(RecurrentLayer)),
        *_fields(c_int32, "num_layers cell directions is_reversed input_size hidden_size"),
    ]


class RecurrentDecoder(Structure):
    _fields_ = [
        ("stack", RecurrentStack),
        *_fields(Linear, "keys query readout projection"),
        *_fields(c_void_p, "score embedding"),
        *_fields(c_int32, "embedding_size encoder_width input_feeding vocab_size"),
    ]


class RecurrentState(Structure):
    _fields_ = [
        *_fields(c_int32, "batch_size source_length num_rows stride current"),
        *_fields(c_void_p, "states slots source source_mask attention"),
    ]


class Scratch(Structure):
    _fields_ = [
        *_fields(c_void_p, "states normed wide context update scores entries quantized row_scales"),
        *_fields(c_int32, "stride max_positions"),
    ]


class DecoderState(Structure):
    _fields_ = [
        *_fields(c_int32, "batch_size num_beams length source_length num_slots max_length"),
        *_fields(c_void_p, "slots cache_blocks ancestors source source_mask attention"),
    ]


class Steps(Structure):
    _fields_ = [*_fields(c_int32, "max_steps completed"), *_fields(c_void_p, "parents tokens beam_scores prefixes")]


class TopK(Structure):
    _fields_ = [
        *_fields(c_int32, "k k_per_beam num_beams num_eos_tokens"),
        *_fields(c_void_p, "eos_token_ids beam_scores scores_per_beam tokens_per_beam scores beam_indices tokens"),
        ("steps", POINTER(Steps)),
    ]


class Shortlist(Structure):
    _fields_ = [("projection", Linear), *_fields(c_void_p, "tokens mask")]


class DecodeStep(Structure):
    _fields_ = [
        ("stack", POINTER(Stack)),
        ("scratch", POINTER(Scratch)),
        ("state", POINTER(DecoderState)),
        ("projection", POINTER(Linear)),
        *_fields(c_void_p, "embedding position tokens row_buffer reorder_buffer logits"),
        ("topk", POINTER(TopK)),
        ("shortlist", POINTER(Shortlist)),
        ("embedding_scale", c_float),
        *_fields(c_int32, "vocab_size logits_stride alive threads"),
    ]


class RecurrentStep(Structure):
    _fields_ = [
        ("decoder", POINTER(RecurrentDecoder)),
        ("scratch", POINTER(Scratch)),
        ("state", POINTER(RecurrentState)),
        *_fields(c_void_p, "tokens parents parent_buffer row_buffer logits"),
        ("topk", POINTER(TopK)),
        ("shortlist", POINTER(Shortlist)),
        *_fields(c_int32, "logits_stride alive threads"),
    ]


class _FieldLayout(Structure):
    _fields_ = [*_fields(c_char_p, "structure field"), *_fields(c_int32, "offset size")]


RECURRENT = (RecurrentLayer, RecurrentStack, RecurrentDecoder, RecurrentState, RecurrentStep)
DECODING = (DecoderState, Steps, TopK, Shortlist, DecodeStep)
STRUCTURES = (Constants, Linear, Norm, Layer, Stack, Scratch, *DECODING, *RECURRENT)


def load_library() -> ctypes.CDLL:
    """The compiled library, whose structures are those of this module.

    Raises:
        ValueError: as `compiler.library`.
        AssertionError: as `check_layout`.
    """
    loaded = library()
    check_layout(loaded)
    loaded.constants.restype, loaded.unpack_rows.restype = Constants, c_int64
    loaded.unpack_rows.argtypes = POINTER(Linear), c_void_p, c_int64, c_void_p
    loaded.select_outputs.argtypes = POINTER(Linear), c_void_p, POINTER(Linear)
    return loaded


def check_layout(loaded: ctypes.CDLL) -> None:
    """Compare every offset and size in bytes with the library's own.

    Raises:
        AssertionError: they differ, so a call would corrupt memory. `python -O` keeps this check.
    """
    loaded.structure_layout.restype = POINTER(_FieldLayout)
    entries = takewhile(lambda entry: entry.structure, map(loaded.structure_layout().__getitem__, count()))
    cpp = {(entry.structure.decode(), entry.field.decode()): (entry.offset, entry.size) for entry in entries}
    python: dict[tuple[str, str], tuple[int, int]] = {}
    for structure in STRUCTURES:
        for name, *_ in structure._fields_:
            field = getattr(structure, name)
            python[structure.__name__, name] = field.offset, field.size
        python[structure.__name__, ""] = 0, ctypes.sizeof(structure)
    for name in python | cpp:
        in_cpp, in_python = _describe(cpp.get(name)), _describe(python.get(name))
        if in_cpp != in_python:
            raise AssertionError(
                f"{'.'.join(filter(None, name))} is {in_cpp} in C++ and {in_python} in structures.py: this is a bug of "
                "vanilla_transformer, and engine='torch' avoids it"
            )


def _describe(layout: tuple[int, int] | None) -> str:
    return "nothing" if layout is None else f"{layout[1]} bytes at offset {layout[0]}"
