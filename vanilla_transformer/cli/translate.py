# SPDX-License-Identifier: Apache-2.0
"""Translate standard input line by line, by the paper's beam search.

    vanilla-transformer translate runs/multi30k/model < test.en > test.hyp
    vanilla-transformer translate runs/multi30k/model --n-best 4 < test.en
    vanilla-transformer translate runs/multi30k/model --precision int8 < test.en > test.hyp
    vanilla-transformer translate runs/multi30k/model --json < test.en
    vanilla-transformer translate runs/multi30k/model --mbr chrf --samples 32 < test.en
    vanilla-transformer translate runs/multi30k/model runs/multi30k_rnn/model --weights 2,1 < test.en
    vanilla-transformer translate runs/multi30k/model --terminology terms.tsv --placeholders < test.en
    vanilla-transformer translate runs/multi30k/model --split-sentences en < book.en > book.de
    vanilla-transformer translate runs/multi30k/model --alignments test.align < test.en > test.hyp
    vanilla-transformer translate runs/multi30k/model --input big.en.gz --output big.de.gz

One line in, one line out, in order; an empty line stays empty. --n-best N prints up to N lines for each line,
"line number <tab> score <tab> translation", best first; the score is the log-probability divided by the paper's length
penalty ((5 + length) / 6)^alpha. Models imported from toolkits that divide by length^length_penalty do so here, too,
unless --alpha is given. --json prints an object for each translation, with the tokens and their probabilities.

Several models with one vocabulary translate together, as an ensemble. --mbr prints the candidate with the highest
expected chrF or BLEU: of samples, or of the n best (minimum Bayes risk; chrF needs the extra mbr).

A program that writes to a pipe gets each translation as soon as its line has arrived, without closing the pipe.

--alignments FILE writes which word of the line each word of the translation comes from, a line for each translation:
"0-0 1-2 …", source word and target word, counted from 0.

With --constraints each line is "source <tab> term <tab> term ...", and its translation has these terms. --input and
--output are for large files: the same command goes on after an interruption, and ends with the same bytes, and several
processes share the work: torchrun --nproc_per_node 2 -m vanilla_transformer.cli translate MODEL --input ...
"""

import argparse
import json
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from vanilla_transformer.cli.decoding_options import (
    add_decoding_arguments,
    add_model_arguments,
    add_shortlist_argument,
    check_beams,
    decoding_options,
    open_models,
)
from vanilla_transformer.console.arguments import UsageError, positive_int
from vanilla_transformer.console.extras import check_installed
from vanilla_transformer.console.outputs import check_output_file
from vanilla_transformer.console.running import without_garbage_collection
from vanilla_transformer.console.streams import windows
from vanilla_transformer.data.alignment import format_alignment

if TYPE_CHECKING:
    from vanilla_transformer.inference.translate import Translation
    from vanilla_transformer.inference.translator import Translator

EXTRA, NEEDS = None, ()  # torch and transformers bring all it needs
WINDOW = 2048  # lines that are sorted by length together, at most


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    add_decoding_arguments(parser)
    add_shortlist_argument(parser)
    parser.add_argument("--n-best", type=positive_int, metavar="N", help="print the N best translations with scores")
    parser.add_argument(
        "--mbr",
        choices=["chrf", "bleu"],
        help="print the candidate that is most like the others by this score: of --samples, or of the --n-best",
    )
    parser.add_argument("--samples", type=positive_int, metavar="N", help="of --mbr: draw N candidates for each line")
    parser.add_argument("--seed", type=int, metavar="N", help="of --samples (default: 1)")
    parser.add_argument("--json", action="store_true", help="an object a line, with each token's probability")
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
    parser.add_argument("--alignments", metavar="FILE", help="write word alignments, a line for each translation")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")


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
    _check_mbr(arguments)
    if (arguments.input is None) != (arguments.output is None):
        raise UsageError("--input and --output go together")
    if arguments.input is not None:
        if arguments.alignments is not None:
            raise UsageError("--alignments are of standard input: leave out --input, or use `align` afterwards")
        return run_on_file(arguments)
    if arguments.shard_lines is not None:
        raise UsageError("--shard-lines needs --input")
    if sys.stdin is None:
        raise OSError("standard input is closed: give it a file or a pipe")

    with without_garbage_collection():
        from tqdm import tqdm

        from vanilla_transformer.data.corpus import decode_lines
        from vanilla_transformer.inference.translate import translate_windows

    if arguments.alignments is not None:
        if arguments.mbr is not None or len(arguments.model) > 1:
            raise UsageError("--alignments are of one model's beam search: leave out --mbr and the other models")
        check_output_file(arguments.alignments, "--alignments")
    options = decoding_options(arguments) | line_constraint_options(arguments) | {"log_probs": arguments.json}
    translator = open_models(arguments)
    check_beams(arguments, translator)
    options["alignments"] = arguments.alignments is not None
    lines = windows(sys.stdin.buffer, lambda lines: decode_lines(lines, "standard input"), WINDOW)
    done = 0
    with ExitStack() as stack:
        alignments = _open_alignments(arguments, translator, stack)
        bar = stack.enter_context(tqdm(unit=" lines", file=sys.stderr, disable=arguments.quiet))
        if arguments.mbr:
            translations = _mbr_translations(arguments, translator, lines, options)
        else:
            translations = translate_windows(
                translator.model,
                translator.tokenizer,
                lines,
                decoder=translator.decoder,
                num_return_sequences=arguments.n_best or 1,
                on_progress=lambda in_window, _: bar.update(done + in_window - bar.n),
                **options,
            )
        for done, best in enumerate(translations, start=1):
            # As bytes: UTF-8 and "\n", whatever the locale.
            shown = None if arguments.mbr else arguments.n_best
            sys.stdout.buffer.write(output_lines(done, best, shown, arguments.json).encode())
            sys.stdout.buffer.flush()
            if alignments is not None:
                alignments.write("".join(f"{format_alignment(each.alignment or [])}\n" for each in best).encode())
                alignments.flush()
            bar.update(max(0, done - bar.n))
    return 0


def _open_alignments(arguments: argparse.Namespace, translator: "Translator", stack: ExitStack) -> BinaryIO | None:
    """The file of `--alignments`, which is emptied only if the model can align."""
    if arguments.alignments is None:
        return None
    from vanilla_transformer.inference.alignment import alignment_heads_of

    alignment_heads_of(translator.model)
    return stack.enter_context(Path(arguments.alignments).open("wb"))


def run_on_file(arguments: argparse.Namespace) -> int:
    """`--input` and `--output`."""
    check_installed(("accelerate", "datasets"))
    check_output_file(arguments.output, "--output")

    from tqdm import tqdm

    from vanilla_transformer.data.corpus import read_lines
    from vanilla_transformer.distributed.processes import process_state
    from vanilla_transformer.inference.translate_file import translate_file

    next(read_lines(arguments.input), None)  # before the model is opened: is there a file?
    options, state = decoding_options(arguments) | line_constraint_options(arguments), process_state()
    translator = open_models(arguments, state.device)
    check_beams(arguments, translator)
    is_shown = state.is_main_process and not arguments.quiet
    with tqdm(unit=" lines", file=sys.stderr, disable=not is_shown) as bar:  # of this process's share
        translate_file(
            translator,
            Path(arguments.input),
            Path(arguments.output),
            lambda number, best: output_lines(number, best, arguments.n_best, arguments.json),
            arguments.shard_lines or 10_000,
            bar.update,
            num_return_sequences=arguments.n_best or 1,
            log_probs=arguments.json,
            **options,
        )
    return 0


def output_lines(number: int, best: "Sequence[Translation]", n_best: int | None, as_json: bool = False) -> str:
    """Line `number` of the input in the output."""
    if as_json:
        return "".join(f"{json_line(number, 'translation', translation)}\n" for translation in best)
    # An empty line is not decoded, and has no score: its translation is certain.
    prefixes = [f"{number}\t{translation.score or 0.0:.4f}\t" if n_best else "" for translation in best]
    return "".join(f"{prefix}{one_line(each.text)}\n" for prefix, each in zip(prefixes, best, strict=True))


def _check_mbr(arguments: argparse.Namespace) -> None:
    """Raise UsageError for options of candidates that do not go together, and for a library that is missing."""
    if arguments.mbr is None:
        for name in ("samples", "seed"):
            if getattr(arguments, name) is not None:
                raise UsageError(f"--{name} is of --mbr: add it, or leave --{name} out; synthesize writes all samples")
        return
    if (arguments.samples is None) == (arguments.n_best is None):
        raise UsageError(f"--mbr {arguments.mbr} needs candidates: give either --samples N or --n-best N")
    for name in ("beams", "coverage_penalty") if arguments.samples else ("seed",):
        if getattr(arguments, name) is not None:
            candidates = "samples" if arguments.samples else "beam search"
            raise UsageError(f"--{name.replace('_', '-')} has no part in --mbr of {candidates}: leave it out")
    if arguments.input is not None:
        raise UsageError("--mbr reads standard input: leave out --input and --output")
    check_installed([{"chrf": "fastchrf", "bleu": "sacrebleu"}[arguments.mbr]])


def _mbr_translations(
    arguments: argparse.Namespace,
    translator: "Translator",
    lines: "Iterator[list[str]]",
    options: dict[str, Any],
) -> "Iterator[list[Translation]]":
    from vanilla_transformer.generation import ALPHA
    from vanilla_transformer.inference.line_options import resolved
    from vanilla_transformer.inference.mbr import mbr_windows
    from vanilla_transformer.inference.sampling import Sampling

    sampling = None
    if arguments.samples:
        alpha = resolved(translator.model, {"alpha": options.pop("alpha", None)}, "alpha")
        sampling = Sampling(
            seed=1 if arguments.seed is None else arguments.seed, alpha=ALPHA if alpha is None else alpha
        )
    return mbr_windows(translator, lines, arguments.mbr, arguments.samples or arguments.n_best, sampling, **options)


def json_line(number: int, name: str, translation: "Translation") -> str:
    """An object with the translation under this name, its score, and its tokens with their probabilities."""
    values = {"line": number, name: translation.text, "score": translation.score, "tokens": translation.tokens}
    values["probabilities"] = [float(f"{math.exp(value):.6g}") for value in translation.log_probs]
    if translation.alignment is not None:
        values["source_positions"] = translation.source_positions
    return json.dumps(values, ensure_ascii=False)


def one_line(text: str) -> str:
    """The text without line feeds, which a model may produce: the output has one line for each input line."""
    return text.replace("\n", " ")
