# SPDX-License-Identifier: Apache-2.0
"""State dicts of torch.nn.Transformer, and of the Annotated Transformer and hkproj's code, rewritten here.

The references are built of modules with those codes' names; attention and normalisation follow their formulas.
"""

import math
from collections.abc import Sequence
from typing import Any, cast

import pytest
import torch
from torch import nn

from tests.importing.conftest import largest_difference
from vanilla_transformer.cli import main
from vanilla_transformer.importing.import_model import import_model
from vanilla_transformer.inference.model_folder import load_model_folder

D, FF, HEADS, LAYERS, SOURCE, TARGET = 16, 24, 4, 2, 30, 26


def sinusoids(length: int) -> torch.Tensor:
    """As all three codes write it: exp(-i log(10000) / d) for even i, sines and cosines interleaved."""
    rates = torch.exp(-torch.arange(0, D, 2) * math.log(10000) / D)
    angles = torch.arange(length)[:, None] * rates
    table = torch.zeros(length, D)
    table[:, 0::2], table[:, 1::2] = angles.sin(), angles.cos()
    return table


def causal(length: int) -> torch.Tensor:
    return torch.ones(length, length, dtype=torch.bool).tril()


class Named(nn.Module):
    """Children by names."""

    def __init__(self, **children: nn.Module | nn.Parameter):
        super().__init__()
        for name, child in children.items():
            setattr(self, name, child)


class OwnNorm(nn.Module):
    """weight * (x - mean) / (std + eps) + bias with the unbiased deviation."""

    def __init__(self, weight: str, bias: str, width: int = D):
        super().__init__()
        self.names = weight, bias
        for name in self.names:
            setattr(self, name, nn.Parameter(torch.ones(width)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight, bias = (getattr(self, name) for name in self.names)
        return weight * (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + 1e-6) + bias


def attend(parts: Sequence[nn.Module], query: torch.Tensor, memory: Any, mask: torch.Tensor | None):
    inputs = zip(parts[:3], (query, memory, memory), strict=True)
    q, k, v = (part(x).unflatten(-1, (HEADS, -1)).transpose(1, 2) for part, x in inputs)
    scores = q @ k.transpose(-2, -1) / math.sqrt(D / HEADS)
    if mask is not None:
        scores = scores.masked_fill(~mask, -1e9)
    return parts[3]((scores.softmax(-1) @ v).transpose(1, 2).flatten(-2))


class PreNorm(nn.Module):
    """The Annotated Transformer (`annotated`) or hkproj's; both are pre-norm."""

    def __init__(self, annotated: bool, norm_width: int = D):
        super().__init__()
        self.annotated = annotated

        def norm() -> OwnNorm:
            return OwnNorm("a_2", "b_2") if annotated else OwnNorm("alpha", "bias", norm_width)

        def attention() -> nn.Module:
            parts = [nn.Linear(D, D, bias=annotated) for _ in range(4)]
            if annotated:
                return Named(linears=nn.ModuleList(parts))
            return Named(**dict(zip(("w_q", "w_k", "w_v", "w_o"), parts, strict=True)))

        def layer(attentions: tuple[str, ...]) -> nn.Module:
            residuals = nn.ModuleList([Named(norm=norm()) for _ in range(len(attentions) + 1)])
            first, second = nn.Linear(D, FF), nn.Linear(FF, D)
            block = Named(w_1=first, w_2=second) if annotated else Named(linear_1=first, linear_2=second)
            names = {"feed_forward": block, "sublayer": residuals}
            if not annotated:
                names = {"feed_forward_block": block, "residual_connections": residuals}
            return Named(**{name: attention() for name in attentions}, **names)

        own = ("self_attn", "src_attn") if annotated else ("self_attention_block", "cross_attention_block")
        self.encoder = Named(layers=nn.ModuleList([layer(own[:1]) for _ in range(LAYERS)]), norm=norm())
        self.decoder = Named(layers=nn.ModuleList([layer(own) for _ in range(LAYERS)]), norm=norm())
        embeddings, proj = [nn.Embedding(size, D) for size in (SOURCE, TARGET)], nn.Linear(D, TARGET)
        self.embeddings, self.own = embeddings, own
        if annotated:
            self.src_embed, self.tgt_embed = (nn.ModuleList([Named(lut=embedding)]) for embedding in embeddings)
            self.generator = Named(proj=proj)
        else:
            self.src_embed, self.tgt_embed = (Named(embedding=embedding) for embedding in embeddings)
            self.projection_layer = Named(proj=proj)
        self.proj = [proj]

    def run(self, stack: Any, ids: torch.Tensor, embedding, memory: torch.Tensor | None, mask) -> torch.Tensor:
        x = embedding(ids) * math.sqrt(D) + sinusoids(ids.shape[1])
        for layer in stack.layers:
            residuals = layer.sublayer if self.annotated else layer.residual_connections
            for number, name in enumerate(self.own if memory is not None else self.own[:1]):
                parts = list(getattr(layer, name).modules())[1:]
                parts = [part for part in parts if isinstance(part, nn.Linear)]
                normed = residuals[number].norm(x)
                x = x + attend(parts, normed, normed if number == 0 else memory, mask if number == 0 else None)
            block = list((layer.feed_forward if self.annotated else layer.feed_forward_block).children())
            x = x + block[1](block[0](residuals[-1].norm(x)).relu())
        return stack.norm(x)

    def forward(self, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        memory = self.run(self.encoder, source, self.embeddings[0], None, None)
        return self.proj[0](self.run(self.decoder, target, self.embeddings[1], memory, causal(target.shape[1])))


class Tutorial(nn.Module):
    """`Seq2SeqTransformer` of the tutorial."""

    def __init__(self):
        super().__init__()
        self.transformer = nn.Transformer(D, HEADS, LAYERS, LAYERS, FF, batch_first=True)
        self.generator = nn.Linear(D, TARGET)
        self.src_tok_emb, self.tgt_tok_emb = (Named(embedding=nn.Embedding(size, D)) for size in (SOURCE, TARGET))

    def forward(self, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        embedded = [
            cast(Any, side).embedding(ids) * math.sqrt(D) + sinusoids(ids.shape[1])
            for side, ids in ((self.src_tok_emb, source), (self.tgt_tok_emb, target))
        ]
        return self.generator(self.transformer(*embedded, tgt_mask=~causal(target.shape[1])))


MODELS = {
    "torch": Tutorial,
    "annotated": lambda: PreNorm(annotated=True),
    "hkproj": lambda: PreNorm(annotated=False),
    "hkproj with scalar norms": lambda: PreNorm(annotated=False, norm_width=1),
}


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_those_of_the_code(name, tmp_path, draw):
    model = MODELS[name]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    torch.save({"model_state_dict": model.state_dict(), "epoch": 3}, tmp_path / "weights.pt")
    import_model(tmp_path / "weights.pt", tmp_path / "ours", changes={"num_heads": HEADS})
    ours = load_model_folder(tmp_path / "ours")
    assert largest_difference(ours, model, draw(4, SOURCE), draw(4, TARGET)) < 1e-4


def test_the_command_takes_what_a_state_dict_lacks(tmp_path, capsys):
    torch.save(Tutorial().state_dict(), tmp_path / "weights.pt")
    source, folder = str(tmp_path / "weights.pt"), str(tmp_path / "ours")
    assert main(["import", source, folder]) == 1
    assert "does not state the number of heads; add such a field as num_heads=8" in capsys.readouterr().err
    assert main(["import", source, folder, "num_heads=4", "pad_token_id=5"]) == 0
    assert "It has no tokenizer" in capsys.readouterr().out
    config = load_model_folder(folder).config
    assert (config.num_heads, config.pad_token_id, config.eos_token_id) == (4, 5, 3)
    assert main(["import", source, folder, "num_heads=4"]) == 1
    assert "exists and is not empty" in capsys.readouterr().err


def test_a_parameter_of_another_architecture_is_named(tmp_path):
    torch.save(Tutorial().state_dict() | {"adapter.weight": torch.zeros(2, 3)}, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match=r"has a parameter adapter\.weight \(2, 3\), which is no part"):
        import_model(tmp_path / "weights.pt", tmp_path / "ours", changes={"num_heads": 4})


def test_a_missing_parameter_is_named(tmp_path):
    weights = Tutorial().state_dict()
    del weights["transformer.decoder.layers.1.linear2.weight"]
    torch.save(weights, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match=r"has no weights for model\.decoder\.layers\.1\.feed_forward\.linear_2\.we"):
        import_model(tmp_path / "weights.pt", tmp_path / "ours", changes={"num_heads": 4})


def test_an_unknown_toolkit_is_one_line(tmp_path):
    (tmp_path / "notes.txt").write_text("no model", encoding="utf-8")
    for kind in (None, "sockeye"):
        with pytest.raises(ValueError, match=r"is of no toolkit that is recognised; say which with --from \(marianmt:"):
            import_model(tmp_path, tmp_path / "ours", kind)
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        import_model(tmp_path / "nowhere", tmp_path / "ours")
