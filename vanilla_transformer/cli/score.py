# SPDX-License-Identifier: Apache-2.0
"""Score given translations by a model: their log-probabilities, and the perplexity of the file.

    vanilla-transformer score runs/multi30k/model --source test.en --target test.de > test.scores
    vanilla-transformer score runs/multi30k/model --source test.en --target test.de --alpha 0
    vanilla-transformer score runs/multi30k/model --source val.en --target val.de --calibration calibration.png

One score a line, in the order of the pairs, as translate --n-best prints it: the log-probability divided by the length
penalty; --alpha 0 prints the log-probability. --json prints an object a line instead, with the tokens and their
probabilities. The perplexity goes to stderr.

--calibration draws how often the most probable token is the target's, against its probability.
"""

import argparse
import math
import sys
from pathlib import Path

from vanilla_transformer.cli.decoding_options import (
    add_model_arguments,
    add_scoring_arguments,
    decoding_options,
    open_models,
)
from vanilla_transformer.cli.plot import check_picture
from vanilla_transformer.cli.translate import json_line
from vanilla_transformer.console.extras import check_installed

EXTRA, NEEDS = None, ()  # torch and transformers bring all it needs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    parser.add_argument("--source", required=True, metavar="FILE", help="text, plain or .gz, a line each")
    parser.add_argument("--target", required=True, metavar="FILE", help="its translations, which are scored")
    add_scoring_arguments(parser)
    parser.add_argument("--json", action="store_true", help="an object a line, with each token's probability")
    parser.add_argument("--calibration", metavar="FILE", help="draw the calibration: png or svg")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")


def run(arguments: argparse.Namespace) -> int:
    if arguments.calibration is not None:
        check_picture(arguments.calibration)
        check_installed(["matplotlib"])

    from tqdm import tqdm

    from vanilla_transformer.data.corpus import aligned_lines

    pairs = list(aligned_lines(arguments.source, arguments.target))
    translator = open_models(arguments)
    total, tokens = 0.0, 0
    confidences: list[tuple[float, bool]] = []  # of the most probable token, and whether it is the target's
    with tqdm(total=len(pairs), unit=" lines", file=sys.stderr, disable=arguments.quiet) as bar:
        scored = translator.score(
            ((source, target) for source, target in pairs),
            best_log_probs=arguments.calibration is not None,
            **decoding_options(arguments),
        )
        for number, translation in enumerate(scored, start=1):
            total, tokens = total + sum(translation.log_probs), tokens + len(translation.log_probs)
            for value, best in zip(translation.log_probs, translation.best_log_probs, strict=False):
                confidences.append((math.exp(best), value == best))
            line = json_line(number, "target", translation) if arguments.json else f"{translation.score or 0.0:.6f}"
            sys.stdout.buffer.write(f"{line}\n".encode())
            bar.update()
    sys.stdout.buffer.flush()
    if tokens:
        mean = total / tokens
        print(
            f"{len(pairs):,} pairs, {tokens:,} target tokens: log-probability {mean:.4f} a token, perplexity "
            f"{math.exp(-mean):.4f}",
            file=sys.stderr,
        )
    if arguments.calibration is not None:
        from vanilla_transformer.visualization.calibration import calibration, plot_calibration

        bins = calibration(confidences)
        Path(arguments.calibration).parent.mkdir(parents=True, exist_ok=True)
        plot_calibration(bins).savefig(arguments.calibration)
        print(f"{arguments.calibration}: expected calibration error {bins.error:.4f}", file=sys.stderr)
    return 0
