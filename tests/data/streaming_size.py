# SPDX-License-Identifier: Apache-2.0
"""Memory that a streamed corpus takes, which must not grow with its length.

    python -m tests.data.streaming_size --pairs 10_000_000

Synthetic pairs are written as gzipped json lines in several files, and read as training reads them: loaded as a
stream, tokenised, shuffled by files and buffer, put into batches of 25,000 tokens. Figures are printed after a
hundredth of the pairs, and after every tenth.
"""

import argparse
import gzip
import json
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from datasets import IterableDataset

from vanilla_transformer.data.batches import StreamingTokenBatches
from vanilla_transformer.data.corpus import CorpusConfig, load_corpus
from vanilla_transformer.data.tokenized_pairs import prepare_pairs
from vanilla_transformer.data.tokenizer import TokenizerConfig, train_tokenizer

FILES = 16
BUDGET = 25_000  # tokens of a side, as in the paper


@dataclass(frozen=True)
class Size:
    """Measured after `pairs` pairs: `seconds` of CPU time, and the peak of resident `megabytes`."""

    pairs: int
    batches: int
    seconds: float
    megabytes: float


def write_shards(folder: Path, pairs: int) -> None:
    """Numbers digit by digit, and in reverse, behind a filler of many lengths."""
    for shard in range(FILES):
        with gzip.open(folder / f"train-{shard:02d}.jsonl.gz", "wt", compresslevel=1, encoding="utf-8") as file:
            for number in range(shard, pairs, FILES):
                digits, filler = str(number), "x " * (number % 9)
                pair = {"source": filler + " ".join(digits), "target": " ".join(digits[::-1])}
                file.write(f"{json.dumps(pair)}\n")


def stream(folder: Path, pairs: int, pool_size: int) -> Iterator[Size]:
    """Read all, and yield sizes on the way.

    Raises:
        AssertionError: a pair came twice or never.
    """
    tokenizer = train_tokenizer(["x 0 1 2 3 4 5 6 7 8 9"], TokenizerConfig(kind="symbols"))
    corpus = load_corpus(CorpusConfig(dataset=str(folder), streaming=True))
    assert isinstance(corpus, IterableDataset)
    rows, _ = prepare_pairs(corpus, tokenizer, max_length=100)
    batches = StreamingTokenBatches(
        rows, max_source_tokens=BUDGET, max_target_tokens=BUDGET, seed=1, pool_size=pool_size
    )
    milestones = iter([pairs // 100, *(pairs * tenth // 10 for tenth in range(1, 11))])
    milestone, seen, total, start = next(milestones), 0, 0, time.process_time()
    for number, batch in enumerate(batches, start=1):
        seen += len(batch)
        digits = (tokenizer.convert_ids_to_tokens(row["labels"][-2::-1]) for row in batch)  # without </s>
        total += sum(int("".join(tokens)) for tokens in digits)
        if seen >= milestone:
            yield Size(seen, number, time.process_time() - start, max_megabytes())
            milestone = next(milestones, sys.maxsize)
    assert (seen, total) == (pairs, pairs * (pairs - 1) // 2)


def max_megabytes() -> float:
    """The peak of this process's resident memory."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # kilobytes; on a Mac bytes
    return peak / (1e6 if sys.platform == "darwin" else 1e3)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--pairs", type=int, default=1_000_000)
    parser.add_argument("--pool-size", type=int, default=100_000, help="pairs in a pool")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_shards(Path(folder), arguments.pairs)
        written = sum(path.stat().st_size for path in Path(folder).iterdir())
        print(f"{arguments.pairs:,} pairs in {FILES} files of {written / 1e6:,.0f} MB in all", flush=True)
        for size in stream(Path(folder), arguments.pairs, arguments.pool_size):
            speed = size.pairs / size.seconds
            figures = f"{size.batches:>8,} batches {speed:>7,.0f} pairs/s of a core {size.megabytes:>6.0f} MB resident"
            print(f"{size.pairs:>12,} pairs {figures} at most", flush=True)


if __name__ == "__main__":
    main()
