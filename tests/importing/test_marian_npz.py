# SPDX-License-Identifier: Apache-2.0
"""Marian's .npz, written here by the names of transformers' converter.

The reference is transformers' MarianMT with Marian's own frequencies and epsilon, which the port does not have.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
import torch
import yaml
from torch import nn
from transformers import MarianConfig, MarianMTModel

from tests.importing.conftest import LINES, largest_difference, train_sentencepiece
from vanilla_transformer.data.tokenizer import load_tokenizer
from vanilla_transformer.importing.import_model import import_model
from vanilla_transformer.inference.model_folder import load_model_folder

D, FF = 16, 24
NAMES = {
    **{f"self_attn.{part}_proj": f"self_{{kind}}{part}" for part in "qkv"},
    **{f"encoder_attn.{part}_proj": f"context_{{kind}}{part}" for part in "qkv"},
    "self_attn.out_proj": "self_{kind}o",
    "encoder_attn.out_proj": "context_{kind}o",
    "fc1": "ffn_{kind}1",
    "fc2": "ffn_{kind}2",
    "self_attn_layer_norm": "self_Wo_ln_{kind}",
    "encoder_attn_layer_norm": "context_Wo_ln_{kind}",
    "final_layer_norm": "ffn_ffn_ln_{kind}",
}


def table(length: int) -> torch.Tensor:
    """Marian: i / (d / 2 - 1), all sines, then all cosines."""
    rates = torch.exp(torch.arange(D // 2) * -(np.log(10000.0) / (D // 2 - 1)))
    angles = torch.arange(length)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)


@pytest.fixture
def marian(tmp_path: Path):
    """The reference, and the folder of its .npz and .spm."""
    folder = tmp_path / "marian"
    folder.mkdir()
    path = train_sentencepiece(folder / "vocab.spm", LINES[:4], "unigram", 200, bos_id=-1, eos_id=0, unk_id=1)
    size = sentencepiece.SentencePieceProcessor(str(path)).GetPieceSize()
    config = MarianConfig(
        vocab_size=size + 1,
        d_model=D,
        encoder_layers=2,
        decoder_layers=1,
        encoder_ffn_dim=FF,
        decoder_ffn_dim=FF,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        activation_function="silu",
        scale_embedding=True,
        pad_token_id=size,
        decoder_start_token_id=size,
        eos_token_id=0,
        init_std=0.3,
        max_position_embeddings=64,
    )
    model = MarianMTModel(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
            if "embed_positions" in name:
                parameter.copy_(table(len(parameter)))
        model.get_parameter("model.shared.weight")[size] = 0
        model.get_buffer("final_logits_bias")[0, :size].normal_()
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-6
    arrays = {"Wemb": model.get_parameter("model.shared.weight")[:size]}
    arrays["decoder_ff_logit_out_b"] = model.get_buffer("final_logits_bias")[:, :size]
    for name, parameter in model.named_parameters():
        if ".layers." in name:
            _, stack, _, layer, rest = name.split(".", 4)
            module, _, kind = rest.rpartition(".")
            kinds = {"weight": "scale", "bias": "bias"} if "norm" in module else {"weight": "W", "bias": "b"}
            is_matrix = parameter.dim() == 2
            key = f"{stack}_l{int(layer) + 1}_{NAMES[module].format(kind=kinds[kind])}"
            arrays[key] = parameter.T if is_matrix else parameter[None]
    write(folder / "model.npz", arrays, {})
    return model, folder, arrays


def write(path: Path, arrays, changes) -> None:
    settings = {"type": "transformer", "dim-emb": D, "enc-depth": 2, "dec-depth": 1, "transformer-heads": 2}
    settings |= {"transformer-dim-ffn": FF, "transformer-ffn-activation": "swish", "transformer-postprocess": "dan"}
    settings |= {"transformer-preprocess": "", "dim-vocabs": [200, 200]} | changes
    text = np.frombuffer(yaml.safe_dump(settings).encode() + b"\0", dtype=np.int8)
    values: dict[str, Any] = {name: tensor.detach().numpy() for name, tensor in arrays.items()}
    values["special:model.yml"] = text
    np.savez(path, allow_pickle=False, **values)


def test_logits_are_those_of_marian(marian, tmp_path, draw):
    model, folder, _ = marian
    import_model(folder, tmp_path / "ours")
    ours, pad = load_model_folder(tmp_path / "ours"), model.config.pad_token_id
    targets = [[pad, *target] for target in draw(2, pad)]

    def port(source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return model(input_ids=source, decoder_input_ids=target).logits

    assert largest_difference(ours, port, draw(2, pad), targets) < 1e-4


def test_ids_are_those_of_the_vocabulary(marian, tmp_path):
    _, folder, _ = marian
    import_model(folder / "model.npz", tmp_path / "ours")
    processor = sentencepiece.SentencePieceProcessor(str(folder / "vocab.spm"))
    for line in LINES:
        assert load_tokenizer(tmp_path / "ours")(line)["input_ids"] == [*processor.encode(line), 0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"type": "s2s"}, "has type: 's2s'; only 'transformer' can be imported"),
        ({"transformer-preprocess": "n"}, "has transformer-preprocess: 'n'; only '' can be imported"),
        ({"transformer-decoder-autoreg": "rnn"}, "only 'self-attention' can be imported"),
        ({"enc-depth": 6}, "states num_layers=6, but its weights have num_layers=2"),
    ],
)
def test_another_architecture_is_one_line(marian, tmp_path, changes, message):
    _, folder, arrays = marian
    write(folder / "model.npz", arrays, changes)
    with pytest.raises(ValueError, match=message):
        import_model(folder, tmp_path / "ours")


def test_damaged_and_missing_files_are_one_line(marian, tmp_path):
    _, folder, _ = marian
    content = (folder / "model.npz").read_bytes()
    (folder / "model.npz").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"model\.npz is no model of Marian"):
        import_model(folder, tmp_path / "ours")
    (folder / "model.npz").write_bytes(content)
    (folder / "vocab.spm").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no vocabulary \.spm"):
        import_model(folder, tmp_path / "ours")
