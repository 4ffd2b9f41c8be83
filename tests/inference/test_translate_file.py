# SPDX-License-Identifier: Apache-2.0
"""A large file ends with the same bytes after interruptions, with any number of processes."""

import gzip
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import write_reversals
from tests.distributed.launching import launch
from tests.inference.interruption import Interrupted, interrupt_after
from vanilla_transformer.cli import main
from vanilla_transformer.data.corpus import read_lines
from vanilla_transformer.inference.translate import Translation
from vanilla_transformer.inference.translate_file import translate_file
from vanilla_transformer.inference.translator import Translator

TIMEOUT = 300  # seconds, on a machine that does much else
OPTIONS = {"num_beams": 3, "max_batch_tokens": 500}


@pytest.fixture
def translator(model_folder: Path) -> Translator:
    return Translator.from_pretrained(model_folder, device="cpu")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """25 lines, one of them empty."""
    path = Path(write_reversals(tmp_path, "big", 24)["target"])
    path.write_text("\n" + path.read_text(encoding="utf-8"), encoding="utf-8")
    return path


def as_text(number: int, best: list[Translation]) -> str:
    return f"{number} {best[0].text}\n"


@pytest.mark.parametrize("name", ["out", "out.gz"])
def test_the_output_has_each_line_and_the_same_bytes_after_an_interruption(translator, source, tmp_path, name):
    lines = list(read_lines(source))
    assert translate_file(translator, source, tmp_path / name, as_text, 4, **OPTIONS) == 25
    expected = [f"{i} {text}" for i, text in enumerate(translator.translate(lines, **OPTIONS), start=1)]
    assert list(read_lines(tmp_path / name)) == expected
    again = tmp_path / f"again.{name}"
    with pytest.raises(Interrupted):
        translate_file(translator, source, again, as_text, 4, interrupt_after(3), **OPTIONS)
    assert not again.exists()
    (tmp_path / f"again.{name}.shards" / ".000003").write_bytes(b"half of it")
    decoded = []
    translate_file(translator, source, again, as_text, 4, decoded.append, **OPTIONS)
    assert decoded == [4, 4, 4, 1]
    assert again.read_bytes() == (tmp_path / name).read_bytes()
    assert not Path(f"{again}.shards").exists()


def test_gzip_input_is_read(translator, source, tmp_path):
    (tmp_path / "big.gz").write_bytes(gzip.compress(source.read_bytes()))
    for path in (source, tmp_path / "big.gz"):
        translate_file(translator, path, tmp_path / f"{path.name}.out", as_text, **OPTIONS)
    assert (tmp_path / "big.gz.out").read_bytes() == (tmp_path / f"{source.name}.out").read_bytes()


def test_options_follow_their_lines_and_others_are_refused(translator, source, tmp_path):
    prefixes = [text.split(" ")[0] for text in read_lines(source)]
    options = OPTIONS | {"prefixes": prefixes}
    with pytest.raises(Interrupted):
        translate_file(translator, source, tmp_path / "out", as_text, 4, interrupt_after(2), **options)
    with pytest.raises(ValueError, match=r"out.shards was begun with prefixes=\w+, and this is prefixes=None"):
        translate_file(translator, source, tmp_path / "out", as_text, 4, **OPTIONS)
    translate_file(translator, source, tmp_path / "out", as_text, 4, **options)
    for number, (line, prefix) in enumerate(zip(read_lines(tmp_path / "out"), prefixes, strict=True), start=1):
        assert line.startswith(f"{number} {prefix}")
    with pytest.raises(ValueError, match="prefixes has 26 rows for 25 lines"):
        translate_file(translator, source, tmp_path / "more", as_text, **OPTIONS, prefixes=[*prefixes, ""])


def command(model: Path, source: Path, output: Path) -> list[str]:
    arguments = ["-m", "vanilla_transformer.cli", "translate", str(model), "--input", str(source)]
    return [*arguments, "--output", str(output), "--shard-lines", "2", "--n-best", "2", "--beams", "2"]


@pytest.mark.slow
def test_a_command_killed_again_and_again_ends_with_the_same_bytes(model_folder, source, tmp_path):
    """SIGKILL, each time after some more shards."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    assert main(command(model_folder, source, tmp_path / "alone")[2:]) == 0
    output, kills = tmp_path / "out", 0
    while not output.exists():
        shards = len(list(tmp_path.glob("out.shards/0*")))
        process = subprocess.Popen([sys.executable, *command(model_folder, source, output)], env=environment)
        end = time.monotonic() + TIMEOUT
        while process.poll() is None and len(list(tmp_path.glob("out.shards/0*"))) <= shards + 4:
            assert time.monotonic() < end
            time.sleep(0.001)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait()
    assert kills
    assert output.read_bytes() == (tmp_path / "alone").read_bytes()


@pytest.mark.slow
def test_two_processes_write_the_bytes_of_one(model_folder, source, tmp_path):
    """13 shards, which they cannot share evenly."""
    assert main(command(model_folder, source, tmp_path / "one")[2:]) == 0
    launch(command(model_folder, source, tmp_path / "two"), 2)
    assert (tmp_path / "two").read_bytes() == (tmp_path / "one").read_bytes()
