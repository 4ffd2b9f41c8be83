# SPDX-License-Identifier: Apache-2.0
"""Translate standard input line by line, by the paper's beam search.

    vanilla-transformer translate runs/multi30k/model < test.en > test.hyp
    vanilla-transformer translate runs/multi30k/model --n-best 4 < test.en
    vanilla-transformer translate runs/multi30k/model --precision int8 < test.en > test.hyp

One line in, one line out, in order; an empty line stays empty. --n-best N prints up to N lines for each line,
"line number <tab> score <tab> translation", best first; the score is the log-probability divided by the paper's length
penalty ((5 + length) / 6)^alpha. Models imported from toolkits that divide by length^length_penalty do so here, too,
unless --alpha is given.

    vanilla-transformer translate runs/multi30k/model --alignments test.align < test.en > test.hyp

--alignments FILE writes which word of the line each word of the translation comes from, a line for each translation:
"0-0 1-2 …", source word and target word, counted from 0.

A program that writes to a pipe gets each translation as soon as its line has arrived, without closing the pipe.
"""

import argparse
import sys
from typing import TYPE_CHECKING, Any

from vanilla_transformer.console.arguments import UsageError, finite_float, positive_int
from vanilla_transformer.console.outputs import check_output_file
from vanilla_transformer.console.running import without_garbage_collection
from vanilla_transformer.console.streams import windows

if TYPE_CHECKING:
    import torch

    from vanilla_transformer.inference.native.engine import Engine
    from vanilla_transformer.inference.translator import Translator
    from vanilla_transformer.packed_linear import Precision


EXTRA, NEEDS = None, ()  # torch and transformers bring all it needs
WINDOW = 2048  # lines that are sorted by length together, at most


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="model folder or Hub id")
    add_decoding_arguments(parser)
    parser.add_argument("--n-best", type=positive_int, metavar="N", help="print the N best translations with scores")
    parser.add_argument("--alignments", metavar="FILE", help="write word alignments, a line for each translation")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")


def add_decoding_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of every command that translates."""
    parser.add_argument(
        "--beams", type=positive_int, metavar="N", help="beam width, 1: greedy (default: the model's own)"
    )
    parser.add_argument(
        "--alpha",
        type=finite_float,
        metavar="A",
        help="exponent of the paper's length penalty; larger: longer (default: the model's own penalty, else 0.6)",
    )
    parser.add_argument(
        "--coverage-penalty",
        type=finite_float,
        metavar="B",
        help="beta of Wu et al. (2016): favour translations that attend to the whole source (default: 0)",
    )
    parser.add_argument("--target-language", metavar="L", help="of a model of several, such as de: by its tag <2de>")
    parser.add_argument("--tag", metavar="TAG", help="a tag before every source, such as '<bt>' (default: none)")
    parser.add_argument(
        "--precision",
        choices=["float32", "bfloat16", "int8"],
        default="float32",
        help="precision of the computation (default: %(default)s); int8 needs a CPU",
    )
    parser.add_argument(
        "--engine",
        choices=["auto", "native", "torch"],
        default="auto",
        help="decode by kernels compiled for this CPU, or by PyTorch (default: %(default)s, native if possible)",
    )
    parser.add_argument(
        "--batch-tokens",
        type=positive_int,
        default=8192,
        metavar="N",
        help="source tokens x beams at once (%(default)s)",
    )
    parser.add_argument(
        "--max-tokens", type=positive_int, default=1024, metavar="N", help="refuse lines of more tokens (%(default)s)"
    )


def decoding_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options as `translate_lines` names them; the model's own stand for those not given."""
    given = {
        "num_beams": arguments.beams,
        "alpha": arguments.alpha,
        "coverage_penalty": arguments.coverage_penalty,
        "tag": arguments.tag,
        "target_language": arguments.target_language,
    }
    budgets = {"max_batch_tokens": arguments.batch_tokens, "max_length": arguments.max_tokens}
    return budgets | {name: value for name, value in given.items() if value is not None}


def open_translator(
    path: str, precision: "Precision" = "float32", engine: "Engine" = "auto", device: "torch.device | None" = None
) -> "Translator":
    """A model ready to translate, by default on the accelerator that torch finds, or the CPU."""
    from transformers.utils.logging import disable_progress_bar

    from vanilla_transformer.inference.translator import Translator

    disable_progress_bar()  # of reading weights
    return Translator.from_pretrained(path, precision, device, engine)


def run(arguments: argparse.Namespace) -> int:
    if sys.stdin is None:
        raise OSError("standard input is closed: give it a file or a pipe")

    with without_garbage_collection():
        from contextlib import ExitStack
        from pathlib import Path

        from tqdm import tqdm

        from vanilla_transformer.data.alignment import format_alignment
        from vanilla_transformer.data.corpus import decode_lines
        from vanilla_transformer.inference.alignment import alignment_heads_of
        from vanilla_transformer.inference.translate import translate_windows

    if arguments.alignments is not None:
        check_output_file(arguments.alignments, "--alignments")
    translator = open_translator(arguments.model, arguments.precision, arguments.engine)
    if arguments.alignments is not None:
        alignment_heads_of(translator.model)  # before the file is emptied
    if arguments.n_best:  # a greedy search has no scores
        beams, needed = arguments.beams or translator.model.generation_config.num_beams or 1, max(2, arguments.n_best)
        if beams < needed:
            raise UsageError(f"--n-best {arguments.n_best} needs at least {needed} beams: add --beams {needed}")
    done = 0
    with ExitStack() as stack, tqdm(unit=" lines", file=sys.stderr, disable=arguments.quiet) as bar:
        alignments = None
        if arguments.alignments is not None:
            alignments = stack.enter_context(Path(arguments.alignments).open("wb"))
        translations = translate_windows(
            translator.model,
            translator.tokenizer,
            windows(sys.stdin.buffer, lambda lines: decode_lines(lines, "standard input"), WINDOW),
            decoder=translator.decoder,
            num_return_sequences=arguments.n_best or 1,
            on_progress=lambda in_window, _: bar.update(done + in_window - bar.n),
            alignments=alignments is not None,
            **decoding_options(arguments),
        )
        for done, best in enumerate(translations, start=1):
            for translation in best:
                # An empty line is not decoded, and has no score: its translation is certain.
                prefix = f"{done}\t{translation.score or 0.0:.4f}\t" if arguments.n_best else ""
                # As bytes: UTF-8 and "\n", whatever the locale.
                sys.stdout.buffer.write(f"{prefix}{one_line(translation.text)}\n".encode())
                if alignments is not None:
                    alignments.write(f"{format_alignment(translation.alignment or [])}\n".encode())
            sys.stdout.buffer.flush()
            if alignments is not None:
                alignments.flush()
    return 0


def one_line(text: str) -> str:
    """The text without line feeds, which a model may produce: the output has one line for each input line."""
    return text.replace("\n", " ")
