# SPDX-License-Identifier: Apache-2.0
"""Draw what the paper draws: positions, the attention of your own model, the course of your own runs.

    vanilla-transformer plot positions
    vanilla-transformer plot attention runs/multi30k/model "A man sleeps ."
    vanilla-transformer plot attention runs/multi30k/model "A man sleeps ." --style paper --kind encoder --word man
    vanilla-transformer plot attention runs/multi30k/model "A man sleeps ." --interactive head
    vanilla-transformer plot curves runs/multi30k runs/multi30k_rnn

`vanilla-transformer plot attention --help`, and so on, tells what each can draw.
"""

import argparse
import atexit
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from vanilla_transformer.cli.translate import open_translator, positive
from vanilla_transformer.console.extras import check_installed
from vanilla_transformer.console.outputs import check_output_file
from vanilla_transformer.console.usage import UsageError

if TYPE_CHECKING:
    from vanilla_transformer.evaluation.attention_weights import AttentionWeights
    from vanilla_transformer.visualization.run_history import RunHistory

EXTRA, NEEDS = "visualization", ("matplotlib",)
KINDS = ("encoder", "decoder", "cross")
SENTENCE = "I am a robot"
CLASSIC = (50, 128)  # positions and dimensions
FORMULA_POINTS = 500


def add_arguments(parser: argparse.ArgumentParser) -> None:
    pictures = parser.add_subparsers(dest="picture", required=True, metavar="PICTURE")
    for name, add, draw in (
        ("positions", _add_positions, _plot_positions),
        ("attention", _add_attention, _plot_attention),
        ("curves", _add_curves, _plot_curves),
    ):
        first_line = (draw.__doc__ or "").partition("\n")[0]
        picture = pictures.add_parser(name, help=first_line, description=first_line)
        add(picture)
        picture.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
        picture.set_defaults(draw=draw)


def run(arguments: argparse.Namespace) -> int:
    with _no_search_for_garbage():
        return arguments.draw(arguments)


@contextmanager
def _no_search_for_garbage() -> Iterator[None]:
    """torch and transformers are a million objects; to go through all of them again and again takes seconds.

    A picture makes little garbage of its own. At its end, too, the interpreter would go through them.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
        atexit.register(gc.freeze)


def _add_positions(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--sentence", help=f'its words are the positions (default: "{SENTENCE}")')
    parser.add_argument("--d-model", type=positive, metavar="N", help="width of the encoding (default: 4)")
    parser.add_argument(
        "--base", type=float, metavar="B", help="of the wavelengths, in the paper 10000 (default: 100, classic 10000)"
    )
    parser.add_argument(
        "--classic", action="store_true", help=f"the map of {CLASSIC[0]} positions and {CLASSIC[1]} dimensions"
    )
    parser.add_argument("--output", default="positions.png", metavar="FILE", help="png or svg (default: %(default)s)")


def _plot_positions(arguments: argparse.Namespace) -> int:
    """The matrix of the positional encoding (section 3.5), by default the one of every tutorial."""
    from vanilla_transformer.visualization.positions import plot_positions, positional_encoding
    from vanilla_transformer.visualization.style import check_suffix

    check_suffix(arguments.output)
    if arguments.classic and arguments.sentence is not None:
        raise UsageError("--classic numbers its positions: leave out --sentence")
    check_output_file(arguments.output, "--output", makes_folders=True)
    words = None if arguments.classic else (SENTENCE if arguments.sentence is None else arguments.sentence).split()
    length, d_model, base = (*CLASSIC, 10000.0) if words is None else (len(words), 4, 100.0)
    base = base if arguments.base is None else arguments.base
    matrix = positional_encoding(length, arguments.d_model or d_model, base)
    return _write(plot_positions(matrix, words, base), arguments.output)


def _add_attention(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="model folder or Hub id")
    parser.add_argument("sentence", help="to translate")
    parser.add_argument("--kind", choices=[*KINDS, "all"], default="all", help="which attention (default: %(default)s)")
    parser.add_argument("--layer", type=positive, metavar="N", help="counted from 1 (default: the last)")
    heads = parser.add_mutually_exclusive_group()
    heads.add_argument("--head", type=positive, metavar="N", help="counted from 1, by itself (default: all heads)")
    heads.add_argument("--average", action="store_true", help="the mean of all heads")
    parser.add_argument(
        "--style", choices=["map", "paper"], default="map", help="heat map, or the lines of the paper's Figures 3 to 5"
    )
    parser.add_argument("--word", help="with --style paper: the lines of this token alone")
    parser.add_argument(
        "--interactive", choices=["head", "model"], help="bertviz's view, as an HTML file that loads nothing"
    )
    parser.add_argument(
        "--output", metavar="FILE", help="png or svg (default: attention.png), with --interactive html (attention.html)"
    )


def _plot_attention(arguments: argparse.Namespace) -> int:
    """The attention of a trained model in its translation of a sentence (section 3.2.3)."""
    from vanilla_transformer.evaluation.attention_weights import explain
    from vanilla_transformer.visualization.layer_attention import MAX_TOKENS
    from vanilla_transformer.visualization.style import check_suffix

    output = arguments.output or ("attention.html" if arguments.interactive else "attention.png")
    _check_attention_arguments(arguments)
    check_suffix(output, *([[".html"]] if arguments.interactive else []))
    check_output_file(output, "--output", makes_folders=True)
    translator = open_translator(arguments.model, "float32", engine="torch")  # nothing to compile for one sentence
    translation, weights = explain(translator, arguments.sentence, max_length=MAX_TOKENS)
    print(f"translation: {translation.text}")
    if arguments.interactive:
        return _write_page(arguments, weights, output)
    return _write(_draw_attention(arguments, weights), output)


def _check_attention_arguments(arguments: argparse.Namespace) -> None:
    if arguments.word is not None and arguments.style != "paper":
        raise UsageError("--word picks lines of --style paper: add it")
    if not arguments.interactive:
        return
    given = {
        "--layer": arguments.layer,
        "--head": arguments.head,
        "--average": arguments.average,
        "--style paper": arguments.style == "paper",
    }
    if needless := [name for name, value in given.items() if value]:
        raise UsageError(f"--interactive shows all layers and heads: leave out {', '.join(needless)}")
    check_installed("plot attention --interactive", ["bertviz", "mpld3", "xstatic"], "interactive")


def _kinds(arguments: argparse.Namespace) -> Any:
    return KINDS if arguments.kind == "all" else [arguments.kind]


def _draw_attention(arguments: argparse.Namespace, weights: "AttentionWeights"):
    from vanilla_transformer.visualization.attention_maps import plot_attention_maps
    from vanilla_transformer.visualization.layer_attention import select_layers
    from vanilla_transformer.visualization.paper_attention import plot_paper_attention

    blocks = select_layers(weights, _kinds(arguments), arguments.layer, arguments.head, arguments.average)
    if arguments.style == "paper":
        return plot_paper_attention(blocks, arguments.word)
    return plot_attention_maps(blocks)


def _write_page(arguments: argparse.Namespace, weights: "AttentionWeights", output: str) -> int:
    from pathlib import Path

    from vanilla_transformer.visualization.interactive import interactive_page

    page = interactive_page(weights, arguments.interactive, _kinds(arguments), title=arguments.sentence)
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    Path(output).write_text(page, encoding="utf-8")
    print(f"{output}: {len(page.encode()):,} bytes")
    return 0


def _add_curves(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", metavar="RUN", help="training.output_dir of a run, finished or not")
    parser.add_argument("--output", default="curves.png", metavar="FILE", help="png or svg (default: %(default)s)")


def _plot_curves(arguments: argparse.Namespace) -> int:
    """Loss, perplexity, BLEU, learning rate and speed of one or several runs."""
    from pathlib import Path

    from vanilla_transformer.visualization.style import check_suffix

    check_suffix(arguments.output)
    check_output_file(arguments.output, "--output", makes_folders=True)
    check_installed("plot curves", ["accelerate", "datasets", "tensorboard", "yaml"], "training,visualization")

    from vanilla_transformer.visualization.curves import plot_curves
    from vanilla_transformer.visualization.run_history import read_history

    last_parts = [Path(run).resolve().name for run in arguments.runs]
    names = last_parts if len(set(last_parts)) == len(last_parts) else arguments.runs
    histories = [read_history(run, name) for run, name in zip(arguments.runs, names, strict=True)]
    formulas = {history.name: _formula(run, history) for run, history in zip(arguments.runs, histories, strict=True)}
    return _write(plot_curves(histories, formulas), arguments.output)


def _formula(run: str, history: "RunHistory") -> tuple[list[int], list[float]]:
    """Equation 3 of the paper with what the run has set, over the updates of its history."""
    from pathlib import Path

    from vanilla_transformer.training.configuration import load_run_config, model_config_of
    from vanilla_transformer.training.schedule import learning_rate

    config = load_run_config(Path(run) / "config.yaml")
    d_model, optimizer = model_config_of(config.model).d_model, config.optimizer
    last = max((updates[-1] for updates, _ in history.scalars.values() if updates), default=1)
    updates = list(range(1, last + 1, max(1, last // FORMULA_POINTS)))
    rates = [learning_rate(one, d_model, optimizer.warmup_steps, optimizer.learning_rate_scale) for one in updates]
    return updates, rates


def _write(figure: Any, output: str) -> int:
    from vanilla_transformer.visualization.style import save_figure

    width, height = save_figure(figure, output)
    print(f"{output}: {width:,} x {height:,} {'points' if output.lower().endswith('svg') else 'pixels'}")
    return 0
