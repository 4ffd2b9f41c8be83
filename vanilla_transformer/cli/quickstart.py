# SPDX-License-Identifier: Apache-2.0
"""Learn to pronounce English in a few minutes: train, score held-out words, show answers.

    vanilla-transformer quickstart
    vanilla-transformer quickstart covfefe vaswani

Words given on the command line are pronounced at the end. Run again, it resumes or reuses what is there.
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vanilla_transformer.evaluation.error_rate import PronunciationScore

SHOWN = 10  # held-out words beside the dictionary's answer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("words", nargs="*", metavar="WORD", help="words to pronounce at the end")
    parser.add_argument("--config", default="configs/quickstart.yaml", help="(default: %(default)s)")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="overrides",
        metavar="section.key=value",
        help="a change to the config; may be repeated",
    )


def run(arguments: argparse.Namespace) -> int:
    import json

    from vanilla_transformer.cli.train import train_and_describe
    from vanilla_transformer.data.cmudict import spell, write_pronunciation_corpus
    from vanilla_transformer.hub.model_card import Score
    from vanilla_transformer.hub.run_facts import write_card_of_run
    from vanilla_transformer.training.configuration import load_run_config

    for word in arguments.words:
        spell(word)  # whether it can be spelt, before minutes of training
    config = load_run_config(arguments.config, arguments.overrides)
    if config.data.train is None or config.data.train.source is None:
        raise ValueError(f"{arguments.config}: the quickstart needs data.train.source, where it puts its words")
    folder = Path(config.data.train.source).parent
    if not (folder / "test.json").exists():
        print("preparing the CMU Pronouncing Dictionary …", file=sys.stderr)
        write_pronunciation_corpus(folder)
    train_and_describe(config)

    references = json.loads((folder / "test.json").read_text("utf-8"))
    output_dir = Path(config.training.output_dir)
    asked = [*references, *arguments.words]
    answers = _pronounce(output_dir / "model", asked, config.generation.batch_tokens)
    score = _score(answers[: len(references)], references)
    held_out = f"{config.data.name}: {score.words:,} words never seen in training"
    rates = {"word error rate": score.word_error_rate, "phoneme error rate": score.phoneme_error_rate}
    write_card_of_run(output_dir, [Score(held_out, name, rate) for name, rate in rates.items()])
    _show(dict(zip(references, answers, strict=False)), references, score)
    for word, answer in list(zip(asked, answers, strict=True))[len(references) :]:
        print(f"  {word:18} {answer}")
    print(f"\nThe model: {output_dir / 'model'}. Pronounce more: make quickstart WORDS='transformer attention'")
    print("Train on your own text, two files in which line i of one is the translation of line i of the other:")
    print(
        "  .venv/bin/vanilla-transformer train configs/small.yaml data.train.source=my.en data.train.target=my.de "
        "training.output_dir=runs/my"
    )
    return 0


def _pronounce(model_folder: Path, words: list[str], batch_tokens: int) -> list[str]:
    from tqdm import tqdm

    from vanilla_transformer.cli.translate import open_model
    from vanilla_transformer.data.cmudict import spell
    from vanilla_transformer.evaluation.translate import translate_lines

    model, tokenizer = open_model(str(model_folder))
    with tqdm(total=len(words), unit=" words", desc="pronouncing held-out words", file=sys.stderr) as bar:
        best = translate_lines(
            model,
            tokenizer,
            [spell(word) for word in words],
            max_batch_tokens=batch_tokens,
            on_progress=lambda done, total: bar.update(done - bar.n),
        )
    return [translations[0].text for translations in best]


def _score(answers: list[str], references: dict[str, list[str]]) -> "PronunciationScore":
    from vanilla_transformer.evaluation.error_rate import score_pronunciations

    return score_pronunciations(answers, list(references.values()))


def _show(answers: dict[str, str], references: dict[str, list[str]], score: "PronunciationScore") -> None:
    print(f"\n{score.words:,} words never seen in training:")
    print(f"  word error rate    {score.word_error_rate:6.1%}")
    print(f"  phoneme error rate {score.phoneme_error_rate:6.1%}\n")
    shown = list(answers)[:SHOWN]
    width = max(len(answers[word]) for word in shown)
    print(f"    {'word':16} {'the model says':{width}}   the dictionary says")
    for word in shown:
        mark = "✓" if answers[word] in references[word] else "✗"
        print(f"  {mark} {word:16} {answers[word]:{width}}   {' | '.join(references[word])}")
    print()
