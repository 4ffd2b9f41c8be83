# SPDX-License-Identifier: Apache-2.0
"""Options of the commands that decode, and the models that they name."""

import argparse
from typing import TYPE_CHECKING, Any

from vanilla_transformer.console.arguments import UsageError, finite_float, finite_floats, positive_int

if TYPE_CHECKING:
    import torch

    from vanilla_transformer.inference.native.engine import Engine
    from vanilla_transformer.inference.translator import Translator
    from vanilla_transformer.packed_linear import Precision


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


def add_shortlist_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--shortlist", metavar="FILE", help="a table of `vanilla-transformer shortlist`, whose tokens alone are chosen"
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
    path: str,
    precision: "Precision" = "float32",
    engine: "Engine" = "auto",
    device: "torch.device | None" = None,
    shortlist: str | None = None,
) -> "Translator":
    """A model ready to translate, by default on the accelerator that torch finds, or the CPU."""
    from transformers.utils.logging import disable_progress_bar

    from vanilla_transformer.inference.translator import Translator

    disable_progress_bar()  # of reading weights
    return Translator.from_pretrained(path, precision, device, engine, shortlist)


def open_models(arguments: argparse.Namespace, device: "torch.device | None" = None) -> "Translator":
    """The model of `add_model_arguments`, or the ensemble of several."""
    from transformers.utils.logging import disable_progress_bar

    from vanilla_transformer.inference.translator import Translator

    shortlist = getattr(arguments, "shortlist", None)
    if len(arguments.model) == 1 and arguments.weights is None:
        return open_translator(arguments.model[0], arguments.precision, arguments.engine, device, shortlist)
    if shortlist is not None:
        raise UsageError("--shortlist is for one model: leave it, or the other models and --weights, out")
    disable_progress_bar()
    own = {"weights": arguments.weights, "mean": arguments.ensemble_mean}
    return Translator.ensemble(arguments.model, arguments.precision, device, arguments.engine, **own)


def check_beams(arguments: argparse.Namespace, translator: "Translator") -> None:
    """Raise UsageError for too few beams of `--n-best`."""
    if arguments.n_best:  # a greedy search has no scores
        beams, needed = arguments.beams or translator.model.generation_config.num_beams or 1, max(2, arguments.n_best)
        if beams < needed:
            raise UsageError(f"--n-best {arguments.n_best} needs at least {needed} beams: add --beams {needed}")
