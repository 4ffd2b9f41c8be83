# SPDX-License-Identifier: Apache-2.0
"""JoeyNMT 2's model folders: config.yaml, a checkpoint, vocabularies, and BPE codes or SentencePiece models."""

from pathlib import Path
from typing import Any

import yaml
from tokenizers import Regex, normalizers

from vanilla_transformer.data.sentencepiece_tokenizer import (
    BPE,
    NORMAL,
    SentencePieceModel,
    read_sentencepiece,
    sentencepiece_tokenizer,
)
from vanilla_transformer.data.special_tokens import SpecialTokens
from vanilla_transformer.data.tokenizer_class import with_target
from vanilla_transformer.importing.checkpoint_file import read_checkpoint
from vanilla_transformer.importing.imported_model import ImportedModel
from vanilla_transformer.importing.joeynmt_recurrent import read_recurrent
from vanilla_transformer.importing.names import DECODER, ENCODER, HEAD, NameTable, fill_tied, rename
from vanilla_transformer.importing.word_tokenizer import (
    characters_tokenizer,
    read_codes,
    subword_tokenizer,
    words_tokenizer,
)

STACKS = ("encoder", "decoder")
SECTIONS = (*(f"model.{stack}" for stack in STACKS), "data.src", "data.trg", "training", "testing")
NAMES: NameTable = {
    "src_embed.lut": ENCODER,
    "trg_embed.lut": DECODER,
    "decoder.output_layer": HEAD,
    # The Transformer.
    **{f"{stack}.pe.pe": None for stack in STACKS},
    **{f"{stack}.layer_norm": f"model.{stack}.norm" for stack in STACKS},
    **{
        f"{stack}.layers.{{layer}}.{theirs}": f"model.{stack}.layers.{{layer}}.{ours}"
        for stack, attentions, norms in (
            ("encoder", {"src_src_att": "self_attention"}, {"layer_norm": "self_attention_norm"}),
            (
                "decoder",
                {"trg_trg_att": "self_attention", "src_trg_att": "cross_attention"},
                {"x_layer_norm": "self_attention_norm", "dec_layer_norm": "cross_attention_norm"},
            ),
        )
        for theirs, ours in {
            **{f"{attention}.{x}_layer": f"{ours}.{x}_proj" for attention, ours in attentions.items() for x in "qkv"},
            **{f"{attention}.output_layer": f"{ours}.out_proj" for attention, ours in attentions.items()},
            **norms,
            "feed_forward.layer_norm": "feed_forward_norm",
            "feed_forward.pwff_layer.0": "feed_forward.linear_1",
            "feed_forward.pwff_layer.3": "feed_forward.linear_2",
        }.items()
    },
    # The RNN.
    **{
        f"{stack}.rnn.{part}_l{{layer}}{way}": f"model.{stack}.stack.layers.{{layer}}.recurrence.{part}_l0{way}"
        for stack, ways in (("encoder", ("", "_reverse")), ("decoder", ("",)))
        for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        for way in ways
    },
    "decoder.att_vector_layer": "model.decoder.readout.linear",
    "decoder.attention.key_layer": "model.decoder.attention.k_proj",
    "decoder.attention.query_layer": "model.decoder.attention.q_proj",
    "decoder.attention.energy_layer": "model.decoder.attention.v",
    "decoder.bridge_layer": "model.decoder.bridge.projections.0",
}
ACTIVATIONS = {"relu": "relu", "gelu": "gelu", "swish": "silu"}
UNK, PAD, BOS, EOS = range(4)  # JoeyNMT refuses other ids
NORMALIZERS = [  # `normalize: True`
    normalizers.NFKC(),
    *(normalizers.Replace(mark, plain) for mark, plain in (("’", "'"), ("“", '"'), ("”", '"'), ("\u200b", ""))),
    normalizers.Replace(Regex("[ \u3000]+"), " "),
    normalizers.Replace(Regex(" (?=[?!,.:])"), ""),
    normalizers.Strip(),
]


def is_joeynmt(source: Path) -> bool:
    """Whether it is a checkpoint beside a configuration of JoeyNMT, or a folder of both."""
    try:
        return bool(_sections(_checkpoint(source).parent))
    except (OSError, ValueError):
        return False


def read_joeynmt(source: Path) -> ImportedModel:
    """A model folder, or one of its checkpoints (.ckpt).

    Raises:
        FileNotFoundError: no checkpoint, configuration or vocabulary.
        ValueError: damaged files, another architecture.
    """
    path = _checkpoint(source)
    origin = f"JoeyNMT's checkpoint {path.name}"
    sections = _sections(path.parent)
    model, data, testing = (sections[name] for name in ("model", "data", "testing"))
    content = read_checkpoint(path)
    if not isinstance(content, dict) or not isinstance(content.get("model_state"), dict):
        raise ValueError(f"{path} is no checkpoint of JoeyNMT: it has no entry 'model_state'")
    weights = fill_tied(rename(content["model_state"], NAMES, origin))
    kinds = {model[stack].get("type", kind) for stack, kind in zip(STACKS, ("recurrent", "transformer"), strict=True)}
    if kinds not in ({"transformer"}, {"recurrent"}):
        raise ValueError(f"{origin} has stacks of the types {sorted(kinds)}; both must be transformer, or recurrent")
    vocabularies, special = _vocabularies(path.parent, data, origin)
    imported = ImportedModel(
        origin=origin,
        settings={
            "label_smoothing": sections["training"].get("label_smoothing", 0.0),
            "dropout": model["encoder"].get("dropout", 0.1 if kinds == {"transformer"} else 0.0),
            "pad_token_id": PAD,
            "bos_token_id": BOS,
            "eos_token_id": EOS,
            "decoder_start_token_id": BOS,
        },
        weights=weights,
        stated={"vocab_size": len(vocabularies[0]), "decoder_vocab_size": len(vocabularies[1])},
        generation=_generation(testing),
        languages=[data[side]["lang"] for side in ("src", "trg") if "lang" in data[side]],
    )
    read = _read_transformer if kinds == {"transformer"} else read_recurrent
    read(imported, model)
    _add_tokenizers(imported, path.parent, data, vocabularies, special)
    return imported


def _checkpoint(source: Path) -> Path:
    if source.is_file():
        return source
    found = [path for name in ("best.ckpt", "latest.ckpt") if (path := source / name).is_file()]
    found = found or sorted(source.glob("*.ckpt"))
    if not found:
        raise FileNotFoundError(f"{source} has no checkpoint of JoeyNMT, such as best.ckpt")
    return found[0]


def _sections(folder: Path) -> dict[str, Any]:
    """config.yaml, with the sections and subsections that every configuration has."""
    path = folder / "config.yaml"
    if not path.is_file():
        raise FileNotFoundError(f"there is no config.yaml of JoeyNMT in {folder}")
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML: {str(error).splitlines()[0]}") from error
    for name in SECTIONS:
        section = config
        for part in name.split("."):
            section = section.get(part) if isinstance(section, dict) else None
        if not isinstance(section, dict):
            raise ValueError(f"{path} is no configuration of JoeyNMT: it has no section {name}")
    return config


def _vocabularies(folder: Path, data: dict[str, Any], origin: str) -> tuple[list[list[str]], SpecialTokens]:
    """The tokens of source and target by their ids, one list if they are the same."""
    symbols = data.get("special_symbols") or {}
    for name in ("sep_token", "lang_tags"):
        if symbols.get(name):
            raise ValueError(f"{origin} has special_symbols.{name}: a model with prompts cannot be imported")
    first = [
        symbols.get(f"{name}_token", token)
        for name, token in (("unk", "<unk>"), ("pad", "<pad>"), ("bos", "<s>"), ("eos", "</s>"))
    ]
    vocabularies = []
    for side in ("src", "trg"):
        named = data[side].get("voc_file") or ""
        paths = [folder / f"{side}_vocab.txt", folder / Path(named).name]
        path = next((path for path in paths if path.is_file()), None)
        if path is None:
            raise FileNotFoundError(f"{folder} has no vocabulary {paths[0].name}")
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
        vocabularies.append(list(dict.fromkeys([*first, *lines])))
    if vocabularies[0] == vocabularies[1]:
        vocabularies[1] = vocabularies[0]
    unk, pad, bos, eos = first
    return vocabularies, SpecialTokens(pad=pad, unk=unk, eos=eos, bos=bos)


def _generation(testing: dict[str, Any]) -> dict[str, Any]:
    """JoeyNMT's search, whose length penalty is the paper's, never generates the start or padding."""
    longest = testing.get("max_output_length", -1)
    return {
        "num_beams": testing.get("beam_size", 1),
        "alpha": max(0.0, testing.get("beam_alpha", testing.get("alpha", -1))),
        "min_new_tokens": testing.get("min_output_length", 1),
        "suppress_tokens": [*([] if testing.get("generate_unk", True) else [UNK]), PAD, BOS],
        **({"max_new_tokens": longest} if longest > 0 else {"max_tokens_beyond_source": 50}),
    }


def _read_transformer(imported: ImportedModel, model: dict[str, Any]) -> None:
    """Add the fields of a Transformer; JoeyNMT's has the paper's sinusoids, and biases in the attention."""
    # JoeyNMT 1 had pre-norm alone, with a last LayerNorm. The defaults of JoeyNMT 2 differ between the stacks.
    unstated = ("pre", "pre" if "model.decoder.norm.weight" in imported.weights else "post")
    scales = [model[stack].get("embeddings", {}).get("scale", False) for stack in STACKS]
    if model.get("tied_embeddings"):
        scales[1] = scales[0]
    values = {
        "layer_norm": [model[stack].get("layer_norm", norm) for stack, norm in zip(STACKS, unstated, strict=True)],
        "num_heads": [model[stack].get("num_heads", heads) for stack, heads in zip(STACKS, (4, 8), strict=True)],
        "hidden_size": [model[stack].get("hidden_size", 512) for stack in STACKS],
        "ff_size": [model[stack].get("ff_size", 2048) for stack in STACKS],
        "activation": [model[stack].get("activation", "relu") for stack in STACKS],
        "alpha": [model[stack].get("alpha", 1.0) for stack in STACKS],
        "embeddings.scale": scales,
    }
    for name, (encoder, decoder) in values.items():
        if encoder != decoder:
            raise ValueError(
                f"{imported.origin} has encoder.{name}={encoder} and decoder.{name}={decoder}; both must be the same"
            )
    for name, allowed in (("layer_norm", ("pre", "post")), ("activation", ACTIVATIONS), ("alpha", (1.0,))):
        if values[name][0] not in allowed:
            choices = ", ".join(map(str, allowed))
            raise ValueError(f"{imported.origin} has {name}={values[name][0]!r}; use one of {choices}")
    position, dropout = values["layer_norm"][0], imported.settings["dropout"]
    imported.settings |= {
        "num_heads": values["num_heads"][0],
        "norm_position": position,
        "activation_function": ACTIVATIONS[values["activation"][0]],
        "scale_embedding": scales[0],
        "layer_norm_eps": 1e-6,
        "attention_dropout": dropout,
        "activation_dropout": dropout,
    }
    imported.stated |= {
        "final_layer_norm": position == "pre",
        "d_model": values["hidden_size"][0],
        "d_ff": values["ff_size"][0],
        "num_layers": model["encoder"].get("num_layers", 8),
        "num_decoder_layers": model["decoder"].get("num_layers", 4),
    }


def _add_tokenizers(
    imported: ImportedModel, folder: Path, data: dict[str, Any], vocabularies: list[list[str]], special: SpecialTokens
) -> None:
    """Make the tokenizers, which may lengthen the vocabularies; the same for both sides if their settings are."""
    source, target = vocabularies
    names = ("level", "tokenizer_type", "bpe_type", "tokenizer_cfg", "lowercase", "normalize")
    is_same = source is target and all(data["src"].get(name) == data["trg"].get(name) for name in names)
    made = [
        _tokenizer(data[side], folder, vocabulary, special)
        for side, vocabulary in list(zip(("src", "trg"), vocabularies, strict=True))[: 1 if is_same else 2]
    ]
    imported.tokenizer = with_target(made[0], None if is_same else made[1])
    imported.source_vocabulary, imported.target_vocabulary, imported.unk = source, target, special.unk
    if (data["src"].get("tokenizer_cfg") or {}).get("pretokenizer") == "moses":
        imported.note = "Its texts are tokenised by sacremoses before, and stay so in translations."
    elif data["src"].get("tokenizer_type") == "subword-nmt" or data["src"]["level"] == "word":
        imported.note = "Its texts are words and punctuation separated by spaces."


def _tokenizer(side: dict[str, Any], folder: Path, vocabulary: list[str], special: SpecialTokens) -> Any:
    level, settings = side.get("level"), side.get("tokenizer_cfg") or {}
    kind = side.get("tokenizer_type", side.get("bpe_type", "sentencepiece")) if level == "bpe" else level
    if kind == "word":
        tokenizer = words_tokenizer(vocabulary, special)
    elif kind == "char":
        tokenizer = characters_tokenizer(vocabulary, special)
    elif kind == "sentencepiece":
        model = read_sentencepiece(folder / Path(settings.get("model_file", "sentencepiece.model")).name)
        _restrict(model, vocabulary)
        tokenizer = sentencepiece_tokenizer(model, vocabulary, special)
    elif kind == "subword-nmt":
        merges = read_codes(folder / Path(settings.get("codes", "codes")).name)
        tokenizer = subword_tokenizer(merges, vocabulary, special, settings.get("separator", "@@"))
    else:
        raise ValueError(f"tokenization {kind!r} must be one of word, char, sentencepiece, subword-nmt")
    is_moses = settings.get("pretokenizer", "none") == "moses"  # which normalizes by rules of its own
    steps = [*(NORMALIZERS if side.get("normalize") and not is_moses else [])]
    steps += [normalizers.Lowercase()] if side.get("lowercase") else []
    if steps:
        own = tokenizer.backend_tokenizer.normalizer
        tokenizer.backend_tokenizer.normalizer = normalizers.Sequence([*steps, *([own] if own else [])])
    return tokenizer


def _restrict(model: SentencePieceModel, vocabulary: list[str]) -> None:
    """Leave out pieces that the vocabulary lacks, as JoeyNMT does by SentencePiece's SetVocabulary.

    Characters stay, and in a model of BPE the pieces that others are merged from. Where one of these ends up in a text,
    SentencePiece splits it again, and the fast tokenizer reads it as unknown.
    """
    pieces, useful, kept = {text for text, _, _ in model.pieces}, set(vocabulary), []
    for text, score, kind in reversed(model.pieces):  # pieces of BPE are merged from earlier ones
        if text in useful or len(text) == 1 or kind != NORMAL:
            kept.append((text, score, kind))
            if model.model_type == BPE:
                cuts = [(text[:cut], text[cut:]) for cut in range(1, len(text))]
                useful.update(part for parts in cuts if pieces.issuperset(parts) for part in parts)
    model.pieces = kept[::-1]
