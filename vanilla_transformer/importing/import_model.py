# SPDX-License-Identifier: Apache-2.0
"""Recognise the toolkit of a model, and import it."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from vanilla_transformer.importing.checkpoint_file import read_checkpoint
from vanilla_transformer.importing.fairseq import is_fairseq, read_fairseq
from vanilla_transformer.importing.imported_model import ImportedModel, write_folder
from vanilla_transformer.importing.joeynmt import is_joeynmt, read_joeynmt
from vanilla_transformer.importing.marian_npz import is_marian, read_marian_npz
from vanilla_transformer.importing.opennmt import is_eole, is_opennmt, read_eole, read_opennmt
from vanilla_transformer.importing.torch_models import read_annotated, read_hkproj, read_torch, recognises
from vanilla_transformer.importing.transformers_models import read_fsmt, read_marian


@dataclass(frozen=True)
class Kind:
    """A toolkit: how its files are recognised, and what reads them."""

    what: str
    recognises: Callable[[Path], bool]
    read: Callable[[Path], ImportedModel]


def _model_type(name: str) -> Callable[[Path], bool]:
    """Whether config.json names this model_type."""

    def recognises(source: Path) -> bool:
        try:
            return json.loads((source / "config.json").read_text(encoding="utf-8"))["model_type"] == name
        except (OSError, ValueError, KeyError, TypeError):
            return False

    return recognises


KINDS = {
    "marianmt": Kind("a folder of transformers' MarianMT, such as OPUS-MT", _model_type("marian"), read_marian),
    "fsmt": Kind("a folder of transformers' FSMT", _model_type("fsmt"), read_fsmt),
    "fairseq": Kind("fairseq's transformer: a checkpoint .pt with its dict.*.txt", is_fairseq, read_fairseq),
    "marian": Kind("Marian's own .npz with its .spm", is_marian, read_marian_npz),
    "joeynmt": Kind("JoeyNMT's model folder: config.yaml, best.ckpt, src_vocab.txt", is_joeynmt, read_joeynmt),
    "eole": Kind("a folder of eole's transformer: config.json, vocab.json, model.00.safetensors", is_eole, read_eole),
    "opennmt": Kind("OpenNMT-py's transformer: a checkpoint .pt of version 2 or 3", is_opennmt, read_opennmt),
    "torch": Kind(
        "a state dict of torch.nn.Transformer in the tutorial's Seq2SeqTransformer",
        recognises("transformer.encoder.layers.0.self_attn.in_proj_weight"),
        read_torch,
    ),
    "annotated": Kind(
        "a state dict of the Annotated Transformer", recognises("encoder.layers.0.sublayer.0.norm.a_2"), read_annotated
    ),
    "hkproj": Kind(
        "a state dict of hkproj/pytorch-transformer",
        recognises("encoder.layers.0.self_attention_block.w_q.weight"),
        read_hkproj,
    ),
}


def import_model(
    source: Path, folder: Path, kind: str | None = None, changes: dict[str, Any] | None = None
) -> PreTrainedModel:
    """Write the model of another toolkit as a model folder.

    Args:
        source: a folder or a file of the toolkit.
        kind: a key of `KINDS`; `None`: recognised by the files.
        changes: fields of the model's configuration that the source does not state, such as num_heads.

    Raises:
        FileNotFoundError: the source, or a file that it needs, does not exist.
        ValueError: an unknown toolkit; files that are damaged or do not fit; an architecture that the models of this
            package cannot have.
        OSError: the folder cannot be written.
    """
    if not source.exists():
        raise FileNotFoundError(f"{source} does not exist")
    if kind is None:
        kind = next((name for name, known in KINDS.items() if known.recognises(source)), None)
        if kind is None and source.is_file():
            read_checkpoint(source)  # a damaged one, or one that is not read, has an error that says so
    if kind not in KINDS:
        known = "; ".join(f"{name}: {known.what}" for name, known in KINDS.items())
        raise ValueError(f"{source} is of no toolkit that is recognised; say which with --from ({known})")
    imported = KINDS[kind].read(source)
    imported.settings |= changes or {}
    if imported.architecture == "vanilla_transformer" and "num_heads" not in imported.settings:
        raise ValueError(
            f"{imported.origin} does not state the number of heads; add such a field as num_heads=8 after FOLDER"
        )
    return write_folder(imported, folder, folder.resolve().name)
