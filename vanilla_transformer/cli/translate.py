# SPDX-License-Identifier: Apache-2.0
"""Translate standard input line by line.

    vanilla-transformer translate runs/multi30k/model < test.en > test.hyp
    vanilla-transformer translate runs/multi30k/model --n-best 4 < test.en

One line in, one line out, in order; an empty line stays empty. With --n-best N, N lines of
"line number <tab> score <tab> translation" for each line.
"""

import argparse
import sys
from typing import TYPE_CHECKING

from vanilla_transformer.cli.usage import UsageError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="model folder or Hub id")
    add_decoding_arguments(parser)
    parser.add_argument("--n-best", type=positive, metavar="N", help="print the N best translations with scores")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")


def add_decoding_arguments(parser: argparse.ArgumentParser) -> None:
    """What every command that translates understands."""
    parser.add_argument("--beams", type=positive, metavar="N", help="beam width (default: the model's own)")
    parser.add_argument(
        "--batch-tokens", type=positive, default=8192, metavar="N", help="source tokens x beams at once (%(default)s)"
    )
    parser.add_argument(
        "--max-tokens", type=positive, default=1024, metavar="N", help="refuse lines of more tokens (%(default)s)"
    )


def positive(text: str) -> int:
    """An argparse type: a whole number of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} must be at least 1")
    return value


def open_model(path: str, device: "torch.device | None" = None) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """A model folder's model and tokenizer, on the best device there is unless one is given."""
    from transformers.utils.logging import disable_progress_bar

    from vanilla_transformer.data.tokenizer import load_tokenizer
    from vanilla_transformer.evaluation.model_folder import default_device, load_model_folder

    disable_progress_bar()  # of reading the weights; a command has its own
    return load_model_folder(path, device or default_device()), load_tokenizer(path)


def run(arguments: argparse.Namespace) -> int:
    from tqdm import tqdm

    from vanilla_transformer.data.corpus import decode_lines
    from vanilla_transformer.evaluation.translate import translate_stream

    model, tokenizer = open_model(arguments.model)
    _check_n_best(arguments.n_best, arguments.beams or model.generation_config.num_beams or 1)
    done = 0
    with tqdm(unit=" lines", file=sys.stderr, disable=arguments.quiet) as bar:
        translations = translate_stream(
            model,
            tokenizer,
            decode_lines(sys.stdin.buffer, "standard input"),
            **({"window": 1} if sys.stdin.isatty() else {}),  # who types wants each answer before the next line
            max_batch_tokens=arguments.batch_tokens,
            max_length=arguments.max_tokens,
            num_return_sequences=arguments.n_best or 1,
            on_progress=lambda in_window, _: bar.update(done + in_window - bar.n),
            **({"num_beams": arguments.beams} if arguments.beams else {}),
        )
        for best in translations:
            done += 1
            if arguments.n_best:
                # An empty line is not decoded: it has one translation, with certainty.
                _write("".join(f"{done}\t{one.score or 0.0:.4f}\t{one_line(one.text)}\n" for one in best))
            else:
                _write(f"{one_line(best[0].text)}\n")
    return 0


def _write(text: str) -> None:
    """To standard output, at once: as UTF-8 and with "\\n" alone ending a line, whatever the locale."""
    sys.stdout.buffer.write(text.encode())
    sys.stdout.buffer.flush()


def _check_n_best(n_best: int | None, beams: int) -> None:
    if n_best is None:
        return
    if n_best > beams:
        raise UsageError(f"--n-best {n_best} needs at least as many beams: add --beams {max(2, n_best)}")
    if beams == 1:
        raise UsageError("--n-best prints scores, which only a beam search gives: add --beams 2 or more")


def one_line(text: str) -> str:
    """A model may produce a line feed; the output keeps one line for each input line."""
    return text.replace("\n", " ")
