# SPDX-License-Identifier: Apache-2.0
"""The systems under test: each decodes the same sources with the same weights."""

import gc
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig, PreTrainedModel

from vanilla_transformer.benchmark.baselines import as_marian, write_ctranslate2
from vanilla_transformer.benchmark.machine import lacks_precision
from vanilla_transformer.decoder import Decoder
from vanilla_transformer.generation import beam_search
from vanilla_transformer.inference.native.engine import fast_decoder
from vanilla_transformer.inference.native.parallel_batches import parallel_batches

MARIAN, GENERATE = "MarianMT generate", "ours, generate"
CTRANSLATE2 = {"float32": "CTranslate2 float32", "int8": "CTranslate2 int8"}  # compute type → name
FAST = {precision: f"ours, fast {precision}" for precision in ("float32", "bfloat16", "int8")}
TORCH = "ours, fast float32 in torch"  # the decoder that a published folder has, without native kernels

# Decodes the first n batches; returns the best target of each sentence, without start and end.
Decode = Callable[[int], list[list[int]]]


@dataclass(frozen=True)
class Batch:
    """Token ids of the sources that are decoded at once, and the most tokens of a target."""

    sources: list[list[int]]
    max_new_tokens: int


@dataclass(frozen=True)
class Decoding:
    """How to decode; see `RealConfig`."""

    beams: int
    is_fixed_length: bool  # every target gets `max_new_tokens`, whatever its tokens are
    alpha: float
    length_penalty: float
    early_stopping: bool = True


class System(Protocol):
    """One implementation with its weights."""

    name: str

    def prepare(self, batches: list[Batch], decoding: Decoding) -> Any:
        """A context manager that gives a `Decode`; it makes the inputs before, and frees them afterwards."""
        ...


class TorchSystem:
    """A model that decodes by `generate`.

    Args:
        model: its generation config is replaced: transformers would fill in from it what the benchmark leaves open.
        decoder: encodes and decodes, with our own search, as in `translate`; `None`: transformers' search.
    """

    def __init__(self, name: str, model: PreTrainedModel, decoder: Decoder | None = None):
        self.name, self.model, self.decoder = name, model, decoder
        config: Any = model.config
        self.pad, self.end, self.start = config.pad_token_id, config.eos_token_id, config.decoder_start_token_id
        model.generation_config = GenerationConfig(pad_token_id=self.pad, decoder_start_token_id=self.start)

    @contextmanager
    def prepare(self, batches: list[Batch], decoding: Decoding) -> Iterator[Decode]:
        end = None if decoding.is_fixed_length else self.end
        decoder, options = self.decoder, {}
        if decoder is not None:
            options = {"custom_generate": beam_search, "decoder": decoder, "alpha": decoding.alpha}
        inputs = [self._inputs(batch) for batch in batches]
        configs = [
            GenerationConfig(
                num_beams=decoding.beams,
                max_new_tokens=batch.max_new_tokens,
                length_penalty=decoding.length_penalty if decoding.beams > 1 else None,
                early_stopping=decoding.early_stopping if decoding.beams > 1 else None,
                pad_token_id=self.pad,
                eos_token_id=end,
                decoder_start_token_id=self.start,
            )
            for batch in batches
        ]
        model: Any = self.model

        def decode_batch(batch: tuple[dict[str, torch.Tensor], GenerationConfig]) -> list[list[int]]:
            tensors, config = batch
            encoded = {} if decoder is None else {"encoder_outputs": decoder.encode(**tensors)}
            return model.generate(**tensors, **encoded, generation_config=config, **options)[:, 1:].tolist()

        def decode(count: int) -> list[list[int]]:
            first = list(zip(inputs[:count], configs[:count], strict=True))
            decoded = parallel_batches(decode_batch, first, 1 if decoder is None else decoder.parallel_batches)
            targets = [target for batch in decoded for target in batch]
            return [target[: target.index(end)] if end in target else target for target in targets]

        yield decode

    def _inputs(self, batch: Batch) -> dict[str, torch.Tensor]:
        """`input_ids` and `attention_mask`, `(sentences, source_length)`."""
        sources = [torch.tensor(source, device=self.model.device) for source in batch.sources]
        return {
            "input_ids": pad_sequence(sources, batch_first=True, padding_value=self.pad),
            "attention_mask": pad_sequence([torch.ones_like(source) for source in sources], batch_first=True),
        }


class CTranslate2System:
    """A CTranslate2 folder.

    Several batches have a worker for each thread, which is the fastest: 235 sentences per second where one worker of
    two threads translates 174. The translator exists only while it is measured: two thread pools on the same cores
    slow each other down.
    """

    def __init__(self, name: str, folder: Path, compute_type: str):
        self.name, self.folder, self.compute_type = name, folder, compute_type

    @contextmanager
    def prepare(self, batches: list[Batch], decoding: Decoding) -> Iterator[Decode]:
        import ctranslate2

        threads = torch.get_num_threads()
        workers = min(threads, len(batches))
        # Loading in a thread that ends: quantizing computes in parallel where it is called, and its thread pool would
        # stay beside the worker's. A list, to be emptied: the caller may hold `decode` for longer.
        with ThreadPoolExecutor(1) as loading_thread:
            loading = loading_thread.submit(
                ctranslate2.Translator,
                str(self.folder),
                device="cpu",
                compute_type=self.compute_type,
                inter_threads=workers,
                intra_threads=threads // workers,
            )
            translators = [loading.result()]
            del loading
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
                    min_decoding_length=batch.max_new_tokens if decoding.is_fixed_length else 1,
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
    reasons |= dict.fromkeys(CTRANSLATE2.values(), None if has_ctranslate2 else "ctranslate2 is false")
    reasons |= {GENERATE: None, TORCH: None}
    return reasons | {FAST[precision]: lacks_precision(precision, device) for precision in precisions}


@contextmanager
def open_systems(names: list[str], model: PreTrainedModel, max_length: int) -> Iterator[tuple[list[System], Path]]:
    """The systems of these names, and CTranslate2's folder, a temporary one; arguments as for `build_system`."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "ctranslate2")
        if not set(names).isdisjoint(CTRANSLATE2.values()):
            write_ctranslate2(model, folder, max_length)
        yield [build_system(name, lambda: model, folder, max_length) for name in names], folder


def build_system(name: str, get_model: Callable[[], PreTrainedModel], folder: Path, max_length: int) -> System:
    """A system of `skip_reasons`; it shares the model's weights where it can use them as they are.

    Args:
        get_model: gives a `VanillaTransformerForConditionalGeneration` on its device; not called for CTranslate2.
        folder: what `write_ctranslate2` wrote.
        max_length: positions of sources and targets, in tokens.
    """
    for compute_type, ctranslate2_name in CTRANSLATE2.items():
        if name == ctranslate2_name:
            return CTranslate2System(name, folder, compute_type)
    model: Any = get_model()
    if name == MARIAN:
        marian: Any = as_marian(model, max_length)
        return TorchSystem(name, marian.to(model.device))
    if name == GENERATE:
        return TorchSystem(name, model)
    if name == TORCH:
        return TorchSystem(name, model, fast_decoder(model, "float32", "torch"))
    precision: Any = next(precision for precision, fast_name in FAST.items() if fast_name == name)
    if precision == "bfloat16":
        model = deepcopy(model).to(torch.bfloat16)
    return TorchSystem(name, model, fast_decoder(model, precision))
