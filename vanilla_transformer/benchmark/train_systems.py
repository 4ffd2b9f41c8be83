# SPDX-License-Identifier: Apache-2.0
"""The systems whose updates are timed: ours, and the encoder-decoders that others would train instead."""

import math
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForSeq2SeqLM, MarianConfig, MarianMTModel

from vanilla_transformer.benchmark.train_configuration import TrainBenchmarkConfig
from vanilla_transformer.modeling_vanilla_transformer import VanillaTransformerForConditionalGeneration
from vanilla_transformer.training.model import compile_layers

OURS, RNN, MARIAN, TORCH, X_TRANSFORMERS = "ours", "our RNN", "MarianMT", "nn.Transformer", "x-transformers"
DROPOUT = 0.1
SEED = 1

Loss = Callable[[dict[str, torch.Tensor]], torch.Tensor]


class TorchTransformer(nn.Module):
    """`torch.nn.Transformer` with scaled embeddings, learned positions and a tied head."""

    def __init__(self, config: Any, length: int):
        super().__init__()
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.positions = nn.Parameter(torch.zeros(length, config.d_model))
        self.transformer = nn.Transformer(
            config.d_model,
            config.num_heads,
            config.num_layers,
            config.num_decoder_layers,
            config.d_ff,
            DROPOUT,
            batch_first=True,
        )
        nn.init.normal_(self.embedding.weight, std=config.d_model**-0.5)
        self.scale = math.sqrt(config.d_model)

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Source and target `(batch, length)` → the loss."""
        target = nn.functional.pad(labels[:, :-1], (1, 0))
        source, target = (
            self.embedding(ids) * self.scale + self.positions[: ids.shape[1]] for ids in (input_ids, target)
        )
        mask = self.transformer.generate_square_subsequent_mask(labels.shape[1], device=labels.device)
        hidden_states = self.transformer(source, target, tgt_mask=mask, tgt_is_causal=True)
        logits = nn.functional.linear(hidden_states, self.embedding.weight)  # (batch, length, vocab_size)
        return nn.functional.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())


def _ours(config: Any, length: int, attention: str) -> nn.Module:
    return AutoModelForSeq2SeqLM.from_config(config, attn_implementation=attention)


def _rnn(config: Any, length: int, attention: str) -> nn.Module:
    return AutoModelForSeq2SeqLM.from_config(config)


def _marian(config: Any, length: int, attention: str) -> nn.Module:
    return MarianMTModel(
        MarianConfig(
            vocab_size=config.vocab_size,
            d_model=config.d_model,
            encoder_layers=config.num_layers,
            decoder_layers=config.num_decoder_layers,
            encoder_ffn_dim=config.d_ff,
            decoder_ffn_dim=config.d_ff,
            encoder_attention_heads=config.num_heads,
            decoder_attention_heads=config.num_heads,
            max_position_embeddings=length,
            scale_embedding=True,
            activation_function="relu",
            dropout=DROPOUT,
            pad_token_id=config.pad_token_id,
            eos_token_id=config.eos_token_id,
            decoder_start_token_id=config.decoder_start_token_id,
            forced_eos_token_id=None,
            attn_implementation=attention,
        )
    )


def _torch(config: Any, length: int, attention: str) -> nn.Module:
    return TorchTransformer(config, length)


def _x_transformers(config: Any, length: int, attention: str) -> nn.Module:
    from x_transformers import XTransformer

    sides: dict[str, Any] = {}
    for side, layers in (("enc", config.num_layers), ("dec", config.num_decoder_layers)):
        sides |= {f"{side}_num_tokens": config.vocab_size, f"{side}_max_seq_len": length, f"{side}_depth": layers}
        sides |= {f"{side}_heads": config.num_heads, f"{side}_attn_dim_head": config.d_k}
        sides |= {f"{side}_ff_mult": config.d_ff / config.d_model, f"{side}_attn_flash": attention == "sdpa"}
        sides |= {f"{side}_attn_dropout": 0.0, f"{side}_layer_dropout": 0.0, f"{side}_ff_dropout": DROPOUT}
    return XTransformer(dim=config.d_model, tie_token_emb=True, **sides)


BUILDERS = {OURS: _ours, RNN: _rnn, MARIAN: _marian, TORCH: _torch, X_TRANSFORMERS: _x_transformers}
SYSTEMS = tuple(BUILDERS)


def skip_reasons(systems: list[str]) -> dict[str, str]:
    """The systems that cannot run here, and why."""
    missing = X_TRANSFORMERS in systems and find_spec("x_transformers") is None
    return {X_TRANSFORMERS: "the package x-transformers is not installed"} if missing else {}


def loss_of(name: str, model: nn.Module) -> Loss:
    """A function from a batch (`input_ids` and `labels`, `(batch, length)`) to the loss."""
    if name in (OURS, RNN):
        return lambda batch: model(**batch, skip_logits=True).loss
    if name == MARIAN:
        return lambda batch: model(**batch).loss
    if name == TORCH:
        return lambda batch: model(**batch)
    return lambda batch: model(batch["input_ids"], nn.functional.pad(batch["labels"], (1, 0)))


class TrainStep:
    """One update of one system: forward pass, backward pass and Adam's step."""

    def __init__(
        self, name: str, config: TrainBenchmarkConfig, size: str, length: int, device: torch.device, precision: str
    ):
        torch.manual_seed(SEED)
        is_short = device.type == "cpu" and length <= config.eager_up_to
        model_config = config.model_config(size, "rnn" if name == RNN else "transformer")
        self.model = BUILDERS[name](model_config, length, "eager" if is_short else "sdpa").to(device).train()
        self.loss = loss_of(name, self.model)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-4, fused=True)  # the rate costs nothing
        self.device, self.is_bfloat16 = device, precision == "bfloat16"

    def compile(self) -> None:
        """Compile ours layer by layer, as `training.compile` does, and the others as a whole, as their users would."""
        if isinstance(self.model, VanillaTransformerForConditionalGeneration):
            compile_layers(self.model)
        else:
            self.model.compile()

    def __call__(self, batch: dict[str, torch.Tensor], updates: int) -> None:
        for _ in range(updates):
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.is_bfloat16):
                loss = self.loss(batch)
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
        if self.device.type != "cpu":  # an accelerator runs asynchronously
            torch.accelerator.synchronize(self.device)
