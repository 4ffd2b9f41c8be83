# SPDX-License-Identifier: Apache-2.0
"""A tiny model of each architecture, for the tests that hold for all of them.

A family declares the behaviours that it cannot have in `lacks`, with the reason. The tests check that it does not have
them, and that all others do. `python -m tests.families` prints them.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache, DynamicCache, EncoderDecoderCache

import vanilla_transformer as package
from vanilla_transformer.recurrence import RecurrentCache

PAD, START, END = 0, 1, 2

# Behaviours that a family may lack.
SELF_ATTENTION = "attention maps of encoder and decoder over themselves"
CROSS_ATTENTION = "attention maps over the source"
KEYS_AND_VALUES = "keys and values in the cache"
OTHER_CACHES = "offloading the cache"
ATTENTION_BACKENDS = "attention by sdpa, flex and flash"
ASSISTED_GENERATION = "assisted generation, and that from the prompt"
COMPILING_AS_IT_IS = "torch.compile without torch._dynamo.config.allow_rnn = True"
TARGETS_OF_ANY_LENGTH = "targets of any length in one exported graph of the whole model"
INNER_GRADIENTS = "gradients of the decoder's hidden states and attention maps"
FEED_FORWARD_CHUNKS = "feed-forward networks in chunks"
TENSOR_PARALLELISM = "tensor parallelism"


@dataclass(frozen=True)
class Family:
    name: str
    config_class: type[PreTrainedConfig]
    base_class: type
    seq2seq_class: type
    tiny: dict[str, Any]
    backends: tuple[str, ...]
    new_cache: Callable[[], Cache]
    # Output name → shape of each layer, for a source of (3, 8) and a target of (3, 6).
    shapes: dict[str, list[tuple[int, ...]] | None]
    lacks: dict[str, str] = field(default_factory=dict)  # behaviour → why it cannot be

    @property
    def target_vocab_size(self) -> int:
        return self.tiny.get("decoder_vocab_size", self.tiny["vocab_size"])

    def config(self, **changes) -> PreTrainedConfig:
        return self.config_class(**(self.tiny | changes))

    def model(self, dtype: torch.dtype = torch.float32, **changes):
        torch.manual_seed(0)
        model = self.seq2seq_class(self.config(**changes)).to(dtype).eval()
        with torch.no_grad():  # away from the symmetric start, so that differences show
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        return model


NO_RNN_HAS = {
    SELF_ATTENTION: "a recurrence reads its sequence through a state, without attention to itself",
    KEYS_AND_VALUES: "the cache is the state after the last token, whose size is fixed",
    OTHER_CACHES: "the state is small and needed at every step",
    ATTENTION_BACKENDS: "the backends do not offer the attention of Bahdanau and Luong",
    ASSISTED_GENERATION: "rejecting tokens would need the states before them, which are gone",
    COMPILING_AS_IT_IS: "torch.compile refuses torch's recurrent layers unless this is set",
    FEED_FORWARD_CHUNKS: "it has no feed-forward networks",
    TENSOR_PARALLELISM: "each step reads the whole state, which torch's fused recurrence has on one device",
}
WITHOUT_ATTENTION = {CROSS_ATTENTION: "the decoder reads the source from the encoder's last state alone"}
WITH_INPUT_FEEDING = {
    TARGETS_OF_ANY_LENGTH: "each step needs the attention of the step before, and the graph unrolls the loop over them",
    INNER_GRADIENTS: "the returned tensors are concatenated from the steps afterwards; nothing is computed from them",
}


def recurrent(name: str, architecture: dict[str, Any], encoder_width: int) -> Family:
    """An RNN whose embeddings are wider than its state, so that a confusion of both shows."""
    decoder_layers = architecture.get("num_decoder_layers", 3)
    return Family(
        name=f"rnn_seq2seq-{name}",
        config_class=package.RNNSeq2SeqConfig,
        base_class=package.RNNSeq2SeqModel,
        seq2seq_class=package.RNNSeq2SeqForConditionalGeneration,
        tiny={
            "vocab_size": 31,
            "embedding_size": 12,
            "hidden_size": 10,
            "num_layers": 2,
            "num_decoder_layers": decoder_layers,
            "tie_word_embeddings": True,
            "dropout": 0.1,
            "label_smoothing": 0.1,
        }
        | architecture,
        backends=("eager",),
        new_cache=RecurrentCache,
        shapes={
            "encoder_attentions": None,
            "decoder_attentions": None,
            "cross_attentions": None if architecture["attention"] == "none" else [(3, 1, 6, 8)],
            "encoder_hidden_states": [(3, 8, 12)] + [(3, 8, encoder_width)] * 2,
            "decoder_hidden_states": [(3, 6, 12)] + [(3, 6, 10)] * decoder_layers,
        },
        lacks=NO_RNN_HAS
        | (WITHOUT_ATTENTION if architecture["attention"] == "none" else {})
        | (WITH_INPUT_FEEDING if architecture["input_feeding"] != "none" else {}),
    )


TRANSFORMER = Family(
    name="vanilla_transformer",
    config_class=package.VanillaTransformerConfig,
    base_class=package.VanillaTransformerModel,
    seq2seq_class=package.VanillaTransformerForConditionalGeneration,
    tiny={"vocab_size": 31, "d_model": 16, "d_ff": 32, "num_layers": 2, "num_decoder_layers": 3, "num_heads": 2},
    backends=("eager", "sdpa", "flex_attention"),
    new_cache=lambda: EncoderDecoderCache(DynamicCache(), DynamicCache()),
    shapes={
        "encoder_attentions": [(3, 2, 8, 8)] * 2,
        "decoder_attentions": [(3, 2, 6, 6)] * 3,
        "cross_attentions": [(3, 2, 6, 8)] * 3,
        "encoder_hidden_states": [(3, 8, 16)] * 3,
        "decoder_hidden_states": [(3, 6, 16)] * 4,
    },
)

DEPARTURES = replace(
    TRANSFORMER,
    name="vanilla_transformer-departures",
    tiny=TRANSFORMER.tiny
    | {"decoder_vocab_size": 37, "share_encoder_decoder_embeddings": False, "projection_bias": True}
    | {"embedding_layer_norm": True, "sinusoid_exponent": "tensor2tensor", "position_offset": 2},
)

FAMILIES = [
    TRANSFORMER,
    recurrent(
        "bahdanau",
        {"cell": "gru", "bidirectional": True, "attention": "additive", "input_feeding": "context"},
        encoder_width=20,
    ),
    recurrent(
        "luong",
        {"cell": "lstm", "bidirectional": False, "attention": "multiplicative", "input_feeding": "attentional"}
        | {"num_decoder_layers": 2, "reverse_source": True},
        encoder_width=10,
    ),
    recurrent(
        "at_once",
        {"cell": "lstm", "bidirectional": True, "attention": "multiplicative", "input_feeding": "none"}
        | {"residual": True, "decoder_vocab_size": 37, "share_encoder_decoder_embeddings": False},
        encoder_width=20,
    ),
    recurrent(
        "sutskever",
        {"cell": "tanh", "bidirectional": False, "attention": "none", "input_feeding": "none", "reverse_source": True}
        | {"num_decoder_layers": 2},
        encoder_width=10,
    ),
    DEPARTURES,
]


def tiny_batch() -> dict[str, torch.Tensor]:
    """Three pairs; the first source and the second target are padded."""
    torch.manual_seed(2)
    source = torch.randint(3, 31, (3, 8))
    source[0, 5:] = PAD
    labels = torch.randint(3, 31, (3, 6))
    labels[1, 4:] = -100
    return {"input_ids": source, "attention_mask": source.ne(PAD).long(), "labels": labels}


def unsupported_behaviours() -> str:
    """For each family the behaviours that it lacks, one a line."""
    lines = []
    for family in FAMILIES:
        lines.append(f"{family.name}:")
        lines += [f"  {behaviour}: {reason}" for behaviour, reason in family.lacks.items()] or ["  lacks nothing"]
    return "\n".join(lines)


if __name__ == "__main__":
    print(unsupported_behaviours())
