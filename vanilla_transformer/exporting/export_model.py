# SPDX-License-Identifier: Apache-2.0
"""Write a model folder for another runtime, with a card of its own."""

import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData, metadata_load
from transformers.utils.hub import cached_file
from yaml import YAMLError

from vanilla_transformer.comparison.markdown import escape
from vanilla_transformer.data.tokenizer import load_tokenizer
from vanilla_transformer.exporting.requirements import Quantization
from vanilla_transformer.hub.exported_folders import RUNTIMES, example_lines, opening_code
from vanilla_transformer.hub.model_card import LICENSE, link
from vanilla_transformer.hub.run_facts import folder_name
from vanilla_transformer.inference.model_folder import load_model_folder

CARD, TEMPLATE = "README.md", Path(__file__).with_name("exported_card.md")
KEPT = ("license", "license_name", "license_link", "language", "pipeline_tag")  # metadata that holds for both folders


def export_model(source: str | Path, folder: Path, runtime: str, quantization: Quantization = "float32") -> None:
    """Write a model for another runtime: weights, tokenizer, card, and the licence that lies beside the model.

    Args:
        source: model folder or Hub id.
        folder: exists and is empty.
        runtime: a key of `RUNTIMES`.
        quantization: "float32" for "marian".

    Raises:
        FileNotFoundError, ValueError: as `load_model_folder`; the runtime does not have this architecture.
        OSError: the folder cannot be written.
    """
    model, tokenizer = load_model_folder(source), load_tokenizer(source)
    if runtime == "marian":
        from vanilla_transformer.exporting.marian import write_marian

        write_marian(model, tokenizer, folder)
    elif runtime == "onnx":
        from vanilla_transformer.exporting.onnx import write_onnx

        write_onnx(model, tokenizer, folder, quantization)
    else:
        from vanilla_transformer.exporting.ctranslate2 import write_ctranslate2_folder

        write_ctranslate2_folder(model, tokenizer, folder, quantization)
    write_exported_card(source, folder, runtime, quantization)


def write_exported_card(source: str | Path, folder: Path, runtime: str, quantization: Quantization) -> None:
    """Write `folder/README.md`, and copy LICENSE; the licence of the weights is that of the source's card.

    Args:
        source, runtime, quantization: as for `export_model`.

    Raises:
        ValueError: the card of the source is damaged.
    """
    card, license_file = _source_file(source, CARD), _source_file(source, LICENSE)
    try:
        metadata: dict[str, Any] = (metadata_load(card) if card else None) or {}
    except (ValueError, YAMLError) as error:
        raise ValueError(f"{CARD} of {source} is no valid model card: {error}") from error
    if license_file is not None:
        shutil.copyfile(license_file, folder / LICENSE)
    name, is_local, chosen = folder_name(source), Path(source).exists(), RUNTIMES[runtime]
    name_of_source = escape(name) if is_local else link(name)
    data = ModelCardData(
        base_model=None if is_local else name,
        library_name=chosen.library_name,
        tags=["vanilla_transformer", runtime],
        **{field: metadata[field] for field in KEPT if field in metadata},
    )
    text = ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        name=escape(name),
        title=chosen.title,
        description=chosen.description,
        source=name_of_source,
        quantization=quantization,
        code=opening_code(runtime, example_lines(Path(card).read_text("utf-8") if card else "")),
        weights_license=escape(str(metadata["license"])) if metadata.get("license") else f"see {name_of_source}",
        has_license=license_file is not None,
    )
    (folder / CARD).write_text(f"{str(text).rstrip()}\n", encoding="utf-8", newline="\n")


def _source_file(source: str | Path, name: str) -> str | None:
    """The path of a file of a model folder or Hub id; `None`: it has none, or it cannot be downloaded now."""
    with suppress(OSError):
        return cached_file(source, name)
    return None
