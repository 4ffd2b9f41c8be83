# SPDX-License-Identifier: Apache-2.0
"""Synthetic parallel text: what a model makes of lines in one language, beside these lines, as a corpus.

Back-translation: a model into the source language makes the sources (Sennrich et al. 2016, arXiv:1511.06709; by
sampling: Edunov et al. 2018, arXiv:1808.09381). Sequence-level distillation: a teacher makes the targets that a student
learns (Kim and Rush 2016, arXiv:1606.07947).

The lines are decoded shard by shard, each by one process, and a shard is there whole or not at all. What a shard holds
depends on the options in the manifest alone, so that a resumed folder has the bytes of an uninterrupted one.
"""

import gzip
import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch

from vanilla_transformer.console.outputs import write_atomically
from vanilla_transformer.data.cache import file_fingerprint, unfinished
from vanilla_transformer.data.corpus import read_lines
from vanilla_transformer.distributed.processes import main_process_first, process_state, wait_for_everyone
from vanilla_transformer.inference.sampling import GumbelSampler, Sampling
from vanilla_transformer.inference.translate import Translation, translate_lines
from vanilla_transformer.inference.translator import Translator

CORPUS, MANIFEST, SHARDS, LOCK = "corpus.jsonl.gz", "manifest.json", "shards", ".lock"


@dataclass(frozen=True, kw_only=True)
class SynthesisConfig:
    """How a model's outputs become a corpus.

    Args:
        synthetic: the side that the model makes.
        count: outputs for each line; without `sampling` the best of beam search.
        sampling: `None`: beam search.
        min_score: outputs with a lower score (`Translation.score`) are dropped; `None`: none.
        shard_lines: lines that one process decodes, and writes, at a time.
        max_length: longer lines are left out, in tokens.
        max_batch_tokens: as for `translate_lines`.
        generate_kwargs: as for `translate_lines`.
    """

    synthetic: Literal["source", "target"] = "source"
    count: int = 1
    sampling: Sampling | None = None
    min_score: float | None = None
    shard_lines: int = 10_000
    max_length: int = 1024
    max_batch_tokens: int = 8192
    generate_kwargs: dict[str, Any]


def synthesize(
    translator: Translator,
    input: Path,
    output: Path,
    config: SynthesisConfig,
    on_progress: Callable[[int], object] = lambda lines: None,
) -> dict[str, int]:
    """Write `corpus.jsonl.gz` and `manifest.json` into the folder `output`, or go on where a killed call has stopped.

    Every process that `accelerate launch` or `torchrun` started calls it, and takes its share of the shards.

    Args:
        input: text, plain or .gz, a line each.
        on_progress: called after each shard of this process with the number of its lines.

    Returns:
        The number of lines, of those left out by each reason, and of `pairs` in the corpus.

    Raises:
        ValueError: the folder belongs to other options, another model or input, or another process; no pair is left;
            and as `read_lines` and `translate_lines`.
    """
    state = process_state()
    with _locked(output, state.is_main_process):
        with main_process_first():
            if state.is_main_process:
                _claim(output, _description(translator, input, config))
        manifest = _manifest(output)
        if "counts" in manifest and (output / CORPUS).exists():
            return manifest["counts"]
        is_written = {path.name for path in (output / SHARDS).glob("*.gz")}
        wait_for_everyone()  # before any process writes: all share out the same shards
        shards = missing = 0
        first_line = 1
        for lines in _shards(input, config.shard_lines):
            path = _shard(output, shards)
            if path.name not in is_written:
                if missing % state.num_processes == state.process_index:
                    _write(path, *_decode(translator, lines, first_line, config))
                    on_progress(len(lines))
                missing += 1
            shards, first_line = shards + 1, first_line + len(lines)
        if not shards:
            raise ValueError(f"{input} is empty: there is nothing to decode")
        wait_for_everyone(uneven=True)
        if state.is_main_process:
            _join(output, shards, manifest)
        wait_for_everyone()
        return _manifest(output)["counts"]


def _shards(input: Path, size: int) -> Iterator[list[str]]:
    lines = read_lines(input)
    return iter(lambda: list(islice(lines, size)), [])


def _shard(output: Path, number: int) -> Path:
    return output / SHARDS / f"{number:06}.jsonl.gz"


def _counts_of(shard: Path) -> Path:
    return shard.with_name(shard.name.replace(".jsonl.gz", ".json"))


def _decode(
    translator: Translator, lines: Sequence[str], first_line: int, config: SynthesisConfig
) -> tuple[list[dict[str, Any]], Counter[str]]:
    """The rows of a shard, in the order of its lines, and how many lines and outputs have become what."""
    counts = Counter({"lines": len(lines)})
    kept = list(lines)  # a line that is left out is empty, which is not decoded: errors name the right line
    for i, ids in enumerate(translator.tokenizer(kept)["input_ids"]):
        reason = "empty lines" if not kept[i].strip() else "too long" if len(ids) > config.max_length else None
        if reason is not None:
            kept[i] = ""
            counts[reason] += 1
    options = config.generate_kwargs | {"max_batch_tokens": config.max_batch_tokens, "first_line": first_line}
    decode = partial(
        translate_lines, translator.model, translator.tokenizer, kept, decoder=translator.decoder, at_once=1, **options
    )
    if config.sampling is None:
        outputs = decode(num_return_sequences=config.count)
    else:
        sampling, samples = config.sampling, range(config.count)
        drawn = [
            decode(
                num_beams=1,
                new_sampler=lambda places, number=number: GumbelSampler(
                    sampling, [(first_line + place, number) for place in places]
                ),
            )
            for number in samples
        ]
        outputs = [[translation for [translation] in of_line] for of_line in zip(*drawn, strict=True)]
    rows = []
    for number, (line, translations) in enumerate(zip(kept, outputs, strict=True), start=first_line):
        for translation in translations if line else ():
            reason = _reason_to_drop(translation, config)
            if reason is not None:
                counts[reason] += 1
                continue
            sides = {"source": translation.text, "target": line}
            if config.synthetic == "target":
                sides = {"source": line, "target": translation.text}
            score = {} if translation.score is None else {"score": round(translation.score, 4)}
            rows.append({**sides, **score, "line": number})
    counts["pairs"] = len(rows)
    return rows, counts


def _reason_to_drop(translation: Translation, config: SynthesisConfig) -> str | None:
    if not translation.text.strip():
        return "empty outputs"
    if config.min_score is not None and translation.score is not None and translation.score < config.min_score:
        return "below the lowest score"
    return None


def _write(shard: Path, rows: list[dict[str, Any]], counts: Counter[str]) -> None:
    text = "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows)
    shard.parent.mkdir(exist_ok=True)
    write_atomically(_counts_of(shard), json.dumps(counts))  # first: where the shard is, its counts are
    with unfinished(shard) as partial_path:
        partial_path.write_bytes(gzip.compress(text.encode(), mtime=0))


def _join(output: Path, shards: int, manifest: dict[str, Any]) -> None:
    """Shards as one file, which gzip reads as it reads one of them; they go when the manifest says that it is whole."""
    counts = Counter()
    with unfinished(output / CORPUS) as partial_path, partial_path.open("wb") as corpus:
        for path in (_shard(output, number) for number in range(shards)):
            counts.update(json.loads(_counts_of(path).read_text("utf-8")))
            corpus.write(path.read_bytes())
    if not counts["pairs"]:
        (output / CORPUS).unlink()
        left_out = ", ".join(f"{number:,} {name}" for name, number in counts.items() if number)
        raise ValueError(f"{output}: no pair is left ({left_out})")
    write_atomically(output / MANIFEST, json.dumps(manifest | {"counts": counts}, indent=2) + "\n")
    shutil.rmtree(output / SHARDS)


def _claim(output: Path, description: dict[str, Any]) -> None:
    """Begin the folder, or check that it was begun in the same way."""
    if (output / MANIFEST).exists():
        begun = _manifest(output)
        for name in dict.fromkeys([*description, *begun]):
            before, now = begun.get(name), description.get(name)
            if name != "counts" and before != now:
                raise ValueError(
                    f"{output} was begun with {name}={before}, and this is {name}={now}; go on with the former, or "
                    "name another --output"
                )
    elif foreign := sorted(path.name for path in output.iterdir() if path.name != LOCK):
        raise ValueError(f"{output} has {foreign[0]} in it, but no {MANIFEST}; name an empty or new folder as --output")
    else:
        write_atomically(output / MANIFEST, json.dumps(description, indent=2) + "\n")


def _manifest(output: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((output / MANIFEST).read_text("utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{output / MANIFEST} is damaged; remove the folder, or name another --output") from error


def _description(translator: Translator, input: Path, config: SynthesisConfig) -> dict[str, Any]:
    """All that decides the bytes of a shard, with flat names for the user's message."""
    options = asdict(config)
    options |= {f"sampling.{name}": value for name, value in (options.pop("sampling") or {}).items()}
    options |= options.pop("generate_kwargs")
    model, precision = translator.model, getattr(translator.decoder, "precision", "float32")  # the native engine's own
    dtype = str(model.dtype) if precision == "float32" else precision
    computed = {"engine": translator.engine, "dtype": dtype, "device": model.device.type}
    return {"model": _model_fingerprint(translator), "input": file_fingerprint(input), **computed, **options}


def _model_fingerprint(translator: Translator) -> str:
    """SHA-256 of weights, configurations and tokenizer, wherever they came from."""
    digest, model = hashlib.sha256(), translator.model
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).cpu().numpy())
    for config in (model.config, model.generation_config):
        values = config.to_dict()
        for changing in ("transformers_version", "_name_or_path"):
            values.pop(changing, None)
        digest.update(json.dumps(values, sort_keys=True, default=str).encode())
    with TemporaryDirectory() as folder:
        translator.tokenizer.save_pretrained(folder)
        for path in sorted(path for path in Path(folder).rglob("*") if path.is_file()):
            digest.update(path.read_bytes())
    return digest.hexdigest()


@contextmanager
def _locked(output: Path, is_main: bool) -> Iterator[None]:
    """The folder, for the processes of one command; the system releases the lock of one that is killed."""
    if not is_main:
        yield
        return
    from filelock import FileLock, Timeout

    output.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(output / LOCK, timeout=0):
            yield
    except Timeout as error:
        raise ValueError(
            f"{output} is in use by another process; wait for its end, or name another --output"
        ) from error
