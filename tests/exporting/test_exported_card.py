# SPDX-License-Identifier: Apache-2.0
"""The card of an exported folder."""

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import metadata_load

from tests.families import FAMILIES
from tests.hub.model_folders import targets_of_example, write_exportable_folder
from vanilla_transformer.data.tokenizer import TokenizerConfig, load_tokenizer, train_tokenizer
from vanilla_transformer.exporting.export_model import export_model
from vanilla_transformer.exporting.exported_card import write_exported_card
from vanilla_transformer.inference.model_folder import load_model_folder


@pytest.fixture
def source(model_folder: Path, tmp_path: Path) -> Path:
    """A model folder with a card of its own."""
    folder = tmp_path / "runs" / "reverser" / "model"
    return write_exportable_folder(model_folder, folder, weights_license="cc-by-4.0", languages=["en", "de"])


def printed_by_card(folder: Path, monkeypatch) -> list[str]:
    """Run the code of an exported folder's card in that folder, and return the list that it prints."""
    [code] = re.findall(r"^```python\n(.*?)^```$", (folder / "README.md").read_text("utf-8"), re.DOTALL | re.MULTILINE)
    monkeypatch.chdir(folder)
    threads = torch.get_num_threads()
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(compile(code, "README.md", "exec"), {})
    torch.set_num_threads(threads)  # CTranslate2 sets OpenMP's number, which is torch's too
    return eval(out.getvalue())


@pytest.mark.parametrize("runtime", ["marian", "ctranslate2"])
def test_the_card_opens_the_folder(source: Path, runtime: str, tmp_path: Path, monkeypatch):
    folder = tmp_path / "out"
    folder.mkdir()
    model, tokenizer = load_model_folder(source), load_tokenizer(source)
    export_model(model, tokenizer, folder, runtime)
    write_exported_card(source, folder, runtime, "float32")
    assert printed_by_card(folder, monkeypatch) == targets_of_example(source)


def test_the_card_opens_a_folder_with_two_tokenizers(tmp_path: Path, monkeypatch):
    lines = ["One line of the source."]  # the card's
    tokenizer, target = (
        train_tokenizer([text], TokenizerConfig(kind="symbols")) for text in (lines[0], "a b c d e f g")
    )
    tokenizer.target_tokenizer = target
    sizes = {"vocab_size": len(tokenizer), "decoder_vocab_size": len(target)}
    model: Any = FAMILIES[0].model(**sizes, share_encoder_decoder_embeddings=False)
    tokenizer.save_pretrained(tmp_path / "model")
    folder = tmp_path / "out"
    folder.mkdir()
    export_model(model, load_tokenizer(tmp_path / "model"), folder, "ctranslate2")
    write_exported_card(tmp_path / "model", folder, "ctranslate2", "float32")
    search = {"num_beams": 4, "length_penalty": 1.0, "early_stopping": True, "max_new_tokens": 256}  # its default
    expected = target.batch_decode(model.generate(**tokenizer(lines, return_tensors="pt"), **search), True)
    assert printed_by_card(folder, monkeypatch) == expected


def test_licence_and_languages_are_the_sources(source: Path, tmp_path: Path):
    (source / "LICENSE").write_text("Mine.\n", encoding="utf-8")
    write_exported_card(source, tmp_path, "ctranslate2", "int8")
    assert metadata_load(tmp_path / "README.md") == {
        "language": ["en", "de"],
        "license": "cc-by-4.0",
        "library_name": "ctranslate2",
        "pipeline_tag": "translation",
        "tags": ["vanilla_transformer", "ctranslate2"],
    }
    assert (tmp_path / "LICENSE").read_text(encoding="utf-8") == "Mine.\n"
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "# reverser for CTranslate2\n" in text
    assert "from reverser, with weights in int8.\n" in text
    assert "Weights: cc-by-4.0. `LICENSE` is that of reverser.\n" in text
    assert str(tmp_path) not in text


def test_a_source_without_card_and_licence(source: Path, tmp_path: Path):
    (source / "README.md").unlink()
    (source / "LICENSE").unlink()
    write_exported_card(source, tmp_path, "marian", "float32")
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert text.endswith("Weights: see reverser.\n")
    assert not (tmp_path / "LICENSE").exists()


@pytest.mark.parametrize("metadata", ["- a list", "a: [b"])
def test_a_damaged_card_is_named(source: Path, tmp_path: Path, metadata: str):
    (source / "README.md").write_text(f"---\n{metadata}\n---\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"^README.md of .* is no valid model card: "):
        write_exported_card(source, tmp_path, "marian", "float32")
