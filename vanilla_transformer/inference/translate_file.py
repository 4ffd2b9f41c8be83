# SPDX-License-Identifier: Apache-2.0
"""A large file, translated by all processes, that goes on where a killed call has stopped."""

import gzip
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vanilla_transformer.data.cache import unfinished
from vanilla_transformer.distributed.processes import main_process_first, process_state, wait_for_everyone
from vanilla_transformer.inference.line_options import check_counts, options_of
from vanilla_transformer.inference.shards import claim, decode_shards, describe, locked
from vanilla_transformer.inference.translate import Translation, translate_lines
from vanilla_transformer.inference.translator import Translator


def translate_file(
    translator: Translator,
    input: Path,
    output: Path,
    as_text: Callable[[int, list[Translation]], str],
    shard_lines: int = 10_000,
    on_progress: Callable[[int], object] = lambda lines: None,
    **options,
) -> int:
    """Write the translation of every line of `input` to `output`, which appears when it is whole.

    Until then a folder beside it, OUTPUT.shards, has the parts that are done. Every process that `accelerate launch` or
    `torchrun` started calls this, and takes its share of them.

    Args:
        input, output: text, plain or .gz.
        as_text: number of a line, counted from 1, and its translations → what `output` has of them; must depend on
            `options` alone.
        shard_lines: lines that one process translates, and writes, at a time.
        on_progress: called after each shard of this process with the number of its lines.
        options: as for `translate_lines`; those with a row for each line have rows for the whole file.

    Returns:
        The number of lines.

    Raises:
        ValueError: OUTPUT.shards belongs to other options, another model or input, or is in use; and as `read_lines`
            and `translate_lines`.
    """
    is_main, is_gzip, folder = process_state().is_main_process, output.suffix == ".gz", Path(f"{output}.shards")

    def write(shard: Path, lines: list[str], first_line: int) -> None:
        own = options_of(options, range(first_line - 1, first_line - 1 + len(lines)))
        # One batch at a time, for what is in it must not depend on the number of threads.
        best = translate_lines(
            translator.model,
            translator.tokenizer,
            lines,
            decoder=translator.decoder,
            at_once=1,
            first_line=first_line,
            **own,
        )
        text = "".join(map(as_text, range(first_line, first_line + len(lines)), best)).encode()
        with unfinished(shard) as path:
            path.write_bytes(gzip.compress(text, mtime=0) if is_gzip else text)

    with locked(folder):
        with main_process_first():
            if is_main:
                changing = {"is_gzip": is_gzip, "shard_lines": shard_lines} | options
                claim(folder, describe(translator, input, {name: _short(value) for name, value in changing.items()}))
        shards, lines = decode_shards(input, shard_lines, lambda number: folder / f"{number:06}", write, on_progress)
        check_counts(options, lines)
        if is_main:
            with unfinished(output) as path, path.open("wb") as joined:  # gzip reads several files as one
                for shard in shards:
                    joined.write(shard.read_bytes())
            for shard in shards:  # before the manifest: a call that is killed here can go on
                shard.unlink()
            shutil.rmtree(folder)
        wait_for_everyone()
    return lines


def _short(value: Any) -> Any:
    """The value for a manifest; of prefixes and terms their SHA-256."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=vars).encode()).hexdigest()
