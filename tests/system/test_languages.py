# SPDX-License-Identifier: Apache-2.0
"""Three languages of a toy grammar in one model: the installed command trains it, and each direction is right."""

import json
import random
from pathlib import Path

import pytest
import yaml

from tests.system.test_reversal import command

pytestmark = pytest.mark.slow

LANGUAGES = {
    "de": lambda letters: letters[::-1],
    "fr": lambda letters: [letter.upper() for letter in letters],
    "nl": lambda letters: letters[1:] + letters[:1],
}


def write(folder: Path, name: str, language: str, pairs: int) -> dict[str, str]:
    draws = random.Random(f"{name} {language}")
    sources = [[draws.choice("abcdefgh") for _ in range(draws.randint(2, 6))] for _ in range(pairs)]
    path = folder / f"{name}.{language}.tsv"
    rows = ["source\ttarget", *(f"{' '.join(each)}\t{' '.join(LANGUAGES[language](each))}" for each in sources)]
    path.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
    return {"name": language, "path": str(path)}


@pytest.mark.parametrize("key", ["tag", "target_tag"])
def test_each_direction_is_right(tmp_path: Path, key: str):
    """By the tag before the source, and by the forced first token of the target; nl by half of its pairs an epoch."""
    tags = {language: {key: f"<2{language}>"} for language in LANGUAGES}
    sizes = {"de": 4000, "fr": 4000, "nl": 8000}
    lists = {
        name: [write(tmp_path, name, language, count or sizes[language]) | tags[language] for language in LANGUAGES]
        for name, count in (("train", None), ("validation", 60))
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
            "validate_every": 1000,
            "checkpoint_every": 100,
            "attention": "eager",
            "trackers": [],
        },
        "optimizer": {"warmup_steps": 300, "learning_rate_scale": 0.25},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    command("train", str(tmp_path / "run.yaml"))
    results = json.loads((tmp_path / "run" / "results.json").read_text(encoding="utf-8"))
    assert set(results["validation"]["corpora"]) == set(LANGUAGES)
    sources = [random.Random(number).choices("abcdefgh", k=2 + number % 5) for number in range(200)]
    for language, translate in LANGUAGES.items():
        lines = "".join(f"{' '.join(source)}\n" for source in sources).encode()
        options = ["--target-language", language, "--beams", "1"]
        found = command("translate", str(tmp_path / "run" / "model"), *options, input=lines).stdout
        expected = [" ".join(translate(source)) for source in sources]
        right = sum(line == other for line, other in zip(found.decode().splitlines(), expected, strict=True))
        print(f"{key}, {language}: {right} of {len(expected)} translations are right")
        assert right / len(expected) > 0.95
