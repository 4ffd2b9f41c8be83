# SPDX-License-Identifier: Apache-2.0
"""Time and memory of `prepare` by the number of pairs, which must grow in proportion, and hardly.

    python -m tests.preparation.preparation_size --source all.en.gz --target all.fr.gz --pairs 100_000 1_000_000

Each synthetic pair joins three pairs of the given files, drawn with a seed; every tenth is an earlier pair, as it was
or with other punctuation. Each size is prepared by a process of its own, for English and French unless `--languages`
says otherwise. 10 million pairs need about 15 GB of disk.
"""

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from vanilla_transformer.data.corpus import CorpusConfig, read_aligned
from vanilla_transformer.preparation.configuration import FilterConfig, PrepareConfig
from vanilla_transformer.preparation.prepare import prepare

MEGABYTE = 2**20
JOINED = 3  # sentences of a synthetic pair
REPEATED = 0.1  # share of the pairs that repeat an earlier one


def write_pairs(folder: Path, source: str, target: str, pairs: int) -> None:
    """Write the synthetic corpus."""
    sentences = [(row["source"], row["target"]) for row in read_aligned(source, target)]
    draws, earlier = random.Random(1), []
    with (
        (folder / "raw.source").open("w", encoding="utf-8") as of_source,
        (folder / "raw.target").open("w", encoding="utf-8") as of_target,
    ):
        for _ in range(pairs):
            if earlier and draws.random() < REPEATED:
                ends = draws.choice(["", " …"])
                pair = [text + ends for text in draws.choice(earlier)]
            else:
                pair = [" ".join(side) for side in zip(*draws.choices(sentences, k=JOINED), strict=True)]
                if len(earlier) < 10_000:
                    earlier.append(pair)
            of_source.write(f"{pair[0]}\n")
            of_target.write(f"{pair[1]}\n")


def measure(folder: Path, languages: list[str], processes: int | None) -> dict[str, float]:
    """Prepare the corpus in this process, and say what it took: CPU seconds of all, and peaks of resident memory."""
    source_language, target_language = languages
    filters = FilterConfig(
        source_scripts=["Latin"],
        target_scripts=["Latin"],
        source_language=source_language,
        target_language=target_language,
    )
    corpus = {"raw": CorpusConfig(source=str(folder / "raw.source"), target=str(folder / "raw.target"))}
    config = PrepareConfig(output_dir=str(folder / "out"), corpora=corpus, filters=filters, processes=processes)
    counted = prepare(config)["corpora"]["raw"]
    main, workers = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = [usage.ru_utime + usage.ru_stime for usage in (main, workers)]
    peaks = [usage.ru_maxrss * 1024 / MEGABYTE for usage in (main, workers)]
    return counted["dropped"] | {
        "kept": counted["kept"],
        "main seconds": seconds[0],
        "workers' seconds": seconds[1],
        "main MB": peaks[0],
        "largest worker MB": peaks[1],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True)
    parser.add_argument("--target", required=True)
    parser.add_argument("--pairs", type=int, nargs="+", default=[100_000])
    parser.add_argument("--languages", nargs=2, default=["en", "fr"])
    parser.add_argument("--processes", type=int)
    parser.add_argument("--folder", help=argparse.SUPPRESS)  # of the process that measures
    arguments = parser.parse_args()
    if arguments.folder:
        print(json.dumps(measure(Path(arguments.folder), arguments.languages, arguments.processes)))
        return
    for pairs in arguments.pairs:
        with tempfile.TemporaryDirectory() as folder:
            write_pairs(Path(folder), arguments.source, arguments.target, pairs)
            command = [sys.executable, "-m", "tests.preparation.preparation_size", *sys.argv[1:], "--folder", folder]
            environment = os.environ | {"HF_DATASETS_CACHE": str(Path(folder) / "cache")}
            output = subprocess.run(
                command, check=True, stdout=subprocess.PIPE, encoding="utf-8", env=environment
            ).stdout
        found = json.loads(output.splitlines()[-1])
        seconds = found["main seconds"] + found["workers' seconds"]
        print(
            f"{pairs:,} pairs: {seconds / pairs * 1e6:.0f} µs of a core a pair", {k: round(v) for k, v in found.items()}
        )


if __name__ == "__main__":
    main()
