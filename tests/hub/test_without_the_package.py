# SPDX-License-Identifier: Apache-2.0
"""A model folder opens in a fresh process (a) with this package, and (b) without it, by the code that it carries."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import vanilla_transformer as package
from vanilla_transformer.data.tokenizer import TokenizerConfig, train_tokenizer

TINY = {
    package.VanillaTransformerForConditionalGeneration: package.VanillaTransformerConfig(
        vocab_size=12, d_model=16, d_ff=32, num_layers=2, num_heads=2
    ),
    package.RNNSeq2SeqForConditionalGeneration: package.RNNSeq2SeqConfig(
        vocab_size=12, embedding_size=8, hidden_size=8, cell="lstm", num_layers=2, tie_word_embeddings=True
    ),
}
WITHOUT = "import sys; sys.modules['vanilla_transformer'] = None  # importing it raises ModuleNotFoundError\n"
WITH = "import vanilla_transformer\n"
# Prints what it found as the last line; saves what it opened to `again`.
OPEN = """
import json, sys
from transformers import AutoConfig, AutoModel, AutoModelForSeq2SeqLM, AutoTokenizer, pipeline
folder, again, trust = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
config = AutoConfig.from_pretrained(folder, trust_remote_code=trust)
base = AutoModel.from_pretrained(folder, trust_remote_code=trust)
model = AutoModelForSeq2SeqLM.from_pretrained(folder, trust_remote_code=trust)
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust)
batch = tokenizer(["a b c", "h g f e d"], return_tensors="pt", padding=True)
options = {"max_new_tokens": 9, "num_beams": 4}
if trust:
    paper = model.generate(**batch, **options, custom_generate=folder, trust_remote_code=True)
else:
    from vanilla_transformer.generation import beam_search
    paper = model.generate(**batch, **options, custom_generate=beam_search)
translator = pipeline("translation", folder, trust_remote_code=trust)
found = {
    "modules": sorted({type(x).__module__.rpartition(".")[2] for x in (config, base, model)}),
    "from the folder": [type(x).__module__.startswith("transformers_modules.") for x in (config, base, model)],
    "greedy": model.generate(**batch, max_new_tokens=9).tolist(),
    "beam": model.generate(**batch, **options).tolist(),
    "paper": paper.tolist(),
    "base": base(**batch, decoder_input_ids=batch["input_ids"]).last_hidden_state.sum().item(),
    "pipeline": translator("a b c", max_new_tokens=9)[0]["translation_text"],
}
model.save_pretrained(again)
tokenizer.save_pretrained(again)
print(json.dumps(found))
"""


def in_a_fresh_process(code: str, tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess:
    tmp_path.mkdir(exist_ok=True)
    environment = os.environ | {"HF_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": ""}
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *arguments],
        cwd=tmp_path,
        capture_output=True,
        stdin=subprocess.DEVNULL,
        encoding="utf-8",
        env=environment,
        check=False,
    )


@pytest.fixture(scope="module", params=TINY, ids=lambda model: model.__name__)
def folder(request, tmp_path_factory) -> Path:
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("saved") / "model"
    model = request.param(TINY[request.param])
    with torch.no_grad():  # so that outputs vary
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    model.save_pretrained(path)
    train_tokenizer(["a b c d e f g h"], TokenizerConfig(kind="symbols")).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def opened(folder: Path, tmp_path_factory) -> dict[str, dict]:
    """What both ways print; "again" is the folder that (b) saved, opened the same way."""
    root = tmp_path_factory.mktemp("opened")
    found = {}
    ways = {
        "with": (WITH, folder, False),
        "without": (WITHOUT, folder, True),
        "again": (WITHOUT, root / "without", True),
    }
    for name, (start, source, trust) in ways.items():
        result = in_a_fresh_process(
            start + OPEN, root / f"{name}-process", str(source), str(root / name), json.dumps(trust)
        )
        assert result.returncode == 0, result.stderr[-3000:]
        found[name] = json.loads(result.stdout.splitlines()[-1]) | {"saved": root / name}
        print(name, json.dumps({key: value for key, value in found[name].items() if key != "saved"}))
    return found


def test_both_ways_give_the_same_tokens(opened):
    for what in ("greedy", "beam", "paper", "base", "pipeline"):
        assert opened["without"][what] == opened["with"][what], what


def test_the_code_is_the_packages_or_the_folders(opened):
    assert opened["with"]["from the folder"] == [False] * 3
    assert opened["without"]["from the folder"] == [True] * 3


@pytest.mark.parametrize("way", ["with", "without", "again"])
def test_saving_again_keeps_every_file(opened, folder, way):
    def files(path: Path) -> dict[str, bytes]:
        return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}

    first, second = files(folder), files(opened[way]["saved"])
    assert second.keys() == first.keys()
    # The tokenizer's files tell how it was last used; that they work, "again" shows.
    assert [name for name in first if first[name] != second[name] and not name.startswith("tokenizer")] == []


def test_a_folder_saved_without_the_package_opens_without_it(opened):
    assert opened["again"] | {"saved": None} == opened["without"] | {"saved": None}


def test_the_code_is_that_of_the_package(folder):
    root = Path(package.__file__).parent
    files = list(folder.glob("*.py"))
    assert files
    for path in [*files, folder / "custom_generate/search.py", folder / "custom_generate/decoder.py"]:
        assert path.read_bytes() == (root / path.name).read_bytes()
    assert (folder / "custom_generate/generate.py").read_bytes() == (root / "generation.py").read_bytes()


OPEN_WITHOUT_CONSENT = """
from transformers import AutoConfig, AutoModel, AutoModelForSeq2SeqLM
for opener in (AutoConfig, AutoModel, AutoModelForSeq2SeqLM):
    try:
        opener.from_pretrained(sys.argv[1])
    except ValueError as error:
        print("\\nrefused:", str(error).splitlines()[-1])  # after the question, which nobody answers
"""


def test_without_consent_nothing_is_executed(folder, tmp_path):
    result = in_a_fresh_process(WITHOUT + OPEN_WITHOUT_CONSENT, tmp_path / "process", str(folder))
    assert result.returncode == 0, result.stderr[-3000:]
    refusals = [line for line in result.stdout.splitlines() if line.startswith("refused:")]
    assert len(refusals) == 3
    assert all("trust_remote_code=True" in line for line in refusals)
    assert not list((tmp_path / "process" / "home").rglob("modeling_*.py"))  # not even copied to where it would run
