# SPDX-License-Identifier: Apache-2.0
"""Marian's own engine on a CPU, as PyPI's bergamot ships it, beside ours with the same weights."""

import json
import struct
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import yaml

from vanilla_transformer.benchmark.bergamot_worker import __file__ as WORKER
from vanilla_transformer.benchmark.configuration import BenchmarkConfig, DecodingConfig
from vanilla_transformer.benchmark.machine import describe_machine
from vanilla_transformer.benchmark.random_model import random_model, random_sources
from vanilla_transformer.benchmark.report import machine_line, ratios_table, rounds_line, table_by_system
from vanilla_transformer.benchmark.systems import FAST, Batch, Decode, System, build_system, measure_decoding, speeds
from vanilla_transformer.configuration_vanilla_transformer import VanillaTransformerConfig
from vanilla_transformer.data.sentencepiece_tokenizer import CONTROL, NORMAL, UNKNOWN
from vanilla_transformer.importing.marian_npz import LAYER_NORM_EPS, LAYERS, REQUIRED, SETTINGS

GEMM_PRECISIONS = {"float32": "float32", "int8": "int8shiftAll"}  # ours → Marian's; its fastest int8 in batches
BERGAMOT = {precision: f"Marian (bergamot) {precision}" for precision in GEMM_PRECISIONS}
FIELDS = {"sinusoid_layout": "concatenated", "sinusoid_exponent": "tensor2tensor", "layer_norm_eps": LAYER_NORM_EPS}
TYPES = {"int8": 0x101, "float32": 0x404}  # numpy's → Marian's, in common/types.h
NEVER = -1e4  # logit
# A token is a character of a private use area, so that SentencePiece gives exactly the ids that are meant.
FIRST_CHARACTER = 0xF0000


def random_marian_model(config: VanillaTransformerConfig) -> Any:
    """A random model that Marian can have: its positions, and a zero embedding before the first token of a target."""
    model: Any = random_model(VanillaTransformerConfig.from_dict(config.to_dict() | FIELDS))
    with torch.no_grad():
        model.get_input_embeddings().weight[config.decoder_start_token_id] = 0
    return model


def write_marian(model: Any, folder: Path, is_endless: bool) -> None:
    """Write `model.bin` and `vocab.spm`.

    Args:
        model: as `random_marian_model` makes it, with one embedding matrix; its projection may have another matrix.
        is_endless: targets never end by themselves.
    """
    config, weights = model.config, model.state_dict()
    is_tied = config.tie_word_embeddings
    settings = REQUIRED | {
        "dim-emb": config.d_model,
        "transformer-dim-ffn": config.d_ff,
        "transformer-heads": config.num_heads,
        "enc-depth": config.num_layers,
        "dec-depth": config.num_decoder_layers,
        "dim-vocabs": [config.vocab_size] * 2,
        "transformer-ffn-activation": config.activation_function,
        "tied-embeddings-src": True,
        "tied-embeddings-all": is_tied,
    }
    bias = torch.zeros(1, config.vocab_size)
    if is_endless:
        bias[0, config.eos_token_id] = NEVER
    items = {"Wemb": weights["model.encoder.embed_tokens.weight"], "decoder_ff_logit_out_b": bias}
    if not is_tied:
        items["decoder_ff_logit_out_W"] = weights["lm_head.weight"].T
    for stack, layers in (("encoder", config.num_layers), ("decoder", config.num_decoder_layers)):
        for layer, (theirs, ours) in product(range(layers), LAYERS.items()):
            name = f"model.{stack}.layers.{layer}.{ours}"
            weight = weights.get(f"{name.rpartition('.')[0]}.weight")
            if weight is None:  # an encoder has no cross-attention
                continue
            values = weights.get(name, torch.zeros(len(weight)))  # the paper's attention has no biases
            items[f"{stack}_l{layer + 1}_{theirs}"] = values.T if values.dim() == 2 else values[None]
    arrays = {name: values.contiguous().numpy() for name, values in items.items()}
    arrays[SETTINGS] = np.frombuffer(yaml.safe_dump(settings).encode() + b"\0", dtype=np.int8)
    (folder / "model.bin").write_bytes(binary_model(arrays))
    (folder / "vocab.spm").write_bytes(sentencepiece_of_ids(config))


def binary_model(arrays: dict[str, np.ndarray]) -> bytes:
    """Marian's binary format, as its common/binary.cpp reads it."""
    names = [name.encode() + b"\0" for name in arrays]
    header = struct.pack("<2Q", 1, len(arrays))  # version, items
    for name, array in zip(names, arrays.values(), strict=True):
        header += struct.pack("<4Q", len(name), TYPES[array.dtype.name], array.ndim, array.nbytes)
    header += b"".join(names)
    header += b"".join(struct.pack(f"<{array.ndim}i", *array.shape) for array in arrays.values())
    padding = -(len(header) + 8) % 256
    return header + struct.pack("<Q", padding) + bytes(padding) + b"".join(array.tobytes() for array in arrays.values())


def sentencepiece_of_ids(config: Any) -> bytes:
    """A SentencePiece model with a character for each token; Marian never gives the unknown one, here the padding."""
    special = {
        config.pad_token_id: ("<unk>", UNKNOWN),
        config.bos_token_id: ("<s>", CONTROL),
        config.eos_token_id: ("</s>", CONTROL),
    }
    model = b""
    for token in range(config.vocab_size):
        text, kind = special.get(token, (chr(FIRST_CHARACTER + token), NORMAL))
        piece = _bytes_field(1, text.encode()) + struct.pack("<Bf", 2 << 3 | 5, 0.0) + _integer_field(3, kind)
        model += _bytes_field(1, piece)
    # Numbers of sentencepiece_model.proto: the kind unigram, unk, bos and eos; nothing is normalized.
    ids = {40: config.pad_token_id, 41: config.bos_token_id, 42: config.eos_token_id}
    model += _bytes_field(2, b"".join(_integer_field(number, value) for number, value in ({3: 1} | ids).items()))
    return model + _bytes_field(3, b"".join(_integer_field(number, 0) for number in (3, 4, 5)))


def _varint(value: int) -> bytes:
    return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + _varint(value >> 7)


def _integer_field(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _bytes_field(number: int, value: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(value)) + value


@contextmanager
def bergamot_system(
    python: str, folder: Path, precision: str, batches: list[Batch], decoding: DecodingConfig
) -> Iterator[Decode]:
    """Marian in a process of its own, which computes while this one waits.

    Args:
        python: the program of a Python with bergamot.
        folder: the one that `write_marian` wrote.
        batches: sources of one length, which end with EOS; the limit of all targets is the same.

    Raises:
        ValueError: that program cannot be run, or ends.
    """
    [(source_length, target_length)] = {
        (len(source), batch.max_new_tokens) for batch in batches for source in batch.sources
    }
    config = {
        "models": [str(folder / "model.bin")],
        "vocabs": [str(folder / "vocab.spm")] * 2,
        "gemm-precision": GEMM_PRECISIONS[precision],
        "beam-size": decoding.beams,
        "normalize": decoding.length_penalty,
        "skip-cost": decoding.beams == 1,  # greedy search needs no log-probabilities
        "max-length-factor": (target_length - 0.5) / source_length,  # a target's length over the source's
        "max-length-break": 1000,  # tokens of the longest sentence
        "mini-batch-words": 1_000_000,  # all sentences are a batch
        "ssplit-mode": "paragraph",  # a line is a sentence
        "workspace": 512,  # MiB
    }
    texts = [
        json.dumps(
            "\n".join("".join(chr(FIRST_CHARACTER + token) for token in source[:-1]) for source in batch.sources)
        )
        for batch in batches  # Marian appends EOS itself
    ]
    command = [python, WORKER, yaml.safe_dump(config), str(torch.get_num_threads())]
    try:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8")
    except OSError as error:
        raise ValueError(f"python={python!r} cannot be run: {error.strerror}") from None

    def decode(count: int) -> list[list[int]]:
        lines = []
        for text in texts[:count]:
            try:
                print(text, file=process.stdin, flush=True)
                lines += json.loads(process.stdout.readline()).split("\n")  # pyright: ignore[reportOptionalMemberAccess]
            except (OSError, json.JSONDecodeError):
                raise ValueError(f"python={python!r} ended before it had translated, with bergamot's errors") from None
        return [[ord(character) - FIRST_CHARACTER for character in line] for line in lines]

    try:
        yield decode
    finally:
        process.communicate()  # closes its stdin, so that it ends


def benchmark_marian_engine(config: BenchmarkConfig, python: str, on_progress: Callable[[str], None]) -> str:
    """Speeds of both engines in float32 and int8, in the cases of `benchmark_decoding`, as Markdown.

    Args:
        python: the program of a Python with bergamot.
        on_progress: called with a line for each case.

    Raises:
        ValueError: as `bergamot_system`.
    """
    cases = {}
    for size in config.sizes:
        model = random_marian_model(config.model_config(size))
        with TemporaryDirectory() as temporary:
            folder = Path(temporary)
            write_marian(model, folder, is_endless=True)
            systems: dict[str, System] = {}
            for precision, name in BERGAMOT.items():
                systems[name] = partial(bergamot_system, python, folder, precision)
                systems[FAST[precision]] = build_system(FAST[precision], model, folder, max_length=0)
            for batch_size, beams in product(config.batch_sizes, config.beams):
                sources = random_sources(model.config.vocab_size, batch_size, config.source_tokens)
                ended = [[*source, model.config.eos_token_id] for source in sources]
                batch = Batch(ended, config.target_tokens, is_fixed_length=True)
                decoding = DecodingConfig(beams=beams, alpha=0.0, length_penalty=0.0, early_stopping=True)
                results = {}
                for name, measured in measure_decoding(systems, [batch], decoding, config.timing).items():
                    results[name] = speeds(measured)
                cases[f"{size} B{batch_size} b{beams}"] = {"results": results}
                on_progress(f"{size}, {batch_size} sentences, {beams} beams")
    machine = describe_machine(torch.device("cpu"))
    parts = [
        "# Decoding beside Marian's own engine",
        f"{machine_line(machine)} {machine['threads']} threads; {rounds_line(config.timing.repeats)}",
        "## Output tokens per second",
        table_by_system(cases, "results", "{tokens_per_second:,.0f}"),
        "## Ratios of speeds",
        *(ratios_table(cases, [FAST[precision]], [name]) for precision, name in BERGAMOT.items()),
    ]
    return "\n\n".join(parts)
