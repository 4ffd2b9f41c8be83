# SPDX-License-Identifier: Apache-2.0
"""Translate standard input line by line, by the paper's beam search.

    vanilla-transformer translate runs/multi30k/model < test.en > test.hyp
    vanilla-transformer translate runs/multi30k/model --n-best 4 < test.en
    vanilla-transformer translate runs/multi30k/model --precision int8 < test.en > test.hyp

One line in, one line out, in order; an empty line stays empty. With --n-best N, N lines of
"line number <tab> score <tab> translation" for each line, fewer where no more are possible; the score is the
log-probability over the paper's length penalty ((5 + length) / 6)^alpha.

A program that writes to it through a pipe gets the answers to the lines that have come, without closing the pipe.
"""

import argparse
import math
import sys
from typing import TYPE_CHECKING, Any

from vanilla_transformer.console.fast_imports import without_garbage_collection
from vanilla_transformer.console.streams import input_stream
from vanilla_transformer.console.usage import UsageError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from vanilla_transformer.inference.native.engine import Engine
    from vanilla_transformer.inference.translator import Translator
    from vanilla_transformer.packed_linear import Precision


EXTRA, NEEDS = None, ()  # what torch and transformers bring is enough
WINDOW = 2048  # lines that are sorted by length together, at most


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="model folder or Hub id")
    add_decoding_arguments(parser)
    parser.add_argument("--n-best", type=positive, metavar="N", help="print the N best translations with scores")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")


def add_decoding_arguments(parser: argparse.ArgumentParser) -> None:
    """What every command that translates understands."""
    parser.add_argument(
        "--beams",
        type=positive,
        metavar="N",
        help="beam width, 1: greedy (default: the model's own)",
    )
    parser.add_argument(
        "--alpha",
        type=finite,
        metavar="A",
        help="of the paper's length penalty; more: longer translations (default: the model's own, else 0.6)",
    )
    parser.add_argument(
        "--precision",
        choices=["float32", "bfloat16", "int8"],
        default="float32",
        help="to compute in (%(default)s); int8 needs a CPU",
    )
    parser.add_argument(
        "--engine",
        choices=["auto", "native", "torch"],
        default="auto",
        help="what decodes: loops compiled for this CPU, or PyTorch (%(default)s: the first where it can)",
    )
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


def finite(text: str) -> float:
    """An argparse type: a number, neither infinite nor NaN."""
    value = float(text)
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text} must be a finite number")
    return value


def decoding_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """What of it was given, as `translate_lines` names it."""
    given = {"num_beams": arguments.beams, "alpha": arguments.alpha}
    return {name: value for name, value in given.items() if value is not None}


def open_translator(
    path: str, precision: "Precision", engine: "Engine" = "auto", device: "torch.device | None" = None
) -> "Translator":
    """A model folder ready to translate, on the best device there is unless one is given."""
    from transformers.utils.logging import disable_progress_bar

    from vanilla_transformer.inference.translator import Translator

    disable_progress_bar()  # of reading the weights; a command has its own
    return Translator.from_pretrained(path, precision, device, engine)


def open_model(path: str, device: "torch.device | None" = None) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """A model folder's model and tokenizer, on the best device there is unless one is given."""
    from transformers.utils.logging import disable_progress_bar

    from vanilla_transformer.data.tokenizer import load_tokenizer
    from vanilla_transformer.inference.model_folder import default_device, load_model_folder

    disable_progress_bar()  # of reading the weights; a command has its own
    return load_model_folder(path, device or default_device()), load_tokenizer(path)


def run(arguments: argparse.Namespace) -> int:
    stream = input_stream()

    with without_garbage_collection():
        from tqdm import tqdm

        from vanilla_transformer.console.arriving_lines import ArrivingLines, windows
        from vanilla_transformer.data.corpus import decode_lines
        from vanilla_transformer.inference.translate import translate_windows

    translator = open_translator(arguments.model, arguments.precision, arguments.engine)
    _check_n_best(arguments.n_best, arguments.beams or translator.model.generation_config.num_beams or 1)
    done = 0
    arriving = ArrivingLines(stream, WINDOW)
    with tqdm(unit=" lines", file=sys.stderr, disable=arguments.quiet) as bar:
        translations = translate_windows(
            translator.model,
            translator.tokenizer,
            windows(arriving, decode_lines(arriving, "standard input"), WINDOW),
            decoder=translator.decoder,
            num_return_sequences=arguments.n_best or 1,
            max_batch_tokens=arguments.batch_tokens,
            max_length=arguments.max_tokens,
            on_progress=lambda in_window, _: bar.update(done + in_window - bar.n),
            **decoding_options(arguments),
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
