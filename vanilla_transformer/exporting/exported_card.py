# SPDX-License-Identifier: Apache-2.0
"""The card of an exported folder: description, source model, and the code that opens it."""

import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData, metadata_load
from transformers.utils.hub import cached_file
from yaml import YAMLError

from vanilla_transformer.comparison.markdown import escape
from vanilla_transformer.exporting.requirements import Quantization
from vanilla_transformer.hub.exported_folders import example_lines, opening_code, runtime_of
from vanilla_transformer.hub.model_card import LICENSE, link
from vanilla_transformer.hub.published_folder import CARD
from vanilla_transformer.hub.run_facts import folder_name

TEMPLATE = Path(__file__).with_name("exported_card.md")
KEPT = ("license", "license_name", "license_link", "language", "pipeline_tag")  # metadata that holds for both folders


def write_exported_card(source: str | Path, folder: Path, runtime: str, quantization: Quantization) -> None:
    """Write `folder/README.md`, and copy LICENSE; the licence of the weights is that of the source's card.

    Args:
        source: model folder or Hub id.
        folder: the exported one.
        runtime: a key of `RUNTIMES`.

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
    name, is_local, chosen = folder_name(source), Path(source).exists(), runtime_of(runtime, folder)
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
        code=opening_code(runtime, folder, example_lines(Path(card).read_text("utf-8") if card else "")),
        weights_license=escape(str(metadata["license"])) if metadata.get("license") else f"see {name_of_source}",
        has_license=license_file is not None,
    )
    (folder / CARD).write_text(f"{str(text).rstrip()}\n", encoding="utf-8", newline="\n")


def _source_file(source: str | Path, name: str) -> str | None:
    """The path of a file of a model folder or Hub id; `None`: it has none, or it cannot be downloaded now."""
    with suppress(OSError):
        return cached_file(source, name)
    return None
