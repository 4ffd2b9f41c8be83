# SPDX-License-Identifier: Apache-2.0
"""An RNN as two ONNX graphs: the encoder with the decoder's first state, and a step of the decoder.

The names of files, inputs and outputs are those of the Transformer's graphs; the state stands in the place of keys and
values. optimum knows no such model: `OnnxTranslator` decodes it.
"""

import copy
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import Dim

from vanilla_transformer.exporting.onnx import Graph, quantize_graphs, write_graphs
from vanilla_transformer.exporting.onnx_translator import ENCODER, FIRST_STEP
from vanilla_transformer.exporting.plain_tokenizer import write_plain_tokenizers
from vanilla_transformer.exporting.requirements import Quantization
from vanilla_transformer.modeling_rnn_seq2seq import RNNSeq2SeqEncoderOutput
from vanilla_transformer.recurrence import RecurrentCache


class Encoder(nn.Module):
    """The source as the decoder's steps read it: state, and with attention values and keys, computed once."""

    def __init__(self, model: Any):
        super().__init__()
        self.encoder, self.decoder = model.get_encoder(), model.get_decoder()

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """`(batch, source_length)` twice → `RecurrentState.tensors`; with attention the encoder's output and keys."""
        source = self.encoder(input_ids=input_ids, attention_mask=attention_mask)
        state = tuple(self.decoder.first_state(source).values())
        if self.decoder.attention is None:
            return state
        return *state, source.last_hidden_state, self.decoder.attention.k_proj(source.last_hidden_state)


class Step(nn.Module):
    """A step of the decoder; its state is a flat tuple."""

    def __init__(self, model: Any):
        super().__init__()
        self.model = model
        self.names = state_names(model.config)

    def forward(
        self, input_ids: torch.Tensor, past: list[torch.Tensor], source: list[torch.Tensor]
    ) -> tuple[torch.Tensor, ...]:
        """`(batch, 1)` → logits `(batch, 1, vocab_size)`, and the state after the token.

        Args:
            past: `RecurrentState.tensors`.
            source: with attention the encoder's output, keys and mask; else empty.
        """
        cache = RecurrentCache()
        cache.state.tensors = dict(zip(self.names, past, strict=True))
        values, keys, mask = source or (past[0], None, None)  # without attention the decoder reads no values
        cache.state.source_keys = keys
        output = self.model.get_decoder()(
            input_ids=input_ids,
            encoder_outputs=RNNSeq2SeqEncoderOutput(last_hidden_state=values),  # pyright: ignore[reportArgumentType] -- transformers types it as a FloatTensor
            encoder_attention_mask=mask,
            cache=cache,
        )
        return self.model.lm_head(output.last_hidden_state), *cache.state.tensors.values()


def state_names(config: Any) -> list[str]:
    """The names of `RecurrentState.tensors`, in order."""
    names = {"hidden": True, "cell_state": config.cell == "lstm", "attentional": config.input_feeding == "attentional"}
    return [name for name, is_there in names.items() if is_there]


def graphs_of(config: Any) -> dict[str, Graph]:
    """File → its graph."""
    batch, length = Dim("batch"), Dim("source_length")
    # Sizes of the examples that differ wherever the dimensions do.
    ids, mask = torch.ones(2, 5, dtype=torch.long), torch.ones(2, 5, dtype=torch.long)
    hidden = torch.zeros(2, config.num_decoder_layers, config.hidden_size)
    names, has_attention = state_names(config), config.attention != "none"
    past = [torch.zeros(2, config.embedding_size) if name == "attentional" else hidden.clone() for name in names]
    source = [torch.zeros(2, 5, config.encoder_width), torch.zeros(2, 5, config.hidden_size), mask.clone()]
    source = source if has_attention else []
    of_batch, of_source = {0: batch}, {0: batch, 1: length}
    present = [f"present.{name}" for name in names]
    source_names = ["encoder_hidden_states", "source_keys", "encoder_attention_mask"] if has_attention else []
    return {
        ENCODER: Graph(
            Encoder,
            {"input_ids": ids, "attention_mask": mask},
            {"input_ids": of_source, "attention_mask": of_source},
            ["input_ids", "attention_mask"],
            [*present, *(["last_hidden_state", "source_keys"] if has_attention else [])],
        ),
        FIRST_STEP: Graph(
            Step,
            {"input_ids": ids[:, :1].clone(), "past": past, "source": source},
            {"input_ids": of_batch, "past": [of_batch] * len(past), "source": [of_source] * len(source)},
            ["input_ids", *(f"past_key_values.{name}" for name in names), *source_names],
            ["logits", *present],
        ),
    }


def write_rnn_onnx(model: Any, tokenizer: Any, folder: Path, quantization: Quantization = "float32") -> None:
    """Write a folder that `OnnxTranslator` opens.

    Args:
        model: an `RNNSeq2SeqForConditionalGeneration`.
        folder: exists and is empty.
        quantization: as for `write_onnx`; the recurrences of the encoder stay in float32.
    """
    model = copy.deepcopy(model).float().cpu().eval()
    model.config.to_json_file(folder / "config.json")
    model.generation_config.save_pretrained(folder)
    write_plain_tokenizers(tokenizer, folder)
    graphs = graphs_of(model.config)
    write_graphs(model, graphs, folder)
    if quantization == "int8":
        quantize_graphs(folder, graphs)
