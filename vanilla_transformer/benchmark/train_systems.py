# SPDX-License-Identifier: Apache-2.0
"""The systems whose updates are timed: ours, and the encoder-decoders that others would train instead."""

import math
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForSeq2SeqLM, MarianMTModel

from vanilla_transformer.benchmark.random_model import SEED, random_sources
from vanilla_transformer.benchmark.train_configuration import (
    MARIAN,
    OURS,
    RNN,
    TORCH,
    X_TRANSFORMERS,
    TrainBenchmarkConfig,
)
from vanilla_transformer.exporting.marian import marian_config
from vanilla_transformer.training.model import compile_layers

Batch = dict[str, torch.Tensor]  # `input_ids` and `labels`, `(batch, length)`, without padding


def random_batch(vocab_size: int, tokens: int, length: int, device: torch.device) -> Batch:
    """Sentences of `length`, with `tokens` a side; the targets are the sources in reverse."""
    input_ids = torch.tensor(random_sources(vocab_size, tokens // length, length), device=device)
    return {"input_ids": input_ids, "labels": input_ids.flip(1).contiguous()}


class TorchTransformer(nn.Module):
    """`torch.nn.Transformer` with scaled embeddings, learned positions and a tied head."""

    def __init__(self, config: Any, length: int):
        super().__init__()
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.positions = nn.Parameter(torch.zeros(length, config.d_model))
        layers = config.num_layers, config.num_decoder_layers
        sizes = config.d_model, config.num_heads, *layers, config.d_ff, config.dropout
        self.transformer = nn.Transformer(*sizes, batch_first=True)
        nn.init.normal_(self.embedding.weight, std=config.d_model**-0.5)
        self.start = config.decoder_start_token_id

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Source and target `(batch, length)` → the loss."""
        source, target = (
            self.embedding(ids) * math.sqrt(self.embedding.embedding_dim) + self.positions[: ids.shape[1]]
            for ids in (input_ids, nn.functional.pad(labels[:, :-1], (1, 0), value=self.start))
        )
        mask = nn.Transformer.generate_square_subsequent_mask(labels.shape[1], device=labels.device)
        hidden_states = self.transformer(source, target, tgt_mask=mask, tgt_is_causal=True)
        logits = nn.functional.linear(hidden_states, self.embedding.weight)  # (batch, length, vocab_size)
        return nn.functional.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())


def _x_transformers(config: Any, length: int, attention: str) -> nn.Module:
    from x_transformers import XTransformer  # pyright: ignore[reportMissingImports] -- of no extra

    sides: dict[str, Any] = {}
    for side, layers in (("enc", config.num_layers), ("dec", config.num_decoder_layers)):
        sides |= {f"{side}_num_tokens": config.vocab_size, f"{side}_max_seq_len": length, f"{side}_depth": layers}
        sides |= {f"{side}_heads": config.num_heads, f"{side}_attn_dim_head": config.d_k}
        sides |= {f"{side}_ff_mult": config.d_ff / config.d_model, f"{side}_attn_flash": attention == "sdpa"}
        sides |= {f"{side}_emb_dropout": config.dropout, f"{side}_ff_dropout": config.dropout}
    model: Any = XTransformer(dim=config.d_model, tie_token_emb=True, **sides)
    model.decoder.net.to_logits.weight = model.encoder.token_emb.emb.weight
    return model


def build(name: str, config: Any, length: int, attention: str) -> nn.Module:
    """A system of `SYSTEMS` with random weights.

    Args:
        config: a `VanillaTransformerConfig`; for the RNN its own.
        length: the longest sentence, in tokens.
        attention: "eager" or "sdpa"; `nn.Transformer` has SDPA alone.
    """
    if name in (OURS, RNN):
        return AutoModelForSeq2SeqLM.from_config(config, attn_implementation="eager" if name == RNN else attention)
    if name == MARIAN:
        return MarianMTModel(marian_config(config, length, attn_implementation=attention))
    return TorchTransformer(config, length) if name == TORCH else _x_transformers(config, length, attention)


def loss_of(name: str, model: nn.Module, batch: Batch) -> torch.Tensor:
    """The loss of a batch as the system itself computes it; the RNN and ours smooth labels, too."""
    if name in (OURS, RNN):
        return model(**batch, skip_logits=True).loss
    if name == X_TRANSFORMERS:  # as many positions as the others, the last of them without a label
        return model(batch["input_ids"], batch["labels"])
    return model(**batch).loss if name == MARIAN else model(**batch)


def skip_reasons(systems: list[str]) -> dict[str, str]:
    """The systems that cannot run here, and why."""
    missing = X_TRANSFORMERS in systems and find_spec("x_transformers") is None
    return {X_TRANSFORMERS: "the package x-transformers is not installed"} if missing else {}


class TrainStep:
    """Updates of one system: forward pass, backward pass and Adam's step."""

    def __init__(
        self, name: str, config: TrainBenchmarkConfig, size: str, length: int, device: torch.device, precision: str
    ):
        torch.manual_seed(SEED)
        is_short = device.type == "cpu" and length <= config.eager_up_to
        model_config = config.model_config(size, "rnn" if name == RNN else "transformer")
        self.model = build(name, model_config, length, "eager" if is_short else "sdpa").to(device).train()
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-4, fused=True)
        self.name, self.device, self.is_bfloat16 = name, device, precision == "bfloat16"

    def compile(self) -> None:
        """Compile ours layer by layer, as a run does, and the others as a whole, as their users would."""
        compile_layers(self.model) if self.name == OURS else self.model.compile()

    def __call__(self, batch: Batch, updates: int) -> torch.Tensor:
        """Update on the same batch; returns the last loss, before that update."""
        for _ in range(updates):
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.is_bfloat16):
                loss = loss_of(self.name, self.model, batch)
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
        if self.device.type != "cpu":  # an accelerator runs asynchronously
            torch.accelerator.synchronize(self.device)
        return loss.detach()
