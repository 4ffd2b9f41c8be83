# SPDX-License-Identifier: Apache-2.0
"""A Translator elsewhere than in the process that opened it: pickled, forked, in another locale, without a compiler."""

import copy
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.families import END, FAMILIES, START, Family
from vanilla_transformer import Translator
from vanilla_transformer.data.tokenizer import TokenizerConfig, train_tokenizer
from vanilla_transformer.inference.native.engine import Engine, fast_decoder
from vanilla_transformer.packed_linear import PRECISIONS, Precision

SYMBOLS = [f"w{i}" for i in range(27)]  # with the 4 special tokens, the vocabulary of a tiny model
LINES = [" ".join(SYMBOLS[i : i + 4]) for i in range(6)]
OPTIONS = {"num_beams": 2, "max_new_tokens": 6}


def translator(family: Family, precision: Precision = "float32", engine: Engine = "auto", **changes) -> Translator:
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    names = {"pad_token_id": 0, "bos_token_id": START, "eos_token_id": END, "decoder_start_token_id": START}
    model = family.model(dtype, **names, **changes)
    tokenizer = train_tokenizer([" ".join(SYMBOLS)], TokenizerConfig(kind="symbols"))
    return Translator(model, tokenizer, fast_decoder(model, precision, engine))


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda item: pickle.loads(pickle.dumps(item))], ids=["copy", "pickle"]
)
@pytest.mark.parametrize("engine", ["auto", "torch"])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_copy_translates_the_same(family, precision, engine, duplicate):
    original = translator(family, precision, engine)
    copied = duplicate(original)
    assert copied.engine == original.engine
    assert copied.translate(LINES[:5], **OPTIONS) == original.translate(LINES[:5], **OPTIONS)


SCRIPT = """
import json, os, pickle, signal, sys
import torch

torch.set_num_threads(2)
with open(sys.argv[1], "rb") as file:
    translators = pickle.load(file)
lines, options = json.loads(sys.argv[2])
found = {"here": {}, "forked": {}}
for name, translator in translators.items():
    found["here"][name] = translator.engine, translator.translate(lines, **options)
for name, translator in translators.items():
    reader, writer = os.pipe()
    if os.fork() == 0:
        signal.alarm(200)
        os.write(writer, json.dumps(translator.translate(lines, **options)).encode())
        os._exit(0)
    os.close(writer)
    with open(reader, "rb") as answer:
        found["forked"][name] = json.loads(answer.read() or "null")

print("now there is no compiler", file=sys.stderr, flush=True)
from vanilla_transformer.inference.native import compiler
from vanilla_transformer.inference.native.engine import fast_decoder

compiler.library.cache_clear()
os.environ["CXX"] = "/nowhere/c++"
for _ in range(3):
    fast_decoder(translators["native"].model)
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory) -> dict[str, Any]:
    """The output of a process that gets two translators, has the locale C, computes on two threads and forks."""
    path: Path = tmp_path_factory.mktemp("pickled") / "translators"
    wide = {"d_model": 512, "d_ff": 512, "num_layers": 1, "num_decoder_layers": 1}  # which threads share
    translators = {engine: translator(FAMILIES[0], engine=engine, **wide) for engine in ("native", "torch")}
    path.write_bytes(pickle.dumps(translators))
    expected = {name: item.translate(LINES, **OPTIONS) for name, item in translators.items()}
    environment = {name: value for name, value in os.environ.items() if name not in ("CXX", "OMP_NUM_THREADS")}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT, str(path), json.dumps([LINES, OPTIONS])],
        cwd=Path(__file__).parents[2],
        # Passive: threads that wait for another process' core would spin, and take minutes.
        env=environment | {"LC_ALL": "C", "PYTHONUTF8": "0", "OMP_WAIT_POLICY": "PASSIVE"},
        capture_output=True,
        encoding="utf-8",
        timeout=300,  # a fork that waits for ever
        check=False,
    )
    assert done.returncode == 0, done.stderr
    before, _, after = done.stderr.partition("now there is no compiler\n")
    return json.loads(done.stdout) | {"expected": expected, "before": before, "after": after}


def test_it_can_be_given_to_another_process_whatever_its_locale(elsewhere):
    assert elsewhere["here"] == {name: [name, lines] for name, lines in elsewhere["expected"].items()}


def test_a_forked_process_computes_and_says_that_it_has_one_thread(elsewhere):
    assert elsewhere["forked"] == elsewhere["expected"]
    said = [line for line in elsewhere["before"].splitlines() if "was forked" in line]
    assert len(said) == 2  # once in each child
    assert all("without the 2 threads of its parent, and computes on one" in line for line in said)


def test_a_fall_back_is_one_line_on_stderr(elsewhere):
    [line] = [line for line in elsewhere["after"].splitlines() if "PyTorch decodes, more slowly" in line]
    assert "CXX='/nowhere/c++' names no program" in line
