# SPDX-License-Identifier: Apache-2.0
"""From renamed weights and a toolkit's settings to a model of this package, and to its folder."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast

from vanilla_transformer.configuration_base import Seq2SeqConfig
from vanilla_transformer.configuration_rnn_seq2seq import RNNSeq2SeqConfig
from vanilla_transformer.configuration_vanilla_transformer import VanillaTransformerConfig
from vanilla_transformer.data.tokenizer_class import TARGET_TOKENIZER
from vanilla_transformer.hub.model_card import ModelCardFacts, write_model_card
from vanilla_transformer.importing.names import DECODER, ENCODER, HEAD, count_layers, fill_tied
from vanilla_transformer.modeling_rnn_seq2seq import RNNSeq2SeqForConditionalGeneration
from vanilla_transformer.modeling_vanilla_transformer import VanillaTransformerForConditionalGeneration
from vanilla_transformer.training.atomic_folder import atomic_folder

POSITIONS = "model.encoder.input_embedding.positions.weight"
GATES = {1: "tanh", 3: "gru", 4: "lstm"}  # of each cell
Weights = dict[str, torch.Tensor]


@dataclass
class ImportedModel:
    """A model as a toolkit's importer has read it.

    Args:
        origin: the toolkit and the file, for errors and the model card.
        settings: fields of the configuration that the weights do not show.
        stated: fields that the weights do show, as the source states them; another size is an error.
        weights: by our names, as `rename` returns them.
        architecture: a key of `ARCHITECTURES`.
        generation: fields of the generation config.
        tokenizer: `None`: the source has none.
        source_vocabulary, target_vocabulary: tokens by id; more than the embedding has are copies of unk.
        languages: source and target language, ISO 639.
        note: a sentence for the model card about texts that the tokenizer expects.
    """

    origin: str
    settings: dict[str, Any]
    weights: Weights
    architecture: str = "vanilla_transformer"
    stated: dict[str, Any] = field(default_factory=dict)
    generation: dict[str, Any] = field(default_factory=dict)
    tokenizer: PreTrainedTokenizerFast | None = None
    source_vocabulary: list[str] | None = None
    target_vocabulary: list[str] | None = None
    unk: str = "<unk>"
    languages: list[str] = field(default_factory=list)
    note: str = ""


def build_model(imported: ImportedModel) -> PreTrainedModel:
    """The model with the source's weights, in evaluation mode.

    Raises:
        ValueError: weights that are missing, or that do not fit each other, the settings or the vocabularies.
    """
    origin, weights = imported.origin, fill_tied(imported.weights)
    missing = [name for name in (ENCODER, DECODER, HEAD) if f"{name}.weight" not in weights]
    if missing:
        raise ValueError(f"{origin} has no weights for {missing[0]}")
    architecture = ARCHITECTURES[imported.architecture]
    found = _embedding_sizes(weights) | architecture.sizes(weights)
    for name, value in imported.stated.items():
        if value is not None and value != found[name]:
            raise ValueError(f"{origin} states {name}={value}, but its weights have {name}={found[name]}")
    found |= _embedding_sizes(_extend(imported, weights))
    has_one = imported.tokenizer is not None and getattr(imported.tokenizer, TARGET_TOKENIZER, None) is None
    if has_one and found["decoder_vocab_size"] == found["vocab_size"]:
        found["decoder_vocab_size"] = None  # one vocabulary, perhaps with an embedding for each side
    try:
        config = architecture.config_class(**found | imported.settings)
    except ValueError as error:
        raise ValueError(f"{origin}: {error}") from error
    model = architecture.model_class(config)
    expected = model.state_dict()
    if found.get("projection_bias") is False:  # one of zeros
        weights.pop(f"{HEAD}.bias", None)
    for name in sorted(expected.keys() | weights.keys()):
        if name not in weights:
            raise ValueError(f"{origin} has no weights for {name}")
        if name not in expected:
            raise ValueError(f"{origin} has weights for {name}, which a model of these settings does not have")
        if weights[name].shape != expected[name].shape:
            sizes = f"{tuple(weights[name].shape)}, not {tuple(expected[name].shape)}"
            raise ValueError(f"{origin}: the weights for {name} have the shape {sizes}")
    model.load_state_dict(weights)
    model.generation_config = GenerationConfig.from_dict(
        {name: getattr(config, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
        | {"decoder_start_token_id": config.decoder_start_token_id}
        | imported.generation
    )
    return model.eval()


def _extend(imported: ImportedModel, weights: Weights) -> Weights:
    """Rows for tokens of the tokenizers that the source reads as unknown: copies of the unknown token's row."""
    shares = torch.equal(weights[f"{ENCODER}.weight"], weights[f"{DECODER}.weight"])
    for names, vocabulary in (
        ([ENCODER], imported.source_vocabulary),
        ([DECODER, HEAD], imported.target_vocabulary or (imported.source_vocabulary if shares else None)),
    ):
        if vocabulary is None:
            continue
        unk = vocabulary.index(imported.unk)
        for name in (f"{name}{suffix}" for name in names for suffix in (".weight", ".bias")):
            if (matrix := weights.get(name)) is None:
                continue
            extra = len(vocabulary) - len(matrix)
            weights[name] = torch.cat([matrix, matrix[unk : unk + 1].expand(extra, *matrix.shape[1:])])
            if name == f"{HEAD}.weight" and extra:  # the source cannot generate them
                suppressed = imported.generation.get("suppress_tokens", [])
                imported.generation["suppress_tokens"] = [*suppressed, *range(len(matrix), len(vocabulary))]
    return weights


def _embedding_sizes(weights: Weights) -> dict[str, Any]:
    """The fields of both configurations that the embeddings and the projection show."""
    encoder, decoder, head = (weights[f"{name}.weight"] for name in (ENCODER, DECODER, HEAD))
    return {
        "vocab_size": len(encoder),
        "decoder_vocab_size": len(decoder),
        "share_encoder_decoder_embeddings": torch.equal(encoder, decoder),
        "tie_word_embeddings": torch.equal(decoder, head),
    }


def _transformer_sizes(weights: Weights) -> dict[str, Any]:
    """The other fields of `VanillaTransformerConfig` that the weights show."""
    first = "model.encoder.layers.0.feed_forward.linear_1.weight"
    sizes: dict[str, Any] = {
        "d_model": weights[f"{ENCODER}.weight"].shape[1],
        "d_ff": len(weights[first]) if first in weights else 0,
        "num_layers": count_layers(weights, "encoder"),
        "num_decoder_layers": count_layers(weights, "decoder"),
        "attention_bias": any(".q_proj.bias" in name for name in weights),
        "final_layer_norm": "model.encoder.norm.weight" in weights,
        "embedding_layer_norm": "model.encoder.input_embedding.norm.weight" in weights,
        "projection_bias": bool(weights.get(f"{HEAD}.bias", torch.zeros(1)).any()),
        "position_embedding": "learned" if POSITIONS in weights else "sinusoidal",
    }
    if POSITIONS in weights:
        sizes["max_position_embeddings"] = len(weights[POSITIONS])
    return sizes


def _recurrent_sizes(weights: Weights) -> dict[str, Any]:
    """The other fields of `RNNSeq2SeqConfig` that the weights show."""
    recurrence = weights.get("model.encoder.stack.layers.0.recurrence.weight_hh_l0", torch.empty(0, 0))
    gates = len(recurrence) // max(1, recurrence.shape[1])
    keys, scores = (f"model.decoder.attention.{name}.weight" in weights for name in ("k_proj", "v"))
    return {
        "embedding_size": weights[f"{ENCODER}.weight"].shape[1],
        "hidden_size": recurrence.shape[1],
        "num_layers": count_layers(weights, "encoder.stack"),
        "num_decoder_layers": count_layers(weights, "decoder.stack"),
        "cell": GATES.get(gates, f"of {gates} gates"),
        "bidirectional": any(name.endswith("_reverse") for name in weights),
        "attention": "additive" if scores else "multiplicative" if keys else "none",
        "readout_bias": "model.decoder.readout.linear.bias" in weights,
    }


@dataclass(frozen=True)
class Architecture:
    """A model of this package, and the fields of its configuration that weights show."""

    config_class: type[Seq2SeqConfig]
    model_class: type[PreTrainedModel]
    sizes: Callable[[Weights], dict[str, Any]]


ARCHITECTURES = {
    "vanilla_transformer": Architecture(
        VanillaTransformerConfig, VanillaTransformerForConditionalGeneration, _transformer_sizes
    ),
    "rnn_seq2seq": Architecture(RNNSeq2SeqConfig, RNNSeq2SeqForConditionalGeneration, _recurrent_sizes),
}


def write_folder(imported: ImportedModel, folder: Path, name: str) -> PreTrainedModel:
    """Write the model folder, whole or not at all.

    Raises:
        ValueError: as `build_model`.
        OSError: the folder cannot be written.
    """
    model = build_model(imported)
    facts = ModelCardFacts(
        model_name=name,
        parameters=model.num_parameters(),
        imported_from=f"{imported.origin}. {imported.note}".strip(),
        has_target_tokenizer=getattr(imported.tokenizer, TARGET_TOKENIZER, None) is not None,
        languages=imported.languages,
    )
    with atomic_folder(folder) as unfinished:
        model.save_pretrained(unfinished)
        if imported.tokenizer is not None:
            imported.tokenizer.save_pretrained(unfinished)
        write_model_card(unfinished, facts=facts)
    return model
