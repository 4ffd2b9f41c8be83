# SPDX-License-Identifier: Apache-2.0
"""Translate standard input line by line, by the paper's beam search.

    vanilla-transformer translate runs/multi30k/model < test.en > test.hyp
    vanilla-transformer translate runs/multi30k/model --n-best 4 < test.en
    vanilla-transformer translate runs/multi30k/model --precision int8 < test.en > test.hyp
    vanilla-transformer translate runs/multi30k/model --json < test.en
    vanilla-transformer translate runs/multi30k/model --mbr chrf --samples 32 < test.en
    vanilla-transformer translate runs/multi30k/model runs/multi30k_rnn/model --weights 2,1 < test.en

One line in, one line out, in order; an empty line stays empty. --n-best N prints up to N lines for each line,
"line number <tab> score <tab> translation", best first; the score is the log-probability divided by the paper's length
penalty ((5 + length) / 6)^alpha. Models imported from toolkits that divide by length^length_penalty do so here, too,
unless --alpha is given. --json prints an object for each translation, with the tokens and their probabilities.

Several models with one vocabulary translate together, as an ensemble. --mbr prints the candidate with the highest
expected chrF or BLEU: of samples, or of the n best (minimum Bayes risk; chrF needs the extra mbr).

A program that writes to a pipe gets each translation as soon as its line has arrived, without closing the pipe.
"""

import argparse
import json
import math
import sys
from typing import TYPE_CHECKING, Any

from vanilla_transformer.console.arguments import UsageError, finite_float, finite_floats, positive_int
from vanilla_transformer.console.extras import check_installed
from vanilla_transformer.console.running import without_garbage_collection
from vanilla_transformer.console.streams import windows

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import torch

    from vanilla_transformer.inference.native.engine import Engine
    from vanilla_transformer.inference.translate import Translation
    from vanilla_transformer.inference.translator import Translator
    from vanilla_transformer.packed_linear import Precision


EXTRA, NEEDS = None, ()  # torch and transformers bring all it needs
WINDOW = 2048  # lines that are sorted by length together, at most


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    add_decoding_arguments(parser)
    parser.add_argument("--n-best", type=positive_int, metavar="N", help="print the N best translations with scores")
    parser.add_argument(
        "--mbr",
        choices=["chrf", "bleu"],
        help="print the candidate that is most like the others by this score: of --samples, or of the --n-best",
    )
    parser.add_argument("--samples", type=positive_int, metavar="N", help="of --mbr: draw N candidates for each line")
    parser.add_argument("--seed", type=int, metavar="N", help="of --samples (default: 1)")
    parser.add_argument("--json", action="store_true", help="an object a line, with each token's probability")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")


def add_model_arguments(parser: argparse.ArgumentParser, nargs: str = "+") -> None:
    """A model, or several as an ensemble."""
    parser.add_argument("model", nargs=nargs, help="model folder or Hub id; several with one vocabulary: an ensemble")
    parser.add_argument(
        "--weights",
        type=finite_floats,
        metavar="W,W",
        help="of the ensemble's models, such as 2,1 (default: all equal)",
    )
    parser.add_argument(
        "--ensemble-mean",
        choices=["probabilities", "log_probabilities"],
        default="probabilities",
        help="the mean that the next token has in an ensemble (default: %(default)s)",
    )


def add_decoding_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of every command that translates."""
    parser.add_argument(
        "--beams", type=positive_int, metavar="N", help="beam width, 1: greedy (default: the model's own)"
    )
    parser.add_argument(
        "--coverage-penalty",
        type=finite_float,
        metavar="B",
        help="beta of Wu et al. (2016): favour translations that attend to the whole source (default: 0)",
    )
    add_scoring_arguments(parser)


def add_scoring_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of every command that computes with a model: those of the search are `add_decoding_arguments`' own."""
    parser.add_argument(
        "--alpha",
        type=finite_float,
        metavar="A",
        help="exponent of the paper's length penalty; larger: longer (default: the model's own penalty, else 0.6)",
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
    names = ("alpha", "coverage_penalty", "tag", "target_language")
    given = {name: getattr(arguments, name, None) for name in names}
    given["num_beams"] = getattr(arguments, "beams", None)
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


def open_models(arguments: argparse.Namespace, device: "torch.device | None" = None) -> "Translator":
    """The model of `add_model_arguments`, or the ensemble of several."""
    from transformers.utils.logging import disable_progress_bar

    from vanilla_transformer.inference.translator import Translator

    if len(arguments.model) == 1 and arguments.weights is None:
        return open_translator(arguments.model[0], arguments.precision, arguments.engine, device)
    disable_progress_bar()
    own = {"weights": arguments.weights, "mean": arguments.ensemble_mean}
    return Translator.ensemble(arguments.model, arguments.precision, device, arguments.engine, **own)


def run(arguments: argparse.Namespace) -> int:
    _check_mbr(arguments)
    if sys.stdin is None:
        raise OSError("standard input is closed: give it a file or a pipe")

    with without_garbage_collection():
        from tqdm import tqdm

        from vanilla_transformer.data.corpus import decode_lines
        from vanilla_transformer.inference.translate import translate_windows

    translator = open_models(arguments)
    check_beams(arguments, translator)
    lines = windows(sys.stdin.buffer, lambda lines: decode_lines(lines, "standard input"), WINDOW)
    options = decoding_options(arguments) | {"log_probs": arguments.json}
    done = 0
    with tqdm(unit=" lines", file=sys.stderr, disable=arguments.quiet) as bar:
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
            bar.update(max(0, done - bar.n))
    return 0


def check_beams(arguments: argparse.Namespace, translator: "Translator") -> None:
    """Raise UsageError for too few beams of `--n-best`."""
    if arguments.n_best:  # a greedy search has no scores
        beams, needed = arguments.beams or translator.model.generation_config.num_beams or 1, max(2, arguments.n_best)
        if beams < needed:
            raise UsageError(f"--n-best {arguments.n_best} needs at least {needed} beams: add --beams {needed}")


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
    probabilities = [float(f"{math.exp(value):.6g}") for value in translation.log_probs]
    return json.dumps(values | {"probabilities": probabilities}, ensure_ascii=False)


def one_line(text: str) -> str:
    """The text without line feeds, which a model may produce: the output has one line for each input line."""
    return text.replace("\n", " ")
