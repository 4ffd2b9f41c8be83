# SPDX-License-Identifier: Apache-2.0
"""Learn to pronounce English in a few minutes: train, score held-out words, show answers.

    vanilla-transformer quickstart
    vanilla-transformer quickstart covfefe vaswani

Words given on the command line are pronounced at the end. Run again, it resumes or reuses what is there.
"""

import argparse
import json
import sys
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("words", nargs="*", metavar="WORD", help="words to pronounce at the end")
    parser.add_argument("--config", default="configs/quickstart.yaml", help="(default: %(default)s)")
    parser.add_argument(
        "--set", nargs="*", default=[], dest="overrides", metavar="section.key=value", help="changes to the config"
    )


def run(arguments: argparse.Namespace) -> int:
    from vanilla_transformer.cli import train as train_command
    from vanilla_transformer.data.cmudict import write_pronunciation_corpus
    from vanilla_transformer.training.configuration import load_run_config

    config = load_run_config(arguments.config, arguments.overrides)
    assert config.data.train is not None and config.data.train.source is not None
    folder = Path(config.data.train.source).parent
    if not (folder / "test.json").exists():
        print("preparing the CMU Pronouncing Dictionary …", file=sys.stderr)
        write_pronunciation_corpus(folder)
    model_folder = Path(config.training.output_dir) / "model"
    train_command.run(arguments)
    references = json.loads((folder / "test.json").read_text(encoding="utf-8"))
    _show(model_folder, references, arguments.words, config.generation.batch_tokens)
    return 0


def _show(model_folder: Path, references: dict[str, list[str]], words: list[str], batch_tokens: int) -> None:
    from tqdm import tqdm

    from vanilla_transformer.data.cmudict import spell
    from vanilla_transformer.data.tokenizer import load_tokenizer
    from vanilla_transformer.evaluation.error_rate import score_pronunciations
    from vanilla_transformer.evaluation.model_folder import load_model_folder
    from vanilla_transformer.evaluation.translate import translate_lines

    model, tokenizer = load_model_folder(model_folder), load_tokenizer(model_folder)
    held_out = list(references)
    asked = [*held_out, *words]
    with tqdm(total=len(asked), unit=" words", desc="pronouncing held-out words", file=sys.stderr) as bar:
        best = translate_lines(
            model,
            tokenizer,
            [spell(word) for word in asked],
            max_batch_tokens=batch_tokens,
            on_progress=lambda done, total: bar.update(done - bar.n),
        )
    answers = {word: translations[0].text for word, translations in zip(asked, best, strict=True)}
    score = score_pronunciations([answers[word] for word in held_out], list(references.values()))
    print(f"\n{score.words:,} words never seen in training:")
    print(f"  word error rate    {score.word_error_rate:6.1%}")
    print(f"  phoneme error rate {score.phoneme_error_rate:6.1%}\n")
    width = max(len(answers[word]) for word in held_out[:10])
    for word in held_out[:10]:
        mark = "✓" if answers[word] in references[word] else "✗"
        print(f"  {mark} {word:16} {answers[word]:{width}}   {' | '.join(references[word])}")
    if words:
        print()
    for word in words:
        print(f"  {word:18} {answers[word]}")
    print(f"\nThe model: {model_folder}. Pronounce more: make quickstart WORDS='transformer attention'")
    print("Train on your own text, two files with a sentence and its translation on each line:")
    print("  vanilla-transformer train configs/my_text.yaml data.train.source=my.en data.train.target=my.de")
