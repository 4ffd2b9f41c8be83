# SPDX-License-Identifier: Apache-2.0
"""Draw what the paper draws: positions, the attention of your own model, the curves of your own runs.

    vanilla-transformer plot positions
    vanilla-transformer plot attention runs/multi30k/model "A man sleeps ."
    vanilla-transformer plot attention runs/multi30k/model "A man sleeps ." --style paper --kind encoder --word man
    vanilla-transformer plot attention runs/multi30k/model "A man sleeps ." --interactive head
    vanilla-transformer plot curves runs/multi30k runs/multi30k_rnn

`vanilla-transformer plot attention --help`, and so on, lists the options of each picture.
"""

import argparse
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vanilla_transformer.cli.decoding_options import open_translator
from vanilla_transformer.console.arguments import UsageError, positive_int
from vanilla_transformer.console.extras import check_installed
from vanilla_transformer.console.outputs import check_output_file
from vanilla_transformer.console.running import without_garbage_collection

EXTRA, NEEDS = "visualization", ("matplotlib",)
PICTURES = (".png", ".svg")
KINDS = ("encoder", "decoder", "cross")
SENTENCE = "I am a robot"
CLASSIC_POSITIONS, CLASSIC_D_MODEL = 50, 128
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
    with without_garbage_collection():  # a picture makes little garbage of its own
        arguments.draw(arguments)
    return 0


def check_picture(path: str, allowed: Sequence[str] = PICTURES) -> None:
    """Raise ValueError for a suffix of another kind, and OSError if the file cannot be written."""
    suffix = Path(path).suffix
    if suffix.lower() not in allowed:
        raise ValueError(f"output {path}: its suffix {suffix!r} must be one of {', '.join(allowed)}")
    check_output_file(path, "--output", makes_folders=True)


def _save(figure: Any, output: str) -> None:
    from vanilla_transformer.visualization.style import without_missing_glyphs

    is_svg = output.lower().endswith("svg")
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    # zlib's strategy for runs of equal bytes writes a figure of many panels in 0.6 of the time.
    options = {} if is_svg else {"pil_kwargs": {"compress_type": zlib.Z_RLE}}
    with without_missing_glyphs():
        figure.savefig(output, **options)
    width, height = (72 * figure.get_size_inches()).round() if is_svg else figure.canvas.get_width_height()
    print(f"{output}: {width:,.0f} x {height:,.0f} {'points' if is_svg else 'pixels'}")


def _add_positions(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--sentence", help=f'its words are the positions (default: "{SENTENCE}")')
    parser.add_argument("--d-model", type=positive_int, metavar="N", help="width of the encoding (default: 4)")
    parser.add_argument(
        "--base", type=float, metavar="B", help="base of the wavelengths (default: 100; --classic: the paper's 10000)"
    )
    parser.add_argument(
        "--classic", action="store_true", help=f"{CLASSIC_POSITIONS} positions in {CLASSIC_D_MODEL} dimensions"
    )
    parser.add_argument("--output", default="positions.png", metavar="FILE", help="png or svg (default: %(default)s)")


def _plot_positions(arguments: argparse.Namespace) -> None:
    """The matrix of the positional encoding (section 3.5), by default the small one of many tutorials."""
    from vanilla_transformer.visualization.positions import plot_positions, positional_encoding

    if arguments.classic and arguments.sentence is not None:
        raise UsageError("--classic numbers its positions: leave out --sentence")
    check_picture(arguments.output)
    if arguments.classic:
        words, length, d_model, base = None, CLASSIC_POSITIONS, CLASSIC_D_MODEL, 10000.0
    else:
        words = (SENTENCE if arguments.sentence is None else arguments.sentence).split()
        length, d_model, base = len(words), 4, 100.0
    base = base if arguments.base is None else arguments.base
    matrix = positional_encoding(length, arguments.d_model or d_model, base)
    _save(plot_positions(matrix, words, base), arguments.output)


def _add_attention(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="model folder or Hub id")
    parser.add_argument("sentence", help="sentence to translate")
    parser.add_argument("--kind", choices=[*KINDS, "all"], default="all", help="which attention (default: %(default)s)")
    parser.add_argument("--layer", type=positive_int, metavar="N", help="counted from 1 (default: the last)")
    heads = parser.add_mutually_exclusive_group()
    heads.add_argument("--head", type=positive_int, metavar="N", help="only this one, counted from 1 (default: all)")
    heads.add_argument("--average", action="store_true", help="the mean of all heads")
    parser.add_argument(
        "--style", choices=["map", "paper"], default="map", help="heat map, or the lines of the paper's Figures 3 to 5"
    )
    parser.add_argument("--word", help="with --style paper: only the lines of this token")
    parser.add_argument(
        "--interactive", choices=["head", "model"], help="bertviz's view, as an HTML file that loads nothing"
    )
    parser.add_argument(
        "--output", metavar="FILE", help="png or svg (default: attention.png), with --interactive html (attention.html)"
    )


def _plot_attention(arguments: argparse.Namespace) -> None:
    """The attention of a trained model in its translation of a sentence (section 3.2.3)."""
    from vanilla_transformer.evaluation.attention_weights import explain
    from vanilla_transformer.visualization.attention_maps import plot_attention_maps
    from vanilla_transformer.visualization.layer_attention import MAX_TOKENS, select_layers
    from vanilla_transformer.visualization.paper_attention import plot_paper_attention

    interactive = arguments.interactive
    if arguments.word is not None and arguments.style != "paper":
        raise UsageError("--word picks lines of --style paper: add it")
    if interactive:
        options = {"--layer": arguments.layer, "--head": arguments.head, "--average": arguments.average}
        options["--style paper"] = arguments.style == "paper"
        if unused := [option for option, value in options.items() if value]:
            raise UsageError(f"--interactive shows all layers and heads: leave out {', '.join(unused)}")
        check_installed(["bertviz", "mpld3", "xstatic"])
    output = arguments.output or ("attention.html" if interactive else "attention.png")
    check_picture(output, [".html"] if interactive else PICTURES)
    translator = open_translator(arguments.model, engine="torch")  # compiling does not pay for one sentence
    translation, weights = explain(translator, arguments.sentence, max_length=MAX_TOKENS)
    print(f"translation: {translation}")
    kinds: Any = KINDS if arguments.kind == "all" else [arguments.kind]
    if interactive:
        from vanilla_transformer.visualization.interactive import interactive_page

        page = interactive_page(weights, interactive, kinds, title=arguments.sentence)
        Path(output).parent.mkdir(parents=True, exist_ok=True)
        Path(output).write_text(page, encoding="utf-8")
        print(f"{output}: {len(page.encode()):,} bytes")
        return
    blocks = select_layers(weights, kinds, arguments.layer, arguments.head, arguments.average)
    is_paper = arguments.style == "paper"
    _save(plot_paper_attention(blocks, arguments.word) if is_paper else plot_attention_maps(blocks), output)


def _add_curves(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", metavar="RUN", help="training.output_dir of a run, finished or not")
    parser.add_argument("--output", default="curves.png", metavar="FILE", help="png or svg (default: %(default)s)")


def _plot_curves(arguments: argparse.Namespace) -> None:
    """Loss, perplexity, BLEU, learning rate and speed of your runs."""
    check_picture(arguments.output)
    check_installed(["accelerate", "datasets", "tensorboard", "yaml"])

    from vanilla_transformer.visualization.curves import plot_curves, read_history

    folders = [Path(run).resolve().name for run in arguments.runs]
    runs = dict(zip(folders if len(set(folders)) == len(folders) else arguments.runs, arguments.runs, strict=True))
    histories = {name: read_history(run) for name, run in runs.items()}
    formulas = {name: formula for name, run in runs.items() if (formula := _formula(run, histories[name]))}
    kinds = {name: _kind(run) or name for name, run in runs.items()}
    _save(plot_curves(histories, formulas, kinds), arguments.output)


def _kind(run: str) -> str | None:
    """The kind of the run's model; `None` for a fine-tuning."""
    from vanilla_transformer.training.configuration import model_config_of, run_config_of
    from vanilla_transformer.training.yaml_sections import read_yaml
    from vanilla_transformer.visualization.style import model_kind

    values = read_yaml(Path(run) / "config.yaml")
    is_fine_tuning = not isinstance(values.get("model"), dict)
    return None if is_fine_tuning else model_kind(model_config_of(run_config_of(values).model))


def _formula(run: str, history: Mapping[str, Any]) -> tuple[list[int], list[float]] | None:
    """Equation 3 of the paper with the run's settings: (updates, learning rates); `None` for another schedule."""
    from vanilla_transformer.training.configuration import model_config_of, run_config_of
    from vanilla_transformer.training.schedule import learning_rate
    from vanilla_transformer.training.yaml_sections import read_yaml

    values = read_yaml(Path(run) / "config.yaml")
    if not isinstance(values.get("model"), dict):  # fine-tuning, which has schedules of transformers
        return None
    config = run_config_of(values)
    if config.optimizer.schedule != "inverse_sqrt":
        return None
    d_model, optimizer = model_config_of(config.model).d_model, config.optimizer
    last = max((updates[-1] for updates, _ in history.values() if updates), default=1)
    updates = list(range(1, last + 1, max(1, last // FORMULA_POINTS)))
    warmup, scale = optimizer.warmup_steps, optimizer.learning_rate_scale
    return updates, [learning_rate(update, d_model, warmup, scale) for update in updates]
