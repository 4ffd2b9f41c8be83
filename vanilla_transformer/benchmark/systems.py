# SPDX-License-Identifier: Apache-2.0
"""Those that are measured: each decodes the same sources with the same weights."""

import gc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import GenerationConfig, PreTrainedModel

from vanilla_transformer.benchmark.baselines import as_marian
from vanilla_transformer.benchmark.machine import lacks_precision
from vanilla_transformer.decoder import Decoder
from vanilla_transformer.generation import beam_search
from vanilla_transformer.inference.native.engine import Engine, fast_decoder
from vanilla_transformer.inference.native.parallel_batches import parallel_batches

MARIAN, GENERATE = "MarianMT generate", "ours, generate"
CTRANSLATE2 = {"float32": "CTranslate2 float32", "int8": "CTranslate2 int8"}  # compute type → name
FAST = {one: f"ours, fast {one}" for one in ("float32", "bfloat16", "int8")}  # precision → name
TORCH = "ours, fast float32 in torch"  # what a published folder has, without the loops compiled for a CPU

# Decodes the first so many batches; returns the best target of each sentence, without start and end.
Run = Callable[[int], list[list[int]]]


@dataclass(frozen=True)
class Batch:
    """Sources that are decoded at once, as numbers of tokens, and the longest target in tokens."""

    sources: list[list[int]]
    longest: int


@dataclass(frozen=True)
class Decoding:
    """How to decode.

    Args:
        beams: hypotheses of a sentence; 1: greedy.
        is_exact: nothing ends a target before the longest.
        alpha: of the paper's length penalty.
        length_penalty: of those that divide by length^length_penalty.
        early_stopping: of MarianMT and ours; see `RealConfig`.
    """

    beams: int
    is_exact: bool
    alpha: float
    length_penalty: float
    early_stopping: bool = True


class Contender(Protocol):
    """One implementation with its weights."""

    name: str

    def ready(self, batches: list[Batch], decoding: Decoding) -> Any:
        """A context manager that gives a `Run`; what it needs beside the weights is made before, and gone after."""
        ...


class TorchContender:
    """A model whose `generate` is measured.

    Args:
        model: its generation config is replaced: what it leaves open, transformers would fill in from there.
        options: of `generate`, beside the generation config. A native decoder in them also encodes, and takes several
            batches at once, as `translate` does.
        has_paper_penalty: `generate` takes the paper's `alpha`.
    """

    def __init__(
        self, name: str, model: PreTrainedModel, options: dict[str, Any] | None = None, has_paper_penalty: bool = False
    ):
        self.name, self.model, self.options, self.has_paper_penalty = name, model, options or {}, has_paper_penalty
        config: Any = model.config
        self.pad, self.end, self.start = config.pad_token_id, config.eos_token_id, config.decoder_start_token_id
        model.generation_config = GenerationConfig(pad_token_id=self.pad, decoder_start_token_id=self.start)

    @contextmanager
    def ready(self, batches: list[Batch], decoding: Decoding) -> Iterator[Run]:
        end = None if decoding.is_exact else self.end
        options = self.options | ({"alpha": decoding.alpha} if self.has_paper_penalty else {})
        penalty = decoding.length_penalty if decoding.beams > 1 else None
        inputs = [self._inputs(batch) for batch in batches]
        configs = [
            GenerationConfig(
                num_beams=decoding.beams,
                max_new_tokens=batch.longest,
                length_penalty=penalty,
                early_stopping=decoding.early_stopping if decoding.beams > 1 else None,
                pad_token_id=self.pad,
                eos_token_id=end,
                decoder_start_token_id=self.start,
            )
            for batch in batches
        ]
        model: Any = self.model
        decoder: Decoder | None = self.options.get("decoder")

        def decode(one: tuple[dict[str, torch.Tensor], GenerationConfig]) -> list[list[int]]:
            batch, config = one
            encoded = {} if decoder is None else {"encoder_outputs": decoder.encode(**batch)}
            return model.generate(**batch, **encoded, generation_config=config, **options)[:, 1:].tolist()

        def run(count: int) -> list[list[int]]:
            those = list(zip(inputs[:count], configs[:count], strict=True))
            decoded = parallel_batches(decode, those, 1 if decoder is None else decoder.parallel_batches)
            found = [row for rows in decoded for row in rows]
            return found if end is None else [row[: row.index(end)] if end in row else row for row in found]

        yield run

    def _inputs(self, batch: Batch) -> dict[str, torch.Tensor]:
        """`input_ids` and `attention_mask`, `(sentences, source_length)`."""
        width = max(len(source) for source in batch.sources)
        ids = torch.tensor([source + [self.pad] * (width - len(source)) for source in batch.sources])
        mask = torch.tensor([[1] * len(source) + [0] * (width - len(source)) for source in batch.sources])
        return {"input_ids": ids.to(self.model.device), "attention_mask": mask.to(self.model.device)}


class CTranslate2Contender:
    """A CTranslate2 folder.

    Several batches have a worker for each thread, which is the fastest: 235 sentences per second where one worker of
    two threads translates 174. A translator lives as long as it is measured, for two teams of threads on the same
    cores slow each other down.
    """

    def __init__(self, name: str, folder: Path, compute_type: str):
        self.name, self.folder, self.compute_type = name, folder, compute_type

    @contextmanager
    def ready(self, batches: list[Batch], decoding: Decoding) -> Iterator[Run]:
        import ctranslate2

        threads = torch.get_num_threads()
        workers = min(threads, len(batches))

        def load() -> Any:
            return ctranslate2.Translator(
                str(self.folder),
                device="cpu",
                compute_type=self.compute_type,
                inter_threads=workers,
                intra_threads=threads // workers,
            )

        # In a thread of its own, which ends: quantizing computes in parallel where it is called, and that team of
        # threads would stay beside the worker's. And a list, to be emptied: who was given `run` may hold it for longer.
        with ThreadPoolExecutor(1) as own_thread:
            alive = [own_thread.submit(load).result()]
        inputs = [[[str(token) for token in source] for source in batch.sources] for batch in batches]

        def run(count: int) -> list[list[int]]:
            begun = []
            for batch, sources in zip(batches[:count], inputs[:count], strict=True):
                begun += alive[0].translate_batch(
                    sources,
                    asynchronous=True,
                    beam_size=decoding.beams,
                    length_penalty=decoding.length_penalty,
                    max_decoding_length=batch.longest,
                    min_decoding_length=batch.longest if decoding.is_exact else 1,
                )
            return [[int(token) for token in one.result().hypotheses[0]] for one in begun]

        try:
            yield run
        finally:
            alive.clear()
            gc.collect()


def names_of_contenders(precisions: list[str], device: torch.device, has_ctranslate2: bool) -> dict[str, str | None]:
    """Name of each contender → why it is left out on this machine; `None`: it is not.

    Raises:
        ValueError: CTranslate2 is wanted and not installed.
    """
    if has_ctranslate2 and find_spec("ctranslate2") is None:
        raise ValueError(
            "CTranslate2 is not installed: pip install 'vanilla-transformer[benchmark]', or set ctranslate2=false"
        )
    absent = None if has_ctranslate2 else "ctranslate2 is false"
    names: dict[str, str | None] = {MARIAN: None}
    names |= dict.fromkeys(CTRANSLATE2.values(), absent)
    names |= {GENERATE: None, TORCH: None}
    return names | {FAST[one]: lacks_precision(one, device) for one in precisions}


def make_contender(name: str, model: Callable[[], PreTrainedModel], folder: Path, longest: int) -> Contender:
    """One of `names_of_contenders`, with weights that it shares with the model where they are the same.

    Args:
        model: gives a `VanillaTransformerForConditionalGeneration` on its device; not called for CTranslate2.
        folder: CTranslate2's, written before.
        longest: of sources and targets, in tokens.
    """
    for compute_type, own in CTRANSLATE2.items():
        if name == own:
            return CTranslate2Contender(name, folder, compute_type)
    if name == MARIAN:
        original = model()
        marian: Any = as_marian(original, longest)
        return TorchContender(name, marian.to(original.device))
    if name == GENERATE:
        return TorchContender(name, model())
    if name == TORCH:
        return _fast(name, "float32", "torch", model())
    return _fast(name, next(precision for precision, own in FAST.items() if name == own), "auto", model())


def _fast(name: str, precision: Any, engine: Engine, model: Any) -> TorchContender:
    if precision == "bfloat16":
        model = deepcopy(model).to(torch.bfloat16)
    options = {"custom_generate": beam_search, "decoder": fast_decoder(model, precision, engine)}
    return TorchContender(name, model, options, has_paper_penalty=True)
