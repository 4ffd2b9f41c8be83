# SPDX-License-Identifier: Apache-2.0
"""Make a parallel corpus of lines in one language: back-translation, or targets of a teacher for a student.

    vanilla-transformer synthesize runs/de-en/model --input mono.de.gz --output bt
    vanilla-transformer synthesize runs/de-en/model --input mono.de.gz --output bt --samples 1 --top-k 10
    vanilla-transformer synthesize runs/teacher/model --input train.en.gz --output distilled --synthetic target

The output folder gets corpus.jsonl.gz, to train on as data.train.path, and manifest.json, which says how it was made.
The same command goes on after an interruption, and ends with the same bytes. Scores are those of translate --n-best.

Several processes share the work: torchrun --nproc_per_node 2 -m vanilla_transformer.cli synthesize MODEL --input …
"""

import argparse
import sys

from vanilla_transformer.cli.decoding_options import add_decoding_arguments, decoding_options, open_translator
from vanilla_transformer.console.arguments import UsageError, finite_float, positive_int
from vanilla_transformer.console.outputs import check_output_folder

EXTRA, NEEDS = "training", ("accelerate", "datasets")
OF_SAMPLING, OF_BEAMS = ("temperature", "top_k", "top_p", "seed"), ("n_best", "beams", "coverage_penalty")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="model folder or Hub id")
    parser.add_argument("--input", required=True, metavar="FILE", help="text to decode, plain or .gz, a line each")
    parser.add_argument("--output", required=True, metavar="FOLDER", help="folder of the corpus")
    parser.add_argument(
        "--synthetic",
        choices=["source", "target"],
        default="source",
        help="the side of the corpus that the model makes (default: %(default)s, back-translation)",
    )
    add_decoding_arguments(parser)
    parser.add_argument("--n-best", type=positive_int, metavar="N", help="the N best of the beams for each line")
    parser.add_argument("--samples", type=positive_int, metavar="N", help="draw N outputs for each line, without beams")
    parser.add_argument("--temperature", type=finite_float, metavar="T", help="of samples (default: 1)")
    parser.add_argument("--top-k", type=positive_int, metavar="K", help="sample from the K most probable tokens")
    parser.add_argument("--top-p", type=finite_float, metavar="P", help="sample from the fewest tokens of mass P")
    parser.add_argument("--seed", type=int, metavar="N", help="of samples (default: 1)")
    parser.add_argument("--min-score", type=finite_float, metavar="S", help="drop outputs with a lower score")
    parser.add_argument(
        "--shard-lines", type=positive_int, default=10_000, metavar="N", help="lines written at a time (%(default)s)"
    )


def run(arguments: argparse.Namespace) -> int:
    _check(arguments)
    check_output_folder(arguments.output, "--output")

    from pathlib import Path

    from tqdm import tqdm

    from vanilla_transformer.data.corpus import read_lines
    from vanilla_transformer.distributed.processes import process_state
    from vanilla_transformer.generation import ALPHA
    from vanilla_transformer.inference.sampling import Sampling
    from vanilla_transformer.inference.synthesize import CORPUS, SynthesisConfig, synthesize

    given = {name: value for name in OF_SAMPLING if (value := getattr(arguments, name)) is not None}
    sampling = Sampling(**given)
    next(read_lines(arguments.input), None)  # before the model is opened: is there a file?
    state = process_state()
    translator = open_translator(arguments.model, arguments.precision, arguments.engine, state.device)
    options = decoding_options(arguments)
    budgets = {name: options.pop(name) for name in ("max_batch_tokens", "max_length")}
    own = translator.model.generation_config
    if arguments.samples:
        alpha = next(a for a in (options.pop("alpha", None), getattr(own, "alpha", None), ALPHA) if a is not None)
        sampling = Sampling(**given, alpha=alpha)
    else:
        beams, count = arguments.beams or own.num_beams or 1, arguments.n_best or 1
        needed = max(count, 2 if arguments.min_score is not None else 1)  # a greedy search has no scores
        if beams < needed:
            option = f"--n-best {count}" if count == needed else "--min-score"
            raise UsageError(f"{option} needs at least {needed} beams, or --samples: add --beams {needed}")
    config = SynthesisConfig(
        synthetic=arguments.synthetic,
        count=arguments.samples or arguments.n_best or 1,
        sampling=sampling if arguments.samples else None,
        min_score=arguments.min_score,
        shard_lines=arguments.shard_lines,
        generate_kwargs=options,
        **budgets,
    )
    output = Path(arguments.output)
    with tqdm(unit=" lines", file=sys.stderr, disable=not state.is_main_process) as bar:  # of this process's share
        counts = synthesize(translator, Path(arguments.input), output, config, bar.update)
    if state.is_main_process:
        said = [f"{counts['pairs']:,} pairs of {counts['lines']:,} lines"]
        said += [f"{number:,} {name}" for name, number in counts.items() if number and name not in ("pairs", "lines")]
        print(f"{output / CORPUS}: {', '.join(said)}")
    return 0


def _check(arguments: argparse.Namespace) -> None:
    """Raise UsageError for an option of the other way of decoding."""
    unused = OF_BEAMS if arguments.samples else OF_SAMPLING
    for name in unused:
        if getattr(arguments, name) is not None:
            option = f"--{name.replace('_', '-')}"
            remedy = "is of beam search: leave it out, or --samples" if arguments.samples else "needs --samples N"
            raise UsageError(f"{option} {remedy}")
