# SPDX-License-Identifier: Apache-2.0
"""docs/decoding.md: its commands and snippets run, with a tiny model in the place of those that it names."""

import gzip
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from tests.test_readme import REPOSITORY
from vanilla_transformer.cli import main
from vanilla_transformer.console.shipped_configs import find_config
from vanilla_transformer.training.configuration import load_run_config

PAGE = (REPOSITORY / "docs" / "decoding.md").read_text(encoding="utf-8")
TEXT = "".join(re.findall(r"^```bash\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)).replace("\\\n", "")
LINES = [re.sub(r"^torchrun .* -m vanilla_transformer.cli", "vanilla-transformer", line) for line in TEXT.splitlines()]
# The aligner is not among the packages for developers.
COMMANDS = [line for line in LINES if not line.startswith(("pip install", "eflomal-align"))]
FILES = {  # in the letters that the tiny model knows; others have two lines of them
    "with_terms.tsv": "a b c\tb\nd e\td\te\n",
    "terms.tsv": "a\tb\n",
    "beginnings.de": "b\n\n",
    "dev.align": "0-0 1-1\n0-1\n",
    "test.align": "0-0\n0p0 1-1\n",
    "train.align": "0-0 1p1\n0-0\n",
    "lex.txt": "b a 0.5\nc b 1\n",
    "train.forward": "0-0 1-1\n0-0\n",
    "train.reverse": "0-0\n0-0 1-0\n",
}
NAMES = [f"{name}.{side}" for name in ("test", "val", "dev", "train") for side in ("en", "de")]


@pytest.fixture
def folder(model_folder: Path, tmp_path: Path, monkeypatch) -> Path:
    for run in ("my", "multi30k", "multi30k_rnn"):
        model = shutil.copytree(model_folder, tmp_path / "runs" / run / "model")
        config = json.loads((model / "generation_config.json").read_text(encoding="utf-8"))
        own = {"num_beams": 4, "alignment_heads": [[0, 0]], "alignment_shift": 0}  # more beams than a line has terms
        (model / "generation_config.json").write_text(json.dumps(config | own), encoding="utf-8")
    for name in (*NAMES, "my.en", "book.en"):
        (tmp_path / name).write_text(FILES.get(name, "a b c\nd e\n"), encoding="utf-8")
    for name, text in FILES.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    (tmp_path / "big.en.gz").write_bytes(gzip.compress(b"a b c\nd e\n"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_runs(folder: Path, command: str, monkeypatch, capsysbinary):
    words = shlex.split(command, comments=True)
    assert words[0] == "vanilla-transformer"
    given = words[words.index("<") + 1] if "<" in words else "test.en"
    words = words[1 : min(words.index(sign) if sign in words else len(words) for sign in "<>")]
    if words[0] == "train":
        assert load_run_config(find_config(Path(words[1]).stem), words[2:])
        return
    with (folder / given).open(encoding="utf-8") as file:
        monkeypatch.setattr("sys.stdin", file)
        assert main(words) == 0, capsysbinary.readouterr().err.decode()
    assert capsysbinary.readouterr().out or (folder / "big.de.gz").exists()


def test_the_snippets_run_one_after_the_other(folder: Path):
    namespace = {"__name__": "decoding"}
    for source in re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE):
        exec(source.replace("Ein Hund", "a b").replace("Hund", "b"), namespace)
