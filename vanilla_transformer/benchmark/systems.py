# SPDX-License-Identifier: Apache-2.0
"""The systems under test: each decodes the same sources with the same weights."""

import gc
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig

from vanilla_transformer.benchmark.configuration import DecodingConfig, TimingConfig
from vanilla_transformer.benchmark.machine import lacks_precision
from vanilla_transformer.benchmark.timing import Measurement, measure_in_turns
from vanilla_transformer.decoder import Decoder
from vanilla_transformer.exporting.marian import as_marian
from vanilla_transformer.generation import beam_search
from vanilla_transformer.inference.native.engine import fast_decoder, is_native
from vanilla_transformer.inference.native.parallel_batches import parallel_batches
from vanilla_transformer.packed_linear import PRECISIONS

MARIAN, GENERATE = "MarianMT generate", "ours, generate"
CTRANSLATE2 = {"float32": "CTranslate2 float32", "int8": "CTranslate2 int8"}  # compute type → name
FAST = {precision: f"ours, fast {precision}" for precision in PRECISIONS}
TORCH = "ours, fast float32 in torch"  # the decoder that a published folder has, without native kernels


@dataclass(frozen=True)
class Batch:
    """Sources that are decoded at once."""

    sources: list[list[int]]  # token ids
    max_new_tokens: int  # the most tokens of a target
    is_fixed_length: bool = False  # every target gets `max_new_tokens`, whatever its tokens are


# Decodes the first n batches; returns the best target of each sentence, without start and end.
Decode = Callable[[int], list[list[int]]]
# The context manager makes the inputs, and frees them afterwards.
System = Callable[[list[Batch], DecodingConfig], AbstractContextManager[Decode]]


@contextmanager
def torch_system(
    model: Any, decoder: Decoder | None, batches: list[Batch], decoding: DecodingConfig, **options: Any
) -> Iterator[Decode]:
    """A model that decodes by `generate`; meanwhile it has another generation config.

    Args:
        decoder: encodes and decodes, with our own search, as in `translate`; `None`: transformers' search.
        options: of our search, in place of `decoding.alpha`.
    """
    pad, own = model.config.pad_token_id, model.generation_config
    model.generation_config = GenerationConfig(
        num_beams=decoding.beams,
        length_penalty=decoding.length_penalty if decoding.beams > 1 else None,
        early_stopping=decoding.early_stopping if decoding.beams > 1 else None,
        pad_token_id=pad,
        decoder_start_token_id=model.config.decoder_start_token_id,
    )
    if decoder is not None:
        options = {"custom_generate": beam_search, "decoder": decoder, **(options or {"alpha": decoding.alpha})}
    inputs = []
    for batch in batches:
        sources = [torch.tensor(source, device=model.device) for source in batch.sources]
        input_ids = pad_sequence(sources, batch_first=True, padding_value=pad)  # (sentences, source_length)
        mask = pad_sequence([torch.ones_like(source) for source in sources], batch_first=True)
        end = None if batch.is_fixed_length else model.config.eos_token_id
        limits = {"max_new_tokens": batch.max_new_tokens, "eos_token_id": end}
        inputs.append(({"input_ids": input_ids, "attention_mask": mask}, limits))

    def decode_batch(batch: tuple[dict[str, torch.Tensor], dict[str, Any]]) -> list[list[int]]:
        tensors, limits = batch
        encoded = {} if decoder is None else {"encoder_outputs": decoder.encode(**tensors)}
        targets = model.generate(**tensors, **encoded, **options | limits)[:, 1:].tolist()
        end = limits["eos_token_id"]
        return [target[: target.index(end)] if end in target else target for target in targets]

    def decode(count: int) -> list[list[int]]:
        decoded = parallel_batches(decode_batch, inputs[:count], decoder.parallel_batches if decoder else 1)
        return [target for batch in decoded for target in batch]

    try:
        yield decode
    finally:
        model.generation_config = own


@contextmanager
def ctranslate2_system(
    folder: Path, compute_type: str, device: torch.device, batches: list[Batch], decoding: DecodingConfig
) -> Iterator[Decode]:
    """A CTranslate2 folder on the device of the other systems, in whose float32 products nobody uses TF32.

    On a CPU several batches have a worker for each thread, which is the fastest: 235 sentences per second where one
    worker of two threads translates 174. The translator exists only while it is measured: two thread pools on the same
    cores slow each other down.
    """
    import ctranslate2

    threads = torch.get_num_threads()
    workers = min(threads, len(batches)) if device.type == "cpu" else 1
    load = partial(ctranslate2.Translator, device=device.type, compute_type=compute_type, inter_threads=workers)
    # Loading in a thread that ends: quantizing computes in parallel where it is called, and its thread pool would
    # stay beside the worker's. A list, to be emptied: the caller may hold `decode` for longer.
    with ThreadPoolExecutor(1) as loading_thread:
        translators = [loading_thread.submit(load, str(folder), intra_threads=threads // workers).result()]
    inputs = [[[str(token) for token in source] for source in batch.sources] for batch in batches]

    def decode(count: int) -> list[list[int]]:
        results = []
        for batch, sources in zip(batches[:count], inputs[:count], strict=True):
            results += translators[0].translate_batch(
                sources,
                asynchronous=True,
                beam_size=decoding.beams,
                length_penalty=decoding.length_penalty,
                max_decoding_length=batch.max_new_tokens,
                min_decoding_length=batch.max_new_tokens if batch.is_fixed_length else 1,
            )
        return [[int(token) for token in result.result().hypotheses[0]] for result in results]

    try:
        yield decode
    finally:
        translators.clear()
        gc.collect()


def skip_reasons(precisions: list[str], device: torch.device, has_ctranslate2: bool) -> dict[str, str | None]:
    """Name of each system → why it is skipped on this machine; `None`: it is measured.

    Raises:
        ValueError: CTranslate2 is wanted and not installed.
    """
    if has_ctranslate2 and find_spec("ctranslate2") is None:
        raise ValueError(
            "CTranslate2 is not installed: pip install 'vanilla-transformer[benchmark]', or set ctranslate2=false"
        )
    reasons: dict[str, str | None] = {MARIAN: None}
    reason = _lacks_ctranslate2(device) if has_ctranslate2 else "ctranslate2 is false"
    reasons |= dict.fromkeys(CTRANSLATE2.values(), reason)
    reasons |= {GENERATE: None, TORCH: None}
    return reasons | {FAST[precision]: lacks_precision(precision, device) for precision in precisions}


def _lacks_ctranslate2(device: torch.device) -> str | None:
    """Why CTranslate2 cannot compute on the device of the other systems; `None`: it can."""
    if device.type == "cpu":
        return None
    import ctranslate2

    if device.type != "cuda" or not ctranslate2.get_cuda_device_count():
        return f"CTranslate2 does not compute on {device.type} here, and on another device it would be no comparison"
    return None


@contextmanager
def open_systems(names: list[str], model: Any, max_length: int) -> Iterator[tuple[dict[str, System], Path]]:
    """The systems of these names, and CTranslate2's folder, a temporary one; arguments as for `build_system`."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "ctranslate2")
        if not set(names).isdisjoint(CTRANSLATE2.values()):
            write_with_ids(model, folder, max_length)
        yield {name: build_system(name, model, folder, max_length) for name in names}, folder


def write_with_ids(model: Any, folder: Path, max_length: int) -> None:
    """Write the model for CTranslate2 into a new folder; its tokens are the token ids: "0", "1", …."""
    from vanilla_transformer.exporting.ctranslate2 import write_ctranslate2

    folder.mkdir(parents=True)
    write_ctranslate2(model, [str(token) for token in range(model.config.vocab_size)], folder, max_length=max_length)


def build_system(name: str, model: Any, folder: Path, max_length: int) -> System:
    """A system of `skip_reasons`; it shares the model's weights where it can use them as they are.

    Args:
        model: a `VanillaTransformerForConditionalGeneration` on its device. For CTranslate2 only the device counts, and
            `None` means the CPU.
        folder: the one that `write_with_ids` wrote.
        max_length: positions of sources and targets, in tokens.
    """
    for compute_type, ctranslate2_name in CTRANSLATE2.items():
        if name == ctranslate2_name:
            device = torch.device("cpu") if model is None else model.device
            return partial(ctranslate2_system, folder, compute_type, device)
    if name == MARIAN:
        marian: Any = as_marian(model, max_length)
        return partial(torch_system, marian.to(model.device), None)
    if name == GENERATE:
        return partial(torch_system, model, None)
    if name == TORCH:
        return partial(torch_system, model, fast_decoder(model, "float32", "torch"))
    precision: Any = next(precision for precision, fast_name in FAST.items() if fast_name == name)
    if precision == "bfloat16" and not is_native(model, "auto"):
        model = deepcopy(model).to(torch.bfloat16)
    return partial(torch_system, model, fast_decoder(model, precision))


def measure_decoding(
    systems: Mapping[str, System], batches: list[Batch], decoding: DecodingConfig, timing: TimingConfig
) -> dict[str, Measurement]:
    """`measure_in_turns` for decoding all batches, the largest first; the results are the targets.

    Raises:
        RuntimeError: targets of another length than asked for, with which speeds would not be comparable.
    """
    prepared = {name: partial(system, batches, decoding) for name, system in systems.items()}
    found = measure_in_turns(prepared, len(batches), timing)
    expected = [batch.max_new_tokens for batch in batches if batch.is_fixed_length for _ in batch.sources]
    for name, measurement in found.items():
        lengths = list(map(len, measurement.result))
        if expected and lengths != expected:
            raise RuntimeError(f"{name} decoded {sum(lengths)} tokens where {sum(expected)} were asked for")
    return found


def speeds(measurement: Measurement) -> dict[str, Any]:
    """`seconds` of each round, `tokens_per_second` and `sentences_per_second`, for a result of `measure_decoding`."""
    return {
        "seconds": measurement.seconds,
        "tokens_per_second": sum(map(len, measurement.result)) / measurement.median,
        "sentences_per_second": len(measurement.result) / measurement.median,
    }
