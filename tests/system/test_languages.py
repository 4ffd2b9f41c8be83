# SPDX-License-Identifier: Apache-2.0
"""Three languages of a toy grammar in one model: the installed command trains it, and each direction is right.

The grammar has 64 sentences, training shows all of them in every language, and validation ends it: a model that takes
the language from the tag, and the words from the source, has nothing left to guess.
"""

import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.system.test_reversal import command

pytestmark = pytest.mark.slow

SUBJECTS = ("dog", "cat", "bird", "fish")
VERBS = ("sees", "hears", "seeks", "finds")
OBJECTS = ("tree", "sea", "sun", "ice")
WORDS = {
    "de": "Hund Katze Vogel Fisch sieht hört sucht findet Baum See Sonne Eis",
    "fr": "chien chat oiseau poisson voit entend cherche trouve arbre mer soleil glace",
    "nl": "hond kat vogel vis ziet hoort zoekt vindt boom zee zon ijs",
}
ORDERS = {"de": (0, 2, 1), "fr": (0, 1, 2), "nl": (1, 0, 2)}  # of subject, verb and object
SENTENCES = list(product(SUBJECTS, VERBS, OBJECTS))
PAIRS = {"de": 20, "fr": 20, "nl": 40}  # of each sentence


def translation(sentence: tuple[str, ...], language: str) -> str:
    words = dict(zip([*SUBJECTS, *VERBS, *OBJECTS], WORDS[language].split(), strict=True))
    return " ".join(words[sentence[place]] for place in ORDERS[language])


def write(folder: Path, name: str, language: str, times: int) -> dict[str, Any]:
    path = folder / f"{name}.{language}.tsv"
    rows = [f"{' '.join(sentence)}\t{translation(sentence, language)}\n" for sentence in SENTENCES]
    path.write_text("source\ttarget\n" + "".join(rows * times), encoding="utf-8")
    return {"name": language, "path": str(path)}


@pytest.mark.parametrize("key", ["tag", "target_tag"])
def test_each_direction_is_right(tmp_path: Path, key: str):
    """By the tag before the source, and by the forced first token of the target; nl by half of its pairs an epoch."""
    tags = {language: {key: f"<2{language}>"} for language in WORDS}
    lists = {
        name: [write(tmp_path, name, language, times or PAIRS[language]) | tags[language] for language in WORDS]
        for name, times in (("train", None), ("validation", 1))
    }
    lists["train"][2]["weight"] = 0.5
    values = {
        "data": lists,
        "tokenizer": {"kind": "symbols"},
        "model": {"label_smoothing": 0, "d_model": 64, "d_ff": 128, "num_layers": 2, "num_heads": 4, "dropout": 0.0},
        "training": {
            "output_dir": str(tmp_path / "run"),
            "max_updates": 2000,
            "max_source_tokens": 800,
            "max_target_tokens": 800,
            "validate_every": 100,
            "best_by": "sentence_error_rate",
            "patience": 3,
            "average_checkpoints": 0,  # the best of all validations
            "attention": "eager",
            "mixed_precision": "no",
            "trackers": [],
        },
        "optimizer": {"warmup_steps": 100, "learning_rate_scale": 0.15},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    command("train", str(tmp_path / "run.yaml"))
    results = json.loads((tmp_path / "run" / "results.json").read_text(encoding="utf-8"))
    assert set(results["validation"]["corpora"]) == set(WORDS)
    source = "".join(f"{' '.join(sentence)}\n" for sentence in SENTENCES).encode()
    for language in WORDS:
        found = command("translate", str(tmp_path / "run" / "model"), "--target-language", language, input=source)
        assert found.stdout.decode().splitlines() == [translation(sentence, language) for sentence in SENTENCES]
