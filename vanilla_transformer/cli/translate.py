# SPDX-License-Identifier: Apache-2.0
"""Translate standard input line by line, by the paper's beam search.

    vanilla-transformer translate runs/multi30k/model < test.en > test.hyp
    vanilla-transformer translate runs/multi30k/model --n-best 4 < test.en
    vanilla-transformer translate runs/multi30k/model --precision int8 < test.en > test.hyp
    vanilla-transformer translate runs/multi30k/model --terminology terms.tsv --placeholders < test.en
    vanilla-transformer translate runs/multi30k/model --split-sentences en < book.en > book.de
    vanilla-transformer translate runs/multi30k/model --input big.en.gz --output big.de.gz

One line in, one line out, in order; an empty line stays empty. --n-best N prints up to N lines for each line,
"line number <tab> score <tab> translation", best first; the score is the log-probability divided by the paper's length
penalty ((5 + length) / 6)^alpha. Models imported from toolkits that divide by length^length_penalty do so here, too,
unless --alpha is given.

A program that writes to a pipe gets each translation as soon as its line has arrived, without closing the pipe.

With --constraints each line is "source <tab> term <tab> term ...", and its translation has these terms. --input and
--output are for large files: the same command goes on after an interruption, and ends with the same bytes, and several
processes share the work: torchrun --nproc_per_node 2 -m vanilla_transformer.cli translate MODEL --input ...
"""

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vanilla_transformer.console.arguments import UsageError, finite_float, positive_int
from vanilla_transformer.console.extras import check_installed
from vanilla_transformer.console.outputs import check_output_file
from vanilla_transformer.console.running import without_garbage_collection
from vanilla_transformer.console.streams import windows

if TYPE_CHECKING:
    import torch

    from vanilla_transformer.inference.native.engine import Engine
    from vanilla_transformer.inference.translate import Translation
    from vanilla_transformer.inference.translator import Translator
    from vanilla_transformer.packed_linear import Precision


EXTRA, NEEDS = None, ()  # torch and transformers bring all it needs
WINDOW = 2048  # lines that are sorted by length together, at most


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="model folder or Hub id")
    add_decoding_arguments(parser)
    parser.add_argument("--n-best", type=positive_int, metavar="N", help="print the N best translations with scores")
    parser.add_argument("--prefix", metavar="FILE", help="beginnings of the translations, a line each; '': any")
    parser.add_argument(
        "--constraints",
        action="store_true",
        help="lines are 'source <tab> term <tab> ...': each term is in the translation, as often as it is given",
    )
    parser.add_argument(
        "--terminology", metavar="FILE", help="'source term <tab> target term' lines, for sources that have the former"
    )
    parser.add_argument(
        "--placeholders", action="store_true", help="{0}, <x1/> and the like are in the translation as in the source"
    )
    parser.add_argument(
        "--split-sentences", metavar="LANGUAGE", help="translate each sentence of a line by itself; such as en"
    )
    parser.add_argument("--input", metavar="FILE", help="a large file, plain or .gz; default: standard input")
    parser.add_argument("--output", metavar="FILE", help="of --input, plain or .gz, written when it is whole")
    parser.add_argument(
        "--shard-lines", type=positive_int, metavar="N", help="lines of --input between two writes (default: 10000)"
    )
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


def line_constraint_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Prefixes, terms and sentences as `translate_lines` names them; nothing of what was not asked for."""
    from vanilla_transformer.data.corpus import read_lines

    options: dict[str, Any] = {}
    if arguments.prefix is not None:
        options["prefixes"] = list(read_lines(arguments.prefix))
    if arguments.constraints or arguments.terminology is not None or arguments.placeholders:
        from vanilla_transformer.inference.terms import LexicalConstraints, read_terminology

        terminology = [] if arguments.terminology is None else read_terminology(arguments.terminology)
        options["constraints"] = LexicalConstraints(arguments.constraints, terminology, arguments.placeholders)
    if arguments.split_sentences is not None:
        check_installed(("sentencex",))
        options["split_sentences"] = arguments.split_sentences
    return options


def run(arguments: argparse.Namespace) -> int:
    if (arguments.input is None) != (arguments.output is None):
        raise UsageError("--input and --output go together")
    if arguments.input is not None:
        return run_on_file(arguments)
    if arguments.shard_lines is not None:
        raise UsageError("--shard-lines needs --input")
    if sys.stdin is None:
        raise OSError("standard input is closed: give it a file or a pipe")

    with without_garbage_collection():
        from tqdm import tqdm

        from vanilla_transformer.data.corpus import decode_lines
        from vanilla_transformer.inference.translate import translate_windows

    options = decoding_options(arguments) | line_constraint_options(arguments)
    translator = open_translator(arguments.model, arguments.precision, arguments.engine)
    check_beams(arguments, translator)
    done = 0
    with tqdm(unit=" lines", file=sys.stderr, disable=arguments.quiet) as bar:
        translations = translate_windows(
            translator.model,
            translator.tokenizer,
            windows(sys.stdin.buffer, lambda lines: decode_lines(lines, "standard input"), WINDOW),
            decoder=translator.decoder,
            num_return_sequences=arguments.n_best or 1,
            on_progress=lambda in_window, _: bar.update(done + in_window - bar.n),
            **options,
        )
        for done, best in enumerate(translations, start=1):
            # As bytes: UTF-8 and "\n", whatever the locale.
            sys.stdout.buffer.write(output_lines(done, best, arguments.n_best).encode())
            sys.stdout.buffer.flush()
    return 0


def run_on_file(arguments: argparse.Namespace) -> int:
    """`--input` and `--output`."""
    check_installed(("accelerate", "datasets"))
    check_output_file(arguments.output, "--output")

    from pathlib import Path

    from tqdm import tqdm

    from vanilla_transformer.data.corpus import read_lines
    from vanilla_transformer.distributed.processes import process_state
    from vanilla_transformer.inference.translate_file import translate_file

    next(read_lines(arguments.input), None)  # before the model is opened: is there a file?
    options, state = decoding_options(arguments) | line_constraint_options(arguments), process_state()
    translator = open_translator(arguments.model, arguments.precision, arguments.engine, state.device)
    check_beams(arguments, translator)
    is_shown = state.is_main_process and not arguments.quiet
    with tqdm(unit=" lines", file=sys.stderr, disable=not is_shown) as bar:  # of this process's share
        translate_file(
            translator,
            Path(arguments.input),
            Path(arguments.output),
            lambda number, best: output_lines(number, best, arguments.n_best),
            arguments.shard_lines or 10_000,
            bar.update,
            num_return_sequences=arguments.n_best or 1,
            **options,
        )
    return 0


def check_beams(arguments: argparse.Namespace, translator: "Translator") -> None:
    """Raise UsageError for too few beams of `--n-best`."""
    if arguments.n_best:  # a greedy search has no scores
        beams, needed = arguments.beams or translator.model.generation_config.num_beams or 1, max(2, arguments.n_best)
        if beams < needed:
            raise UsageError(f"--n-best {arguments.n_best} needs at least {needed} beams: add --beams {needed}")


def output_lines(number: int, best: Sequence["Translation"], n_best: int | None) -> str:
    """Line `number` of the input in the output."""
    # An empty line is not decoded, and has no score: its translation is certain.
    prefixes = [f"{number}\t{translation.score or 0.0:.4f}\t" if n_best else "" for translation in best]
    return "".join(f"{prefix}{one_line(each.text)}\n" for prefix, each in zip(prefixes, best, strict=True))


def one_line(text: str) -> str:
    """The text without line feeds, which a model may produce: the output has one line for each input line."""
    return text.replace("\n", " ")
