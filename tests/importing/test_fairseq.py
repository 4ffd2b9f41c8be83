# SPDX-License-Identifier: Apache-2.0
"""fairseq's checkpoints. The references are transformers' ports of fairseq's `transformer`, whose names are fairseq's.

FSMT is post-norm with sinusoids, M2M100 pre-norm with sinusoids, BART post-norm and mBART pre-norm with learned
positions and a LayerNorm of the embeddings.
"""

from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    FSMTConfig,
    FSMTForConditionalGeneration,
    M2M100Config,
    M2M100ForConditionalGeneration,
    MBartConfig,
    MBartForConditionalGeneration,
)

from tests.importing.conftest import LINES, largest_difference, train_sentencepiece
from vanilla_transformer.data.tokenizer import load_tokenizer
from vanilla_transformer.importing.import_model import import_model
from vanilla_transformer.inference.model_folder import load_model_folder
from vanilla_transformer.inference.translator import Translator

SIZES = {
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 1,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "scale_embedding": True,
    "init_std": 0.3,
    "max_position_embeddings": 64,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": None,
    "forced_bos_token_id": None,
    "max_length": 20,
}
PORTS = {
    "fsmt": (FSMTConfig, FSMTForConditionalGeneration, {"src_vocab_size": 40, "tgt_vocab_size": 36}),
    "m2m100": (M2M100Config, M2M100ForConditionalGeneration, {"vocab_size": 40}),
    "bart": (BartConfig, BartForConditionalGeneration, {"vocab_size": 40, "activation_function": "gelu"}),
    "mbart": (MBartConfig, MBartForConditionalGeneration, {"vocab_size": 40, "tie_word_embeddings": False}),
}


def write_dictionary(path: Path, tokens: list[str]) -> None:
    path.write_text("".join(f"{token} {1000 - i}\n" for i, token in enumerate(tokens)), encoding="utf-8")


def words(size: int, letter: str) -> list[str]:
    return [f"{letter}{i}" for i in range(size - 4)]


def port_and_checkpoint(name: str, folder: Path, is_old: bool = False):
    """A random port, and the checkpoint and dictionaries that fairseq would have written for it."""
    config_class, model_class, own = PORTS[name]
    model = model_class(config_class(**SIZES | own)).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "embed_positions" not in key or "bart" in name:
                parameter.add_(0.2 * torch.randn_like(parameter))
    weights = {}
    for key, tensor in model.state_dict().items():
        key = key.removeprefix("model.").replace("lm_head", "decoder.output_projection")
        if key not in ("shared.weight", "final_logits_bias"):
            weights[key] = tensor
    if "bart" not in name:
        weights = {key: tensor for key, tensor in weights.items() if "embed_positions" not in key}
        weights |= {f"{stack}.embed_positions._float_tensor": torch.zeros(1) for stack in ("encoder", "decoder")}
    weights |= {f"{stack}.version": torch.tensor([3.0]) for stack in ("encoder", "decoder")}
    arguments = {"arch": "transformer", "source_lang": "xx", "target_lang": "yy", "dropout": 0.1}
    arguments |= {"activation_fn": model.config.activation_function}
    for stack in ("encoder", "decoder"):
        arguments |= {f"{stack}_embed_dim": 16, f"{stack}_ffn_embed_dim": 24, f"{stack}_attention_heads": 2}
        arguments |= {f"{stack}_normalize_before": name in ("m2m100", "mbart"), f"{stack}_learned_pos": "bart" in name}
        arguments |= {f"{stack}_layers": SIZES[f"{stack}_layers"]}
    model_arguments = Namespace(**arguments)
    content = {"args": model_arguments} if is_old else {"args": None, "cfg": {"model": model_arguments, "task": {}}}
    folder.mkdir()
    torch.save(content | {"model": weights, "extra_state": {"epoch": 1}}, folder / "checkpoint_best.pt")
    write_dictionary(folder / "dict.xx.txt", words(40, "a"))
    write_dictionary(folder / "dict.yy.txt", words(36, "b") if name == "fsmt" else words(40, "a"))
    return model


def logits_of(model):
    return lambda source, target: model(input_ids=source, decoder_input_ids=target, use_cache=False).logits


@pytest.mark.parametrize("name", PORTS)
def test_logits_and_greedy_tokens_are_those_of_the_port(name, tmp_path, draw):
    port = port_and_checkpoint(name, tmp_path / "fairseq")
    import_model(tmp_path / "fairseq", tmp_path / "ours")
    ours: Any = load_model_folder(tmp_path / "ours")
    sources = [[*source, 2] for source in draw(4, 40)]
    targets = [[2, *target] for target in draw(4, 36)]
    assert largest_difference(ours, logits_of(port), sources, targets) < 1e-4
    for source in sources:
        tokens = ours.generate(torch.tensor([source]), num_beams=1, max_length=12)
        with torch.no_grad():
            expected = torch.tensor([[2]])
            for _ in range(tokens.shape[1] - 1):
                logits = logits_of(port)(torch.tensor([source]), expected)[:, -1]
                expected = torch.cat([expected, logits.argmax(-1)[:, None]], dim=1)
        assert torch.equal(tokens, expected)


def test_words_are_read_and_written_by_the_dictionaries(tmp_path):
    port_and_checkpoint("fsmt", tmp_path / "fairseq")
    import_model(tmp_path / "fairseq", tmp_path / "ours")
    tokenizer = load_tokenizer(tmp_path / "ours")
    assert tokenizer("a0 a35 b0 </s>")["input_ids"] == [4, 39, 3, 3, 2]
    assert tokenizer(text_target="b0 b31 a0")["input_ids"] == [4, 35, 3, 2]
    assert tokenizer.decode([4, 35, 2], skip_special_tokens=True) == "b0 b31"
    [translation] = Translator.from_pretrained(tmp_path / "ours").translate(["a0 a1"])
    assert all(word.startswith("b") for word in translation.split())


def test_old_checkpoints_have_fused_projections_and_args(tmp_path, draw):
    port = port_and_checkpoint("fsmt", tmp_path / "fairseq", is_old=True)
    path = tmp_path / "fairseq" / "checkpoint_best.pt"
    with torch.serialization.safe_globals([Namespace]):
        content = torch.load(path)
    weights, fused = content["model"], {}
    for key in [key for key in weights if ".q_proj." in key]:
        parts = [weights.pop(key.replace("q_proj", f"{letter}_proj")) for letter in "qkv"]
        fused[key.replace("q_proj.", "in_proj_")] = torch.cat(parts)
    weights["decoder.embed_out"] = weights.pop("decoder.output_projection.weight")
    torch.save(content | {"model": weights | fused}, path)
    import_model(tmp_path / "fairseq", tmp_path / "ours")
    ours, targets = load_model_folder(tmp_path / "ours"), [[2, *target] for target in draw(4, 36)]
    assert largest_difference(ours, logits_of(port), draw(4, 40), targets) < 1e-4


def test_a_sentencepiece_model_beside_the_dictionary_makes_the_tokenizer(tmp_path):
    port_and_checkpoint("m2m100", tmp_path / "fairseq")
    path = train_sentencepiece(tmp_path / "fairseq" / "spm.model", LINES[:1], "bpe", 39)
    processor = sentencepiece.SentencePieceProcessor(str(path))
    pieces = [processor.IdToPiece(i) for i in range(3, processor.GetPieceSize())]
    tokens = [*pieces, *words(40, "z")][:36]
    for language in ("xx", "yy"):
        write_dictionary(tmp_path / "fairseq" / f"dict.{language}.txt", tokens)
    import_model(tmp_path / "fairseq", tmp_path / "ours")
    expected = [tokens.index(piece) + 4 for piece in processor.encode(LINES[0], out_type=str)]
    assert load_tokenizer(tmp_path / "ours")(LINES[0])["input_ids"] == [*expected, 2]


def broken_settings(folder: Path, **changes) -> None:
    path = folder / "checkpoint_best.pt"
    with torch.serialization.safe_globals([Namespace]):
        content = torch.load(path)
    vars(content["cfg"]["model"]).update(changes)
    torch.save(content, path)


BROKEN = {
    "truncated": (
        lambda f: (f / "checkpoint_best.pt").write_bytes((f / "checkpoint_best.pt").read_bytes()[:9000]),
        "is no checkpoint, or it is damaged",
    ),
    "foreign class": (
        lambda f: torch.save({"model": {}, "x": Path.cwd, "y": pytest.approx(1)}, f / "checkpoint_best.pt"),
        "holds an object of ",
    ),
    "no dictionary": (lambda f: (f / "dict.yy.txt").unlink(), r"target_lang='yy': .* has dict\.xx\.txt"),
    "short dictionary": (
        lambda f: write_dictionary(f / "dict.xx.txt", ["a", "b"]),
        "states vocab_size=6, but its weights have vocab_size=40",
    ),
    "damaged dictionary": (
        lambda f: (f / "dict.xx.txt").write_text("one two\n", encoding="utf-8"),
        r"dict\.xx\.txt, line 1: 'one two' is no token with its frequency",
    ),
    "another width": (lambda f: broken_settings(f, encoder_embed_dim=32, decoder_embed_dim=32), "states d_model=32"),
    "two widths": (lambda f: broken_settings(f, encoder_ffn_embed_dim=8), "encoder_ffn_embed_dim=8 and decoder_ffn_e"),
    "other layers": (lambda f: broken_settings(f, adaptive_input=True), "has adaptive_input=True, which a model of"),
    "activation": (lambda f: broken_settings(f, activation_fn="sin"), "activation_fn='sin'; use one of relu"),
    "heads": (
        lambda f: broken_settings(f, encoder_attention_heads=3, decoder_attention_heads=3),
        "num_heads=3 does not divide d_model=16",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_cannot_be_imported_is_one_line(kind, tmp_path):
    port_and_checkpoint("fsmt", tmp_path / "fairseq")
    damage, message = BROKEN[kind]
    damage(tmp_path / "fairseq")
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        import_model(tmp_path / "fairseq", tmp_path / "ours", "fairseq")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "ours").exists()


def test_one_dictionary_with_two_embeddings_is_one_vocabulary(tmp_path):
    port_and_checkpoint("m2m100", tmp_path / "fairseq")
    file = tmp_path / "fairseq" / "checkpoint_best.pt"
    content = torch.load(file, weights_only=False)
    content["model"]["encoder.embed_tokens.weight"] = content["model"]["encoder.embed_tokens.weight"] + 1
    torch.save(content, file)
    config = import_model(tmp_path / "fairseq", tmp_path / "ours").config
    assert not config.share_encoder_decoder_embeddings
    assert config.decoder_vocab_size is None
    Translator.from_pretrained(tmp_path / "ours")
