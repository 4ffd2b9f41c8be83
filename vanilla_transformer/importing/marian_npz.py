# SPDX-License-Identifier: Apache-2.0
"""Marian's own models: an .npz of the type transformer, with its .spm vocabularies."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from vanilla_transformer.data.sentencepiece_tokenizer import read_sentencepiece, sentencepiece_tokenizer
from vanilla_transformer.data.special_tokens import SpecialTokens
from vanilla_transformer.data.tokenizer_class import with_target
from vanilla_transformer.importing.imported_model import ImportedModel
from vanilla_transformer.importing.names import DECODER, ENCODER, HEAD, NameTable, rename

EOS = "</s>"
PAD = "<pad>"  # Marian has no such token: its decoder starts from a zero embedding
SETTINGS = "special:model.yml"
LAYERS: dict[str, str] = {
    "ffn_W1": "feed_forward.linear_1.weight",
    "ffn_b1": "feed_forward.linear_1.bias",
    "ffn_W2": "feed_forward.linear_2.weight",
    "ffn_b2": "feed_forward.linear_2.bias",
    "ffn_ffn_ln_scale": "feed_forward_norm.weight",
    "ffn_ffn_ln_bias": "feed_forward_norm.bias",
}
for theirs, ours in (("self", "self_attention"), ("context", "cross_attention")):
    for letter, part in (("q", "q_proj"), ("k", "k_proj"), ("v", "v_proj"), ("o", "out_proj")):
        LAYERS |= {f"{theirs}_W{letter}": f"{ours}.{part}.weight", f"{theirs}_b{letter}": f"{ours}.{part}.bias"}
    LAYERS |= {f"{theirs}_Wo_ln_scale": f"{ours}_norm.weight", f"{theirs}_Wo_ln_bias": f"{ours}_norm.bias"}
NAMES: NameTable = {
    **{
        f"{stack}_l{{layer}}_{theirs}": f"model.{stack}.layers.{{layer}}.{ours}"
        for stack in ("encoder", "decoder")
        for theirs, ours in LAYERS.items()
    },
    "Wemb": f"{ENCODER}.weight",
    "encoder_Wemb": f"{ENCODER}.weight",
    "decoder_Wemb": f"{DECODER}.weight",
    "decoder_ff_logit_out_W": f"{HEAD}.weight",
    "decoder_ff_logit_out_b": f"{HEAD}.bias",
}
EMBEDDINGS = ("Wemb", "encoder_Wemb", "decoder_Wemb")  # all other matrices are stored transposed
REQUIRED = {  # settings of the one architecture that is imported, as transformers' own converter has them
    "type": "transformer",
    "transformer-preprocess": "",
    "transformer-postprocess": "dan",
    "transformer-postprocess-emb": "d",
    "transformer-decoder-autoreg": "self-attention",
    "transformer-ffn-depth": 2,
    "transformer-no-projection": False,
    "transformer-train-position-embeddings": False,
    "right-left": False,
    "ulr": False,
}
LAYER_NORM_EPS = 1e-6  # as in marian-dev's transformer.h; transformers' port has torch's 1e-5


def is_marian(source: Path) -> bool:
    """Whether it is an .npz, or a folder that holds one."""
    return source.suffix == ".npz" or (source.is_dir() and any(source.glob("*.npz")))


def read_marian_npz(source: Path) -> ImportedModel:
    """A model, or its folder, with one .spm vocabulary or two (source before target by name) beside it.

    Raises:
        FileNotFoundError: no model or vocabulary.
        ValueError: damaged files, another architecture.
    """
    found = [source] if source.is_file() else sorted(source.glob("*.npz"))
    if not found:
        raise FileNotFoundError(f"{source} has no model .npz")
    path, origin = found[0], f"Marian's model {found[0].name}"
    arrays, settings = _read(path)
    for name, value in REQUIRED.items():
        if settings.get(name, value) != value:
            raise ValueError(f"{origin} has {name}: {settings[name]!r}; only {value!r} can be imported")
    spm = _vocabularies(path.parent, settings)
    models = [read_sentencepiece(file) for file in spm]
    vocabularies = [[text for text, _, _ in model.pieces] for model in models]
    stated = {
        "vocab_size": len(vocabularies[0]) + 1,
        "decoder_vocab_size": len(vocabularies[-1]) + 1,
        "d_model": settings.get("dim-emb"),
        "d_ff": settings.get("transformer-dim-ffn"),
        "num_layers": settings.get("enc-depth"),
        "num_decoder_layers": settings.get("dec-depth"),
    }
    special = SpecialTokens(pad=PAD, eos=EOS, bos=None)
    for vocabulary in vocabularies:
        vocabulary.append(PAD)
        special.check(vocabulary, origin)
    if vocabularies[0].index(PAD) != vocabularies[-1].index(PAD):
        sizes = " and ".join(str(len(vocabulary) - 1) for vocabulary in vocabularies)
        raise ValueError(f"{origin} has vocabularies of {sizes} tokens; they must have the same size")
    activation = settings.get("transformer-ffn-activation", "relu")
    pad, eos = (vocabularies[0].index(name) for name in (PAD, EOS))
    tokenizers = [sentencepiece_tokenizer(*pair, special) for pair in zip(models, vocabularies, strict=True)]
    return ImportedModel(
        origin=origin,
        settings={
            "num_heads": settings.get("transformer-heads", 8),
            "activation_function": "silu" if activation == "swish" else activation,
            "layer_norm_eps": LAYER_NORM_EPS,
            "sinusoid_layout": "concatenated",
            "sinusoid_exponent": "tensor2tensor",
            "bos_token_id": None,
            "eos_token_id": eos,
            "pad_token_id": pad,
            "decoder_start_token_id": pad,
        },
        stated=stated,
        weights=_with_padding(rename(arrays, NAMES, origin)),
        generation={
            "num_beams": settings.get("beam-size", 12),
            "length_penalty": float(settings.get("normalize", 0.0)),
            "bad_words_ids": [[pad]],
        },
        tokenizer=with_target(tokenizers[0], tokenizers[1] if len(tokenizers) > 1 else None),
        source_vocabulary=vocabularies[0],
        target_vocabulary=vocabularies[-1],
    )


def _read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The parameters in the orientation of torch's layers, counting layers from 0; and the settings."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        settings = yaml.safe_load(arrays.pop(SETTINGS).tobytes().decode().rstrip("\0"))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, yaml.YAMLError) as error:
        raise ValueError(f"{path} is no model of Marian with {SETTINGS}, or it is damaged") from error
    weights = {}
    for name, array in arrays.items():
        stack, layer, rest = [*name.split("_", 2), "", ""][:3]
        if layer[:1] == "l" and layer[1:].isdigit():
            name = f"{stack}_l{int(layer[1:]) - 1}_{rest}"
        tensor = torch.from_numpy(np.array(array))
        is_vector = tensor.dim() == 2 and tensor.shape[0] == 1
        weights[name] = tensor[0] if is_vector else tensor if name in EMBEDDINGS else tensor.T
    return weights, settings


def _vocabularies(folder: Path, settings: dict[str, Any]) -> list[Path]:
    names = [Path(name).name for name in settings.get("vocabs") or []]
    files = [folder / name for name in names] if names else sorted(folder.glob("*.spm"))
    if not files or any(file.suffix != ".spm" for file in files):
        raise FileNotFoundError(f"{folder} has no vocabulary .spm, the only ones that can be imported")
    return list(dict.fromkeys(files))[:2]


def _with_padding(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A row of zeros for `<pad>` at the end: the embedding from which Marian's decoder starts."""
    rows = (f"{ENCODER}.weight", f"{DECODER}.weight", f"{HEAD}.weight", f"{HEAD}.bias")
    for name in weights.keys() & set(rows):
        weights[name] = torch.cat([weights[name], weights[name].new_zeros(1, *weights[name].shape[1:])])
    return weights
