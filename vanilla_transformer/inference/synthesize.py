# SPDX-License-Identifier: Apache-2.0
"""Synthetic parallel text: what a model makes of lines in one language, beside these lines, as a corpus.

Back-translation: a model into the source language makes the sources (Sennrich et al. 2016, arXiv:1511.06709; by
sampling: Edunov et al. 2018, arXiv:1808.09381). Sequence-level distillation: a teacher makes the targets that a student
learns (Kim and Rush 2016, arXiv:1606.07947).
"""

import gzip
import json
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from vanilla_transformer.console.outputs import write_atomically
from vanilla_transformer.data.cache import unfinished
from vanilla_transformer.distributed.processes import main_process_first, process_state, wait_for_everyone
from vanilla_transformer.inference.sampling import Sampling
from vanilla_transformer.inference.shards import MANIFEST, claim, decode_shards, describe, locked, read_manifest
from vanilla_transformer.inference.translate import Translation, sample_lines, translate_lines
from vanilla_transformer.inference.translator import Translator

CORPUS, SHARDS = "corpus.jsonl.gz", "shards"


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
    is_main = process_state().is_main_process
    with locked(output):
        with main_process_first():
            if is_main:
                claim(output, _description(translator, input, config))
        manifest = read_manifest(output)
        if "counts" in manifest and (output / CORPUS).exists():
            return manifest["counts"]
        shards, _ = decode_shards(
            input,
            config.shard_lines,
            partial(_shard, output),
            lambda path, lines, first_line: _write(path, *_decode(translator, lines, first_line, config)),
            on_progress,
        )
        if is_main:
            _join(output, shards, manifest)
        wait_for_everyone()
        return read_manifest(output)["counts"]


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
    options |= {"decoder": translator.decoder}
    if config.sampling is None:
        outputs = translate_lines(
            translator.model, translator.tokenizer, kept, at_once=1, num_return_sequences=config.count, **options
        )
    else:
        outputs = sample_lines(
            translator.model, translator.tokenizer, kept, sampling=config.sampling, count=config.count, **options
        )
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


def _join(output: Path, shards: list[Path], manifest: dict[str, Any]) -> None:
    """Shards as one file, which gzip reads as it reads one of them; they go when the manifest says that it is whole."""
    counts = Counter()
    with unfinished(output / CORPUS) as partial_path, partial_path.open("wb") as corpus:
        for path in shards:
            counts.update(json.loads(_counts_of(path).read_text("utf-8")))
            corpus.write(path.read_bytes())
    if not counts["pairs"]:
        (output / CORPUS).unlink()
        left_out = ", ".join(f"{number:,} {name}" for name, number in counts.items() if number)
        raise ValueError(f"{output}: no pair is left ({left_out})")
    write_atomically(output / MANIFEST, json.dumps(manifest | {"counts": counts}, indent=2) + "\n")
    shutil.rmtree(output / SHARDS)


def _description(translator: Translator, input: Path, config: SynthesisConfig) -> dict[str, Any]:
    options = asdict(config)
    options |= {f"sampling.{name}": value for name, value in (options.pop("sampling") or {}).items()}
    options |= options.pop("generate_kwargs")
    return describe(translator, input, options)
