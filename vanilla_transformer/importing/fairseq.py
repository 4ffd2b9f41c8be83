# SPDX-License-Identifier: Apache-2.0
"""fairseq's `transformer`: a checkpoint with its dictionaries, and BPE codes or a SentencePiece model."""

from pathlib import Path
from typing import Any

import torch

from vanilla_transformer.data.sentencepiece_tokenizer import read_sentencepiece, sentencepiece_tokenizer
from vanilla_transformer.data.special_tokens import SpecialTokens
from vanilla_transformer.data.tokenizer_class import with_target
from vanilla_transformer.importing.checkpoint_file import plain, read_checkpoint
from vanilla_transformer.importing.fairseq_names import EMBEDDINGS, LAYER_NORM_EPS, LAYERS
from vanilla_transformer.importing.imported_model import ImportedModel
from vanilla_transformer.importing.names import DECODER, ENCODER, NORMS, NameTable, fill_tied, fused_projections, rename
from vanilla_transformer.importing.word_tokenizer import CODES, read_codes, subword_tokenizer, words_tokenizer

NAMES: NameTable = {
    **LAYERS,
    **EMBEDDINGS,
    **fused_projections("self_attn", "encoder_attn"),
    **{  # before 2018 the normalisations had numbers
        f"{stack}.layers.{{layer}}.layer_norms.{number}": f"model.{stack}.layers.{{layer}}.{ours}"
        for stack, names in NORMS.items()
        for number, ours in enumerate(names)
    },
    **{
        f"{stack}.{theirs}": ours and f"model.{stack}.{ours}"
        for stack in ("encoder", "decoder")
        for theirs, ours in {
            "layer_norm": "norm",
            "layernorm_embedding": "input_embedding.norm",
            "embed_positions": "input_embedding.positions",
            "embed_positions._float_tensor": None,
            "version": None,
        }.items()
    },
    "decoder.embed_out": "lm_head.weight",
    "decoder.output_projection": "lm_head",
}
FIRST = ["<s>", "<pad>", "</s>", "<unk>"]  # tokens of every dictionary
PAD, EOS = 1, 2
ACTIVATIONS = {"relu": "relu", "gelu": "gelu", "gelu_accurate": "gelu_pytorch_tanh", "gelu_fast": "gelu_pytorch_tanh"}
ACTIVATIONS |= {"tanh": "tanh", "swish": "silu"}
NOT_POSSIBLE = (  # settings that another architecture has
    *("no_token_positional_embeddings", "encoder_no_token_positional_embeddings", "adaptive_input"),
    *("decoder_no_token_positional_embeddings", "adaptive_softmax_cutoff", "no_cross_attention"),
    *("cross_self_attention", "quant_noise_scalar", "char_inputs"),
)


def is_fairseq(source: Path) -> bool:
    """Whether it is a checkpoint beside dictionaries, a folder of both, or a file with fairseq's entries."""
    try:
        if _dictionaries(source):
            return _checkpoint(source).suffix == ".pt"
        content = read_checkpoint(source) if source.is_file() else {}
        return isinstance(content, dict) and "model" in content and not content.keys().isdisjoint({"args", "cfg"})
    except (OSError, ValueError):
        return False


def read_fairseq(source: Path) -> ImportedModel:
    """A checkpoint (.pt), or a folder that holds one; `dict.LANGUAGE.txt` beside it, or in a folder of data.

    Raises:
        FileNotFoundError: no checkpoint or dictionary.
        ValueError: damaged files, another architecture.
    """
    path = _checkpoint(source)
    content = read_checkpoint(path)
    origin = f"fairseq's checkpoint {path.name}"
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise ValueError(f"{path} is no checkpoint of fairseq: it has no entry 'model'")
    settings = _settings(content)
    weights = rename(content["model"], NAMES, origin)
    pre_norm = _same_in_both_stacks(settings, "normalize_before", origin, False)
    learned = _same_in_both_stacks(settings, "learned_pos", origin, False)
    for name in NOT_POSSIBLE:
        if settings.get(name):
            raise ValueError(f"{origin} has {name}={settings[name]!r}, which a model of this package cannot have")
    if (activation := settings.get("activation_fn") or "relu") not in ACTIVATIONS:
        raise ValueError(f"{origin} has activation_fn={activation!r}; use one of {', '.join(ACTIVATIONS)}")
    for name in [name for name in weights if name.endswith("input_embedding.positions.weight")]:
        if learned:
            weights[name] = weights[name][PAD + 1 :]  # fairseq's first token has position 2
        else:
            del weights[name]
    source_path, target_path = _languages(_dictionaries(source), settings, path, fill_tied(weights))
    source_tokens = _read_dictionary(source_path)
    same = source_path.read_bytes() == target_path.read_bytes()
    target_tokens = source_tokens if same else _read_dictionary(target_path)
    stated = {
        "vocab_size": len(source_tokens),
        "decoder_vocab_size": len(target_tokens),
        "d_model": _same_in_both_stacks(settings, "embed_dim", origin, None),
        "d_ff": _same_in_both_stacks(settings, "ffn_embed_dim", origin, None),
        "num_layers": settings.get("encoder_layers"),
        "num_decoder_layers": settings.get("decoder_layers"),
    }
    tokenizer, note = _tokenizer(path, source_tokens, target_tokens)
    sinusoids = {"sinusoid_layout": "concatenated", "sinusoid_exponent": "tensor2tensor", "position_offset": PAD + 1}
    return ImportedModel(
        origin=origin,
        settings={
            "num_heads": _same_in_both_stacks(settings, "attention_heads", origin, 8),
            "norm_position": "pre" if pre_norm else "post",
            "activation_function": ACTIVATIONS[activation],
            "layer_norm_eps": LAYER_NORM_EPS,
            "scale_embedding": not settings.get("no_scale_embedding", False),
            **{name: settings[name] for name in ("dropout", "attention_dropout") if name in settings},
            "activation_dropout": settings.get("activation_dropout") or settings.get("relu_dropout") or 0.0,
            "bos_token_id": 0,
            "pad_token_id": PAD,
            "eos_token_id": EOS,
            "decoder_start_token_id": EOS,
            **({} if learned else sinusoids),
        },
        stated=stated,
        weights=weights,
        generation={"num_beams": 5, "length_penalty": 1.0, "max_length": 200},  # fairseq-generate's
        tokenizer=tokenizer,
        source_vocabulary=source_tokens,
        target_vocabulary=target_tokens,
        languages=[path.name.removeprefix("dict.").removesuffix(".txt") for path in (source_path, target_path)],
        note=note,
    )


def _checkpoint(source: Path) -> Path:
    if source.is_file():
        return source
    names = ("checkpoint_best.pt", "checkpoint_last.pt", "model.pt", "checkpoints/checkpoint_best.pt")
    found = [source / name for name in names if (source / name).is_file()] or sorted(source.glob("*.pt"))
    if not found:
        raise FileNotFoundError(f"{source} has no checkpoint of fairseq, such as checkpoint_best.pt")
    return found[0]


def _places(source: Path) -> list[Path]:
    """Folders that may hold the dictionaries and the codes: the checkpoint's, and the usual ones beside it."""
    folder = source if source.is_dir() else source.parent
    return [folder, folder / "data", folder / "data-bin", folder.parent, folder.parent / "data"]


def _dictionaries(source: Path) -> list[Path]:
    return next((found for place in _places(source) if (found := sorted(place.glob("dict.*.txt")))), [])


def _settings(content: dict[str, Any]) -> dict[str, Any]:
    """The arguments of the model and of its task, of fairseq before 0.10 and since."""
    config = plain(content.get("cfg")) or {}
    sections = [config.get("task"), config.get("model"), plain(content.get("args"))]
    return {name: value for section in sections for name, value in (section or {}).items() if value is not None}


def _languages(
    dictionaries: list[Path], settings: dict[str, Any], checkpoint: Path, weights: dict[str, torch.Tensor]
) -> tuple[Path, Path]:
    """The dictionaries of source and target: by their languages, or by their sizes if the settings have none."""
    if not dictionaries:
        raise FileNotFoundError(f"there is no dictionary dict.LANGUAGE.txt in {checkpoint.parent} or beside it")
    paths, known = [], ", ".join(path.name for path in dictionaries)
    for side, embedding in (("source_lang", ENCODER), ("target_lang", DECODER)):
        language, rows = settings.get(side), len(weights[f"{embedding}.weight"])
        if language is not None:
            found = [path for path in dictionaries if path.name == f"dict.{language}.txt"]
        else:
            found = [path for path in dictionaries if len(_read_dictionary(path)) == rows]
        if len(found) != 1:
            stated = f"{side}={language!r}" if language is not None else f"no {side}, and {rows} tokens"
            raise FileNotFoundError(f"{checkpoint} has {stated}: {dictionaries[0].parent} has {known}")
        paths.append(found[0])
    return paths[0], paths[1]


def _read_dictionary(path: Path) -> list[str]:
    """Tokens by id: a line of a dictionary is a token, a space and its frequency."""
    tokens = list(FIRST)
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        token, space, count = line.removesuffix(" #fairseq:overwrite").rpartition(" ")
        if not space or not count.isdigit():
            raise ValueError(f"{path}, line {number}: {line[:40]!r} is no token with its frequency")
        tokens.append(token)
    if len(set(tokens)) < len(tokens):
        raise ValueError(f"{path} has a token twice")
    return tokens


def _same_in_both_stacks(settings: dict[str, Any], name: str, origin: str, default: Any) -> Any:
    encoder, decoder = (settings.get(f"{stack}_{name}", default) for stack in ("encoder", "decoder"))
    if encoder != decoder:
        raise ValueError(f"{origin} has encoder_{name}={encoder} and decoder_{name}={decoder}; both must be the same")
    return encoder


def _tokenizer(checkpoint: Path, source: list[str], target: list[str]) -> tuple[Any, str]:
    """From the SentencePiece model or the BPE codes beside the dictionaries; without any, of whole words."""
    special, places = SpecialTokens(), _places(checkpoint)
    vocabularies = [source] if target is source else [source, target]
    files = [file for place in places for file in sorted(place.glob("*")) if file.is_file()]
    spm = [file for file in files if file.suffix in (".model", ".spm")]
    codes = [file for file in files if file.name in CODES]
    if spm:
        model = read_sentencepiece(spm[0])
        made, note = [sentencepiece_tokenizer(model, vocabulary, special) for vocabulary in vocabularies], ""
    elif codes:
        merges = read_codes(codes[0])
        made = [subword_tokenizer(merges, vocabulary, special) for vocabulary in vocabularies]
        note = "Its texts are words and punctuation separated by spaces, as before subword-nmt's BPE."
    else:
        made = [words_tokenizer(vocabulary, special) for vocabulary in vocabularies]
        note = "Its texts are tokens separated by spaces, exactly as in fairseq's dictionary."
    return with_target(made[0], made[1] if len(made) > 1 else None), note
