# SPDX-License-Identifier: Apache-2.0
"""The whole way with the installed command: text files, training, translations, a score; it must really have learnt."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.conftest import write_reversals

pytestmark = pytest.mark.slow


def command(*arguments: str, **options) -> subprocess.CompletedProcess:
    line = [sys.executable, "-m", "vanilla_transformer.cli", *arguments]
    return subprocess.run(line, check=True, capture_output=True, **options)


MODELS = {
    "vanilla_transformer": {"d_model": 64, "d_ff": 128, "num_layers": 2, "num_heads": 4, "dropout": 0.0},
    "rnn_seq2seq": {"cell": "gru", "embedding_size": 64, "hidden_size": 64, "attention": "additive"},
}


@pytest.fixture(scope="module", params=MODELS)
def run(request, tmp_path_factory) -> Path:
    """A run that has learnt to reverse up to six letters: about a minute."""
    folder = tmp_path_factory.mktemp("system")
    values = {
        "data": {name: write_reversals(folder, name, n) for name, n in (("train", 6000), ("validation", 100))},
        "tokenizer": {"kind": "symbols"},
        "model": {"model_type": request.param, "label_smoothing": 0, **MODELS[request.param]},
        "training": {
            "output_dir": str(folder / "run"),
            "max_updates": 2000,
            "max_source_tokens": 600,
            "max_target_tokens": 600,
            "validate_every": 500,
            "checkpoint_every": 100,
            "attention": "eager",
        },
        "optimizer": {"warmup_steps": 300, "learning_rate_scale": 0.25},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    command("train", str(folder / "run.yaml"))
    return folder


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
def test_reversal_is_learnt(run: Path, precision: str):
    test = write_reversals(run, "test", 200)
    source, target = (Path(test[side]).read_bytes() for side in ("source", "target"))
    translated = command("translate", str(run / "run" / "model"), "--precision", precision, input=source).stdout
    pairs = list(zip(translated.splitlines(), target.splitlines(), strict=True))
    assert sum(pair == other for pair, other in pairs) / len(pairs) > 0.97


def test_its_perplexity_is_near_one_and_its_bleu_near_a_hundred(run: Path):
    validation = json.loads((run / "run" / "results.json").read_text(encoding="utf-8"))["validation"]
    assert validation["perplexity"] < 1.1
    assert validation["bleu"] > 95


def test_the_same_command_again_changes_nothing(run: Path):
    weights = run / "run" / "model" / "model.safetensors"
    before = weights.read_bytes()
    command("train", str(run / "run.yaml"))
    assert weights.read_bytes() == before


def test_the_model_opens_without_the_network_and_with_the_package_alone(run: Path):
    code = (
        "import sys, vanilla_transformer\n"
        "from transformers import AutoModelForSeq2SeqLM, AutoTokenizer\n"
        "t, m = (c.from_pretrained(sys.argv[1]) for c in (AutoTokenizer, AutoModelForSeq2SeqLM))\n"
        "print(t.decode(m.generate(**t('a b c d', return_tensors='pt'))[0], skip_special_tokens=True))"
    )
    arguments = [sys.executable, "-c", code, str(run / "run" / "model")]
    result = subprocess.run(arguments, check=True, capture_output=True, encoding="utf-8", env=os.environ)
    assert result.stdout.strip() == "d c b a"
