# SPDX-License-Identifier: Apache-2.0
"""Imports from the real toolkits: each trains a small model here, and decodes beside the model that we import of it.

    python -m tests.importing.real_toolkits [TOOLKIT …]

`make test-toolkits` runs it. The corpus is digits in English words, and the same in German backwards. A toolkit
translates 100 lines greedily by its own search, and gives its logits for these targets; the imported model does the
same from text. A row holds if its logits are within 1e-4, all translations and tokens identical, the BLEU the same to
0.05, and more than half of the translations distinct. The toolkits are installed into build/toolkits, which takes a
network; torch is the environment's.
"""

import contextlib
import os
import random
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from sacrebleu.metrics.bleu import BLEU

from tests.versions.installing import install, run_in
from vanilla_transformer.cli import main as command
from vanilla_transformer.data.tokenizer import load_tokenizer
from vanilla_transformer.inference.model_folder import load_model_folder
from vanilla_transformer.inference.translator import Translator

ROOT = Path("build", "toolkits")
LOGITS, BLEU_POINTS, LINES, MAX_LENGTH = 1e-4, 0.05, 100, 200
ENGLISH = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
GERMAN = ["null", "eins", "zwei", "drei", "vier", "fünf", "sechs", "sieben", "acht", "neun"]


@dataclass(frozen=True)
class Toolkit:
    """A toolkit: its distributions, the script that trains and decodes with it, its models.

    Args:
        name: with its version.
        requirements: in the order in which they are installed.
        kinds: the script's argument → the model, for the table.
    """

    name: str
    requirements: tuple[str, ...]
    script: str
    kinds: dict[str, str]


SUBWORDS = "subword-nmt==0.3.8"
MOSES = ("cloudpickle==3.1.2", "joblib==1.6.0", "sacremoses==0.2.0")
ONMT = ("configargparse==1.9.0", "pyonmttok==1.38.1")
FAIRSEQ = ("cython==3.3.1", "antlr4-python3-runtime==4.9.3", "omegaconf==2.3.0", "hydra-core==1.3.2")
TOOLKITS = {
    "joeynmt": Toolkit(
        "JoeyNMT 2.3.0",
        (SUBWORDS, "sentencepiece==0.2.0", "joeynmt==2.3.0"),  # later ones lack SetVocabulary
        "in_joeynmt.py",
        {
            "post": "post-norm, all tied, SentencePiece",
            "pre": "pre-norm, two vocabularies, subword-nmt",
            "gru": "GRU, additive attention, words",
            "lstm": "LSTM, multiplicative attention, words",
        },
    ),
    "opennmt2": Toolkit(
        "OpenNMT-py 2.3.0",
        (*ONMT, "torchtext==0.5.0", "OpenNMT-py==2.3.0"),
        "in_opennmt.py",
        {"onmt2": "pre-norm, all tied, words"},
    ),
    "opennmt3": Toolkit(
        "OpenNMT-py 3.5.1",
        (*ONMT, "pyahocorasick==2.3.1", "OpenNMT-py==3.5.1"),
        "in_opennmt.py",
        {"onmt3": "pre-norm, two vocabularies, SinusoidalConcat, biases, words"},
    ),
    "eole": Toolkit(
        "eole 0.6.0",
        (*ONMT, SUBWORDS, "pyahocorasick==2.3.1", "torch-optimi==0.3.3", "eole==0.6.0"),
        "in_opennmt.py",
        {
            "eole": "pre-norm, two vocabularies, words",
            "eole-pieces": "pre-norm, all tied, SinusoidalConcat, SentencePiece",
        },
    ),
    "fairseq": Toolkit(
        "fairseq 0.12.3.1 (fairseq-fixed)",
        (*FAIRSEQ, *MOSES, "bitarray==3.12.3", SUBWORDS, "detransliterator==0.0.2", "fairseq-fixed==0.12.3.1"),
        "in_fairseq.py",
        {
            "post": "post-norm, one dictionary, all tied, subword-nmt",
            "learned": "pre-norm, two dictionaries, learned positions, words",
            "published": "detransliterator 0.0.2, as published",
        },
    ),
    "transformers": Toolkit(
        f"transformers {transformers.__version__}",
        (SUBWORDS, *MOSES),
        "in_transformers.py",
        {"marian": "MarianMT, two vocabularies, SentencePiece", "fsmt": "FSMT, two vocabularies, BPE"},
    ),
}


def write_corpus(folder: Path) -> None:
    """`train`, `dev` and `test`, each .src and .tgt: of a target's words, the last comes first."""
    rng = random.Random(1)
    for name, count in (("train", 3000), ("dev", 20), ("test", LINES)):
        numbers = [[rng.randrange(10) for _ in range(rng.randint(2, 6))] for _ in range(count)]
        for suffix, words, step in (("src", ENGLISH, 1), ("tgt", GERMAN, -1)):
            lines = [" ".join(words[digit] for digit in number[::step]) for number in numbers]
            (folder / f"{name}.{suffix}").write_text("\n".join(lines) + "\n", encoding="utf-8")


@torch.no_grad()
def compare(folder: Path, work: Path) -> tuple[float, int, int, float, float, str]:
    """The model that we have imported into `folder` beside the answers of the toolkit in `work`.

    Returns:
        the largest difference of a logit; identical translations, tokens as well as text; how many of the toolkit's
        texts differ from one another; BLEU of the toolkit and ours; its signature.
    """
    lines, references = ((work / f"test.{side}").read_text(encoding="utf-8").splitlines() for side in ("src", "tgt"))
    expected = torch.load(work / "answers.pt")
    limit = max(MAX_LENGTH, *(len(target) - 1 for target, _, _ in expected))  # fairseq's leaves the end out
    texts = Translator.from_pretrained(folder).translate(lines, num_beams=1, max_new_tokens=limit)
    model, tokenizer = load_model_folder(folder), load_tokenizer(folder)
    model.generation_config.max_length = None  # transformers would warn of each line
    largest, identical = 0.0, 0
    for line, (target, logits, text), ours in zip(lines, expected, texts, strict=True):
        source = tokenizer(line, return_tensors="pt")["input_ids"]
        found = model(input_ids=source, decoder_input_ids=torch.tensor([target[:-1]])).logits[0]
        largest = max(largest, (found[:, : logits.shape[1]] - logits).abs().max().item())
        tokens = model.generate(source, num_beams=1, max_new_tokens=limit)[0].tolist()
        identical += tokens == target and ours == text
    theirs = [text for _, _, text in expected]
    metric = BLEU()
    scores = [metric.corpus_score(system, [references]).score for system in (theirs, texts)]
    return largest, identical, len(set(theirs)), *scores, str(metric.get_signature())


def rows(name: str) -> Iterator[tuple[bool, str]]:
    """Install, train, import and compare: whether a row holds, and its text."""
    toolkit = TOOLKITS[name]
    ROOT.mkdir(parents=True, exist_ok=True)
    install(toolkit.requirements, ROOT / name)
    for kind, model in toolkit.kinds.items():
        with tempfile.TemporaryDirectory() as temporary:
            work, folder = Path(temporary), Path(temporary, "imported")
            write_corpus(work)
            run_in((ROOT / name).resolve(), Path(__file__).with_name(toolkit.script).resolve(), [kind], work)
            source = next(path for path in (work / "model", work / "model.pt") if path.exists())
            with open(os.devnull, "w", encoding="utf-8") as null, contextlib.redirect_stdout(null):
                if status := command(["import", str(source), str(folder)]):
                    raise RuntimeError(f"vanilla-transformer import has ended with {status}: {name}, {kind}")
            largest, identical, distinct, theirs, ours, signature = compare(folder, work)
        holds = largest <= LOGITS and identical == LINES and abs(theirs - ours) <= BLEU_POINTS and 2 * distinct > LINES
        figures = [
            f"{largest:.1e}",
            f"{identical} of {LINES}",
            str(distinct),
            f"{theirs:.2f}",
            f"{ours:.2f}",
            signature,
        ]
        yield holds, " | ".join([toolkit.name, model, *figures, "holds" if holds else "FAILS"])


def main(*names: str) -> None:
    if unknown := set(names) - TOOLKITS.keys():
        sys.exit(f"unknown toolkit {', '.join(sorted(unknown))}; use one of {', '.join(TOOLKITS)}")
    titles = ["toolkit", "model", "largest logit difference", "identical", "distinct", "its BLEU", "ours", "signature"]
    print(" | ".join([*titles, "bars"]), flush=True)
    failed = 0
    for name in names or TOOLKITS:
        try:
            for holds, row in rows(name):
                print(row, flush=True)
                failed += not holds
        except (RuntimeError, OSError, ValueError) as error:
            print(f"{name}: {error}", file=sys.stderr, flush=True)
            failed += 1
    sys.exit(failed > 0)


if __name__ == "__main__":
    main(*sys.argv[1:])
