# SPDX-License-Identifier: Apache-2.0
"""Model folders of transformers' MarianMT (OPUS-MT) and FSMT."""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, GenerationConfig, PreTrainedConfig

from vanilla_transformer.data.sentencepiece_tokenizer import read_sentencepiece, sentencepiece_tokenizer
from vanilla_transformer.data.special_tokens import SpecialTokens
from vanilla_transformer.data.tokenizer import load_tokenizer
from vanilla_transformer.data.tokenizer_class import with_target
from vanilla_transformer.embeddings import sinusoid
from vanilla_transformer.importing.checkpoint_file import read_checkpoint
from vanilla_transformer.importing.fairseq_names import EMBEDDINGS, LAYER_NORM_EPS, LAYERS
from vanilla_transformer.importing.imported_model import ImportedModel
from vanilla_transformer.importing.names import ENCODER, HEAD, NameTable, rename
from vanilla_transformer.importing.word_tokenizer import read_codes, subword_tokenizer
from vanilla_transformer.inference.weight_files import WEIGHTS

MARIAN: NameTable = {f"model.{theirs}": ours for theirs, ours in (LAYERS | EMBEDDINGS).items()} | {
    "model.shared": ENCODER,
    "model.encoder.embed_positions": None,
    "model.decoder.embed_positions": None,
    "final_logits_bias": f"{HEAD}.bias",
    "lm_head": HEAD,
}
FSMT: NameTable = {f"model.{theirs}": ours for theirs, ours in (LAYERS | EMBEDDINGS).items()} | {
    "model.decoder.output_projection": HEAD,
    "model.encoder.embed_positions": None,
    "model.decoder.embed_positions": None,
}
TOKENIZER = "tokenizer.json"
DECODING = ("num_beams", "length_penalty", "max_length", "early_stopping", "forced_eos_token_id", "bad_words_ids")
DECODING += ("alpha", "max_tokens_beyond_source")  # where the folder is an export of ours


def read_marian(folder: Path) -> ImportedModel:
    """A folder of `MarianMTModel`: post-norm, all sines then all cosines, one or two vocabularies.

    Its tokenizer is OPUS-MT's, two SentencePiece models, or an ordinary fast one, as `export --to marian` writes.

    Raises:
        FileNotFoundError, ValueError: a file is missing, damaged, or not as expected.
    """
    config, weights, generation = _open(folder, "marian")
    origin = f"transformers' MarianMT, {folder.name}"
    _check_positions(weights, "paper", 0, origin)
    renamed = rename(weights, MARIAN, origin)
    if (bias := f"{HEAD}.bias") in renamed:
        renamed[bias] = renamed[bias].flatten()  # `(1, vocab_size)`
    common: dict[str, Any] = {
        "origin": origin,
        "weights": renamed,
        "generation": generation,
        "languages": _languages(folder),
    }
    settings = _settings(config) | {"sinusoid_layout": "concatenated"}
    if (folder / TOKENIZER).is_file():
        tokenizer = load_tokenizer(folder)
        if "max_tokens_beyond_source" in generation:  # an export of ours, which has these for MarianMT alone
            generation["max_length"] = None
            generation["bad_words_ids"] = generation["bad_words_ids"][:-1] or None
        return ImportedModel(
            **common,
            settings=settings | {"bos_token_id": tokenizer.bos_token_id},
            stated=_stated(config, tokenizer.get_vocab(), tokenizer.get_vocab()),
            tokenizer=tokenizer,
        )
    special = SpecialTokens(bos=None)
    is_shared = config.get("share_encoder_decoder_embeddings", True)
    source = _vocabulary(folder / "vocab.json")
    target = source if is_shared else _vocabulary(folder / "target_vocab.json")
    stated = _stated(config, source, target)  # before the tokenizers append to the vocabularies
    for vocabulary in (source, target):
        special.check(vocabulary, origin)
    tokenizers = [
        sentencepiece_tokenizer(read_sentencepiece(folder / f"{side}.spm"), vocabulary, special)
        for side, vocabulary in (("source", source), ("target", target))
    ]
    is_same = is_shared and (folder / "source.spm").read_bytes() == (folder / "target.spm").read_bytes()
    return ImportedModel(
        **common,
        settings=settings | {"bos_token_id": None},
        stated=stated,
        tokenizer=with_target(tokenizers[0], None if is_same else tokenizers[1]),
        source_vocabulary=source,
        target_vocabulary=target,
        note="OPUS-MT normalises punctuation before its tokenizer (sacremoses' MosesPunctNormalizer).",
    )


def read_fsmt(folder: Path) -> ImportedModel:
    """A folder of `FSMTForConditionalGeneration`: fairseq's WMT models with two vocabularies.

    Raises:
        FileNotFoundError, ValueError: a file is missing, damaged, or not as expected.
    """
    config, weights, generation = _open(folder, "fsmt")
    origin, special = f"transformers' FSMT, {folder.name}", SpecialTokens()
    _check_positions(weights, "tensor2tensor", config["pad_token_id"] + 1, origin)
    source, target = (_vocabulary(folder / f"vocab-{side}.json") for side in ("src", "tgt"))
    stated = _stated(config, source, target)  # before the tokenizers append to the vocabularies
    for vocabulary in (source, target):
        special.check(vocabulary, origin)
    merges = read_codes(folder / "merges.txt")
    tokenizers = [subword_tokenizer(merges, vocabulary, special, joiner="") for vocabulary in (source, target)]
    return ImportedModel(
        origin=origin,
        settings=_settings(config)
        | {"sinusoid_layout": "concatenated", "sinusoid_exponent": "tensor2tensor"}
        | {"position_offset": config["pad_token_id"] + 1, "bos_token_id": config["bos_token_id"]},
        stated=stated,
        weights=rename(weights, FSMT, origin),
        generation=generation,
        tokenizer=with_target(*tokenizers),
        source_vocabulary=source,
        target_vocabulary=target,
        languages=list(config.get("langs") or []),
        note="Its texts are tokenised by Moses' tokenizer (sacremoses), with escapes, before its tokenizer.",
    )


def _open(folder: Path, model_type: str) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """config.json with the class's defaults, the weights, and the generation config."""
    stored = PreTrainedConfig.get_config_dict(folder)[0]
    config = CONFIG_MAPPING[model_type].from_dict(stored).to_dict() | stored
    for name in ("dim", "ffn_dim", "attention_heads"):
        pair = [config.get(f"{stack}_{name}") for stack in ("encoder", "decoder")]
        if pair[0] != pair[1]:
            raise ValueError(f"config.json in {folder} has encoder_{name}={pair[0]} and decoder_{name}={pair[1]}")
    files = [folder / name for name in (WEIGHTS, "pytorch_model.bin") if (folder / name).is_file()]
    if not files:
        raise FileNotFoundError(f"{folder} has no weights: expected {WEIGHTS} or pytorch_model.bin")
    try:
        decoding = GenerationConfig.from_pretrained(folder).to_dict()
    except OSError:  # an old folder, which has them in config.json
        decoding = config
    generation = {name: decoding[name] for name in DECODING if decoding.get(name) is not None}
    generation.setdefault("length_penalty", 1.0)  # what transformers takes where none is stored
    return config, read_checkpoint(files[0]), generation


def _check_positions(weights: dict[str, Any], exponent: str, first: int, origin: str) -> None:
    """Raise ValueError for stored positions that are no sinusoids, which are computed here.

    Args:
        first: the row of the first position.
    """
    for name in ("model.encoder.embed_positions.weight", "model.decoder.embed_positions.weight"):
        if (rows := weights.get(name)) is None:
            continue
        expected = sinusoid(torch.arange(first, len(rows)), rows.shape[1], "concatenated", exponent)
        if not torch.allclose(rows[first:].float(), expected, atol=1e-2):  # float16, too
            raise ValueError(f"{origin}: {name} holds no sinusoids: transformers 5 trains them with the rest")


def _settings(config: dict[str, Any]) -> dict[str, Any]:
    same = ("dropout", "attention_dropout", "activation_dropout", "activation_function", "scale_embedding")
    special = ("pad_token_id", "eos_token_id", "decoder_start_token_id")
    return {
        "num_heads": config["encoder_attention_heads"],
        "layer_norm_eps": LAYER_NORM_EPS,
        **{name: config[name] for name in (*same, *special)},
    }


def _stated(config: dict[str, Any], source: Collection[str], target: Collection[str]) -> dict[str, Any]:
    return {
        "vocab_size": len(source),
        "decoder_vocab_size": len(target),
        "d_model": config["d_model"],
        "d_ff": config["encoder_ffn_dim"],
        "num_layers": config["encoder_layers"],
        "num_decoder_layers": config["decoder_layers"],
    }


def _vocabulary(path: Path) -> list[str]:
    """The tokens of a vocab.json in the order of their ids.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no JSON object of ids 0, 1, 2, ….
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path.parent} has no {path.name}, the vocabulary")
    try:
        ids = json.loads(path.read_text(encoding="utf-8"))
        tokens = sorted(ids, key=ids.__getitem__)
        if [ids[token] for token in tokens] != list(range(len(tokens))):
            raise ValueError("its ids are not 0, 1, 2, …")
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no vocabulary of tokens and ids: {error}") from error
    return tokens


def _languages(folder: Path) -> list[str]:
    path = folder / "tokenizer_config.json"
    if not path.is_file():
        return []
    config = json.loads(path.read_text(encoding="utf-8"))
    languages = [config.get("source_lang"), config.get("target_lang")]
    return [language for language in languages if language] if all(languages) else []
