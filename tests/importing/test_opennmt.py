# SPDX-License-Identifier: Apache-2.0
"""OpenNMT-py's checkpoints and eole's folders. The reference is torch.nn.Transformer with OpenNMT-py's positions."""

import json
import math
import pickle
import sys
from argparse import Namespace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import sentencepiece
import torch
from safetensors.torch import save_file
from torch import nn

from tests.importing.conftest import LINES, largest_difference, train_sentencepiece
from vanilla_transformer.data.tokenizer import load_tokenizer
from vanilla_transformer.importing.checkpoint_file import read_checkpoint
from vanilla_transformer.importing.import_model import import_model
from vanilla_transformer.inference.model_folder import load_model_folder

WIDTH, HEADS, INNER, LAYERS, LENGTH = 16, 2, 24, 2, 40
SPECIAL = ["<unk>", "<blank>", "<s>", "</s>"]
SOURCE = [*SPECIAL, *(f"a{i}" for i in range(36))]
TARGET = [*SPECIAL, *(f"b{i}" for i in range(28))]


# torch.nn.Transformer says that it has no fast path for pre-norm layers.
pytestmark = pytest.mark.filterwarnings("ignore:enable_nested_tensor:UserWarning")


class Reference(nn.Module):
    """`positions` as OpenNMT-py's PositionalEncoding computes them, or learned ones, where embeddings are unscaled."""

    def __init__(self, positions: str, eps: float, has_biases: bool, activation: Any = "relu", shares: str = ""):
        super().__init__()
        rows = [len(SOURCE), len(SOURCE) if shares else len(TARGET)]
        self.src_emb, self.tgt_emb = (nn.Embedding(count, WIDTH) for count in rows)
        self.transformer = nn.Transformer(
            WIDTH,
            HEADS,
            LAYERS,
            LAYERS - 1,
            INNER,
            0.0,
            activation,
            layer_norm_eps=eps,
            batch_first=True,
            norm_first=True,
        )
        self.generator = nn.Linear(WIDTH, rows[1])
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
                if not has_biases and ("in_proj_bias" in name or "out_proj.bias" in name or "linear" in name):
                    parameter.mul_(0.0 if name.endswith("bias") else 1.0)
        if shares:
            self.tgt_emb.weight = self.src_emb.weight
        if "generator" in shares:
            self.generator.weight = self.tgt_emb.weight
        self.scale = 1.0 if positions == "Learned" else math.sqrt(WIDTH)
        place = torch.arange(LENGTH)[:, None]
        if positions == "SinusoidalInterleaved":
            angles = place * torch.exp(torch.arange(0, WIDTH, 2) * -(math.log(10000.0) / WIDTH))
            table = torch.zeros(LENGTH, WIDTH)
            table[:, 0::2], table[:, 1::2] = angles.sin(), angles.cos()
        elif positions == "SinusoidalConcat":
            angles = place * torch.exp(torch.arange(WIDTH // 2) * -(math.log(10000) / (WIDTH // 2 - 1)))
            table = torch.cat([angles.sin(), angles.cos()], dim=1)
        self.tables = nn.ParameterList(
            [table, table.clone()] if self.scale > 1 else [torch.randn(LENGTH, WIDTH) for _ in "st"]
        )

    def forward(self, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        memory_in, decoder_in = (
            self.scale * embedding(ids) + table[: ids.shape[1]]
            for embedding, ids, table in zip((self.src_emb, self.tgt_emb), (source, target), self.tables, strict=True)
        )
        mask = nn.Transformer.generate_square_subsequent_mask(target.shape[1])
        return self.generator(self.transformer(memory_in, decoder_in, tgt_mask=mask, tgt_is_causal=True))

    def renamed(self, names: dict[str, str], has_biases: bool) -> dict[str, torch.Tensor]:
        """Parameters of the layers under a toolkit's names, without biases of zeros."""
        weights = {}
        for name, tensor in self.transformer.state_dict().items():
            parts = [(name, tensor)]
            if "in_proj" in name:
                kinds = ("linear_query", "linear_keys", "linear_values")
                parts = [(name.replace("in_proj_", f"{k}."), t) for k, t in zip(kinds, tensor.chunk(3), strict=True)]
            for part, rows in parts:
                part = part.replace("out_proj", "final_linear").replace("multihead_attn", "context_attn")
                for theirs, own in names.items():
                    part = part.replace(theirs, own)
                if has_biases or part.endswith("weight") or "norm" in part:
                    weights[part] = rows.clone()
        return weights


NORMS = {"encoder.norm": "encoder.layer_norm", "decoder.norm": "decoder.layer_norm"}


def write_opennmt(
    reference: Reference, path: Path, vocab: Any, has_biases: bool, second: bool = False, **settings
) -> None:
    """A checkpoint of version 3, or of the second."""
    weights = {}
    for stack, theirs, norms in (
        ("encoder", "transformer", ("layer_norm", "feed_forward.layer_norm")),
        ("decoder", "transformer_layers", ("layer_norm_1", "layer_norm_2", "feed_forward.layer_norm")),
    ):
        names = NORMS | {f".norm{i}": f".{norm}" for i, norm in enumerate(norms, start=1)}
        names |= {f"{stack}.layers": f"{stack}.{theirs}", "linear1": "feed_forward.w_1", "linear2": "feed_forward.w_2"}
        weights |= {k: v for k, v in reference.renamed(names, has_biases).items() if k.startswith(stack)}
    for stack, embedding, table in zip(
        ("encoder", "decoder"), (reference.src_emb, reference.tgt_emb), reference.tables, strict=True
    ):
        weights[f"{stack}.embeddings.make_embedding.emb_luts.0.weight"] = embedding.weight.data
        weights[f"{stack}.embeddings.make_embedding.pe.pe"] = table.data[:, None]
    generator = {f"{'0.' * second}{name}": tensor for name, tensor in reference.generator.state_dict().items()}
    opt = {"encoder_type": "transformer", "decoder_type": "transformer", "heads": HEADS, "transformer_ff": INNER}
    opt |= {"enc_layers": LAYERS, "dec_layers": LAYERS - 1, "rnn_size" if second else "hidden_size": WIDTH}
    opt |= {"position_encoding": True, "dropout": [0.2], "max_relative_positions": 0, "copy_attn": False}
    content = {
        "model": weights,
        "generator": generator,
        "vocab": vocab,
        "opt": Namespace(**opt | settings),
        "optim": {},
    }
    torch.save(content, path)


def write_eole(reference: Reference, folder: Path, has_biases: bool, shares: bool = False, **settings) -> None:
    folder.mkdir()
    names = NORMS | {"layers": "transformer_layers", "linear1": "mlp.gate_up_proj", "linear2": "mlp.down_proj"}
    names |= {".norm1": ".input_layernorm"}
    weights = {}
    for stack, norms in (
        ("encoder", {".norm2": ".post_attention_layernorm"}),
        ("decoder", {".norm2": ".precontext_layernorm", ".norm3": ".post_attention_layernorm"}),
    ):
        weights |= {k: v for k, v in reference.renamed(names | norms, has_biases).items() if k.startswith(stack)}
    weights["decoder.transformer_layers.0.layer_scalar"] = torch.ones(1)
    weights["src_emb.embeddings.weight"] = reference.src_emb.weight.data
    if not shares:
        weights["tgt_emb.embeddings.weight"] = reference.tgt_emb.weight.data
    for side, table in zip(("src", "tgt"), reference.tables, strict=True):
        name = f"{side}_emb.pe.weight" if reference.scale == 1.0 else f"{side}_emb.pe.pe"
        weights[name] = table.data.clone() if reference.scale == 1.0 else table.data[:, None].clone()
    weights |= {f"generator.{name}": tensor for name, tensor in reference.generator.state_dict().items()}
    if reference.generator.weight is reference.tgt_emb.weight:
        del weights["generator.weight"]
    save_file(weights, folder / "model.00.safetensors")
    stacks = {"encoder": {"layers": LAYERS, "encoder_type": "transformer"}, "decoder": {"layers": LAYERS - 1}}
    model = {"architecture": "transformer", "heads": HEADS, "hidden_size": WIDTH, "transformer_ff": INNER}
    model |= stacks | {"share_embeddings": shares, "word_vec_size": -1} | settings
    config = {"model": model, "training": {"dropout": [0.3], "attention_dropout": [0.1]}, "share_vocab": shares}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    vocab = {"src": SOURCE, "tgt": SOURCE if shares else TARGET, "decoder_start_token": "<s>"}
    (folder / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")


def assert_same(reference: Reference, folder: Path, draw) -> Any:
    """Logits and greedy tokens, from the first token `<s>`; sources have no end."""
    ours: Any = load_model_folder(folder)
    rows = reference.generator.out_features
    sources, targets = draw(4, len(SOURCE)), [[2, *target] for target in draw(4, rows)]
    assert largest_difference(ours, reference, sources, targets) < 1e-4
    for source in sources:
        tokens = ours.generate(torch.tensor([source]), num_beams=1, max_length=12)
        with torch.no_grad():
            expected = torch.tensor([[2]])
            while expected.shape[1] < tokens.shape[1]:
                next_token = reference(torch.tensor([source]), expected)[:, -1].argmax(-1)
                expected = torch.cat([expected, next_token[:, None]], dim=1)
        assert torch.equal(tokens, expected)
    return ours


@pytest.mark.parametrize("positions", ["SinusoidalInterleaved", "SinusoidalConcat"])
@pytest.mark.parametrize("has_biases", [True, False])
def test_opennmt_has_the_logits_and_greedy_tokens_of_the_reference(positions, has_biases, tmp_path, draw):
    reference = Reference(positions, 1e-6, has_biases).eval()
    vocab = {"src": SOURCE, "tgt": TARGET, "data_task": "seq2seq", "decoder_start_token": "<s>"}
    write_opennmt(reference, tmp_path / "m.pt", vocab, has_biases, position_encoding_type=positions)
    import_model(tmp_path / "m.pt", tmp_path / "ours")
    config = assert_same(reference, tmp_path / "ours", draw).config
    assert (config.attention_bias, config.projection_bias, config.dropout) == (has_biases, True, 0.2)
    assert (config.layer_norm_eps, config.pad_token_id, config.bos_token_id, config.eos_token_id) == (1e-6, 1, 2, 3)


def test_opennmt_may_have_its_weights_in_safetensors(tmp_path, draw):
    reference = Reference("SinusoidalInterleaved", 1e-6, True).eval()
    write_opennmt(reference, tmp_path / "m.pt", {"src": SOURCE, "tgt": TARGET}, True)
    content = read_checkpoint(tmp_path / "m.pt")
    weights = content.pop("model") | {f"generator.{name}": row for name, row in content.pop("generator").items()}
    save_file(weights, tmp_path / "m.safetensors")
    torch.save(content | {"opt": Namespace(**vars(content["opt"]))}, tmp_path / "m.pt")
    import_model(tmp_path / "m.pt", tmp_path / "ours")
    assert_same(reference, tmp_path / "ours", draw)


@pytest.mark.parametrize("shares", [True, False])
def test_version_2_has_torchtext_fields_whose_source_may_lack_the_ends(shares, tmp_path, draw, monkeypatch):
    """The classes are torchtext's by name alone; two vocabularies have their own ids."""
    classes = {}
    for name in ("torchtext.vocab.Vocab", "torchtext.data.field.Field", "onmt.inputters.text_dataset.TextMultiField"):
        module, _, kind = name.rpartition(".")
        classes[kind] = type(kind, (), {"__module__": module})
        for parent in (module.rsplit(".", depth)[0] for depth in range(module.count(".") + 1)):
            monkeypatch.setitem(sys.modules, parent, ModuleType(parent))
        setattr(sys.modules[module], kind, classes[kind])

    def instance(kind: str, **state: Any) -> Any:
        made = classes[kind]()
        made.__dict__.update(state)
        return made

    source = SOURCE if shares else [*SPECIAL[:2], *SOURCE[4:], "x", "y"]
    vocab = {}
    for side, tokens in (("src", source), ("tgt", SOURCE if shares else TARGET)):
        field = instance("Field", vocab=instance("Vocab", itos=tokens, stoi={}), pad_token="<blank>")
        vocab[side] = instance("TextMultiField", fields=[(side, field)])
    reference = Reference("SinusoidalInterleaved", 1e-6, True, shares="all and generator" if shares else "").eval()
    write_opennmt(reference, tmp_path / "m.pt", vocab, True, second=True)
    import_model(tmp_path / "m.pt", tmp_path / "ours")
    config = assert_same(reference, tmp_path / "ours", draw).config
    assert (config.share_encoder_decoder_embeddings, config.tie_word_embeddings) == (shares, shares)
    tokenizer = load_tokenizer(tmp_path / "ours")
    assert tokenizer("a0 a1")["input_ids"] == [source.index("a0"), source.index("a1")]


@pytest.mark.parametrize("has_biases", [True, False])
@pytest.mark.parametrize("shares", ["", "all", "all and generator"])
def test_eole_has_the_logits_and_greedy_tokens_of_the_reference(shares, has_biases, tmp_path, draw):
    reference = Reference("SinusoidalConcat", 1e-5, has_biases, nn.functional.silu, shares).eval()
    settings = {"embeddings": {"position_encoding_type": "SinusoidalConcat"}, "mlp_activation_fn": "silu"}
    write_eole(reference, tmp_path / "eole", has_biases, bool(shares), norm_eps=1e-5, **settings)
    import_model(tmp_path / "eole", tmp_path / "ours")
    config = assert_same(reference, tmp_path / "ours", draw).config
    assert (config.share_encoder_decoder_embeddings, config.tie_word_embeddings) == (bool(shares), "gen" in shares)
    assert (config.dropout, config.attention_dropout, config.activation_dropout) == (0.3, 0.1, 0.3)


def test_eole_with_learned_positions_does_not_scale_embeddings(tmp_path, draw):
    reference = Reference("Learned", 1e-5, True).eval()
    positions = {"position_encoding_type": "Learned", "n_positions": LENGTH, "position_shift": 0}
    write_eole(reference, tmp_path / "eole", True, norm_eps=1e-5, embeddings=positions)
    import_model(tmp_path / "eole", tmp_path / "ours")
    assert assert_same(reference, tmp_path / "ours", draw).config.position_embedding == "learned"


@pytest.mark.parametrize(
    ("encoder", "eps"), [({}, 1e-6), ({"n_positions": None, "rope_config": None}, 1e-6), ({"n_positions": None}, 1e-5)]
)
def test_eole_has_another_default_of_epsilon_since_version_0_2(encoder, eps, tmp_path):
    """Configs of versions 0.0.1, 0.1.0 and 0.2.0 save these settings of an encoder; none saves the default."""
    write_eole(Reference("SinusoidalInterleaved", eps, True), tmp_path / "eole", True, encoder=encoder)
    assert import_model(tmp_path / "eole", tmp_path / "ours").config.layer_norm_eps == eps


def test_a_source_has_no_end_and_a_target_has_its_own(tmp_path):
    write_eole(Reference("SinusoidalInterleaved", 1e-5, True, shares="all"), tmp_path / "eole", True, True)
    import_model(tmp_path / "eole", tmp_path / "ours")
    tokenizer = load_tokenizer(tmp_path / "ours")
    assert tokenizer("a0 b0 </s>")["input_ids"] == [4, 0, 0]
    assert tokenizer(text_target="a0 a1")["input_ids"] == [4, 5, 3]
    assert tokenizer.decode([2, 4, 5, 3], skip_special_tokens=True) == "a0 a1"


@pytest.mark.parametrize("is_named", [True, False])
def test_the_subword_model_that_transforms_name_or_that_lies_beside_makes_the_tokenizer(is_named, tmp_path):
    path = train_sentencepiece(tmp_path / "any.model", LINES[:1], "bpe", 39)
    processor = sentencepiece.SentencePieceProcessor(str(path))
    pieces = [processor.IdToPiece(i) for i in range(3, processor.GetPieceSize())]
    tokens = [*SPECIAL, *pieces, *SOURCE[4:]][: len(SOURCE)]
    folder = tmp_path / ("elsewhere" if is_named else "beside")
    folder.mkdir()
    named = {"transforms": ["sentencepiece"], "src_subword_model": str(path)} if is_named else {}
    if not is_named:
        path.rename(folder / "any.model")
    reference = Reference("SinusoidalInterleaved", 1e-6, True, shares="all")
    write_opennmt(reference, folder / "m.pt", {"src": tokens, "tgt": tokens}, True, **named)
    import_model(folder / "m.pt", tmp_path / "ours")
    expected = [tokens.index(piece) for piece in processor.encode(LINES[0], out_type=str)]
    tokenizer = load_tokenizer(tmp_path / "ours")
    assert tokenizer(LINES[0])["input_ids"] == expected
    assert tokenizer(text_target=LINES[0])["input_ids"] == [*expected, 3]
    assert tokenizer.decode(expected) == LINES[0]


def test_bpe_codes_beside_a_checkpoint_make_the_tokenizer(tmp_path):
    tokens = [*SPECIAL, "lo@@", "w", "l@@", "o@@", *SOURCE[4:]][: len(SOURCE)]
    (tmp_path / "bpe.codes").write_text("#version: 0.2\nl o\n", encoding="utf-8")
    reference = Reference("SinusoidalInterleaved", 1e-6, True, shares="all")
    write_opennmt(reference, tmp_path / "m.pt", {"src": tokens, "tgt": tokens}, True)
    import_model(tmp_path / "m.pt", tmp_path / "ours")
    assert load_tokenizer(tmp_path / "ours")("low")["input_ids"] == [4, 5]


def change(folder: Path, *place: str, value: Any) -> None:
    """Change a setting of config.json, or an entry of vocab.json."""
    path = folder / ("vocab.json" if place[0] in ("src", "tgt", "decoder_start_token") else "config.json")
    content = json.loads(path.read_text(encoding="utf-8"))
    inner = content
    for name in place[:-1]:
        inner = inner.setdefault(name, {})
    inner[place[-1]] = value
    path.write_text(json.dumps(content), encoding="utf-8")


def change_weights(folder: Path, **changes: torch.Tensor | None) -> None:
    weights = read_checkpoint(folder / "model.00.safetensors") | changes
    save_file({k: v for k, v in weights.items() if v is not None}, folder / "model.00.safetensors")


W = "model.00.safetensors"
FIRST = "encoder.transformer_layers.0"
BROKEN_EOLE = {
    "truncated": (lambda f: (f / W).write_bytes((f / W).read_bytes()[:900]), "is damaged"),
    "no weights": (lambda f: (f / W).unlink(), "has no weights, model.00.safetensors"),
    "no vocabulary": (lambda f: (f / "vocab.json").unlink(), "vocab.json does not exist"),
    "damaged": (lambda f: (f / "vocab.json").write_text("{", encoding="utf-8"), "is no JSON, or it is damaged"),
    "gated": (
        lambda f: change_weights(f, **{f"{FIRST}.mlp.up_proj.weight": torch.zeros(INNER, WIDTH)}),
        r"parameter encoder.transformer_layers.0.mlp.up_proj.weight \(24, 16\), which is no part",
    ),
    "scaled layer": (
        lambda f: change_weights(f, **{"decoder.transformer_layers.0.layer_scalar": torch.full((1,), 0.5)}),
        r"layer_scalar=\[0.5\]; only 1",
    ),
    "missing": (
        lambda f: change_weights(f, **{f"{FIRST}.self_attn.final_linear.weight": None}),
        "has no weights for model.encoder.layers.0.self_attention.out_proj",
    ),
    "rotary": (
        lambda f: change(f, "model", "embeddings", "position_encoding_type", value="Rotary"),
        "position_encoding_type='Rotary'; only SinusoidalInterleaved, SinusoidalConcat, Learned",
    ),
    "RMSNorm": (lambda f: change(f, "model", "layer_norm", value="rms"), "has layer_norm='rms', which"),
    "key heads": (lambda f: change(f, "model", "heads_kv", value=1), "has heads_kv=1, which"),
    "experts": (lambda f: change(f, "model", "decoder", "num_experts", value=4), "has num_experts=4, which"),
    "RNN": (lambda f: change(f, "model", "encoder", "encoder_type", value="brnn"), "has encoder_type='brnn'"),
    "activation": (
        lambda f: change(f, "model", "mlp_activation_fn", value="gated-silu"),
        "mlp_activation_fn='gated-silu'; only relu, gelu",
    ),
    "two heads": (
        lambda f: change(f, "model", "decoder", "heads", value=4),
        "heads=2 in its encoder and 4 in its decoder; both must be one",
    ),
    "heads": (lambda f: change(f, "model", "heads", value=3), "num_heads=3 does not divide d_model=16"),
    "width": (
        lambda f: change(f, "model", "hidden_size", value=32),
        "states d_model=32, but its weights have d_model=16",
    ),
    "short vocabulary": (lambda f: change(f, "src", value=SOURCE[:9]), "states vocab_size=9"),
    "twice": (lambda f: change(f, "src", value=[*SOURCE[:-1], "a0"]), "has a token twice in its vocabulary 'src'"),
    "no padding": (lambda f: change(f, "tgt", value=["<unk>", "x", *TARGET[2:]]), "has no token '<blank>'"),
    "two ids": (
        lambda f: change(f, "tgt", value=[*TARGET[1::-1], *TARGET[2:]]),
        "has '<blank>' as token 1 of its source and 0 of its target",
    ),
    "start": (lambda f: change(f, "decoder_start_token", value="de"), "begins its target with 'de', which is no token"),
    "subwords": (
        lambda f: (
            change(f, "transforms", value=["sentencepiece"])
            or change(f, "transforms_configs", "sentencepiece", "src_subword_model", value="/gone/x.model")
        ),
        "names the subword model /gone/x.model; put it into",
    ),
    "several": (
        lambda f: [(f / name).write_bytes(b"") for name in ("x.model", "y.model")],
        "has x.model, y.model; leave one, or name them source.model and target.model",
    ),
}


@pytest.mark.parametrize("kind", BROKEN_EOLE)
def test_what_cannot_be_imported_from_eole_is_one_line(kind, tmp_path):
    write_eole(Reference("SinusoidalInterleaved", 1e-5, True), tmp_path / "eole", True)
    damage, message = BROKEN_EOLE[kind]
    damage(tmp_path / "eole")
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        import_model(tmp_path / "eole", tmp_path / "ours", "eole")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "ours").exists()


BROKEN_OPENNMT = {
    "relative positions": ({"max_relative_positions": 20}, {}, "has max_relative_positions=20, which"),
    "no positions": ({"position_encoding": False}, {}, "has position_encoding_type=None; only Sinusoidal"),
    "copy attention": ({"copy_attn": True}, {}, "has copy_attn=True, which"),
    "average attention": ({"self_attn_type": "average"}, {}, "has self_attn_type='average', which"),
    "language model": ({"model_task": "lm"}, {}, "has model_task='lm', which"),
    "features": ({}, {"src_feats": [["<unk>", "NOUN"]]}, "has features beside the words"),
    "no tokens": ({}, {"src": None}, "has no list of tokens 'src'"),
}


@pytest.mark.parametrize("kind", BROKEN_OPENNMT)
def test_what_cannot_be_imported_from_opennmt_is_one_line(kind, tmp_path):
    settings, vocab, message = BROKEN_OPENNMT[kind]
    reference = Reference("SinusoidalInterleaved", 1e-6, True)
    write_opennmt(reference, tmp_path / "m.pt", {"src": SOURCE, "tgt": TARGET} | vocab, True, **settings)
    with pytest.raises(ValueError, match=message) as error:
        import_model(tmp_path / "m.pt", tmp_path / "ours")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"vocab": {}, "weights": {}}, "has no entries 'vocab' and 'opt'"),
        ({"opt": pickle.Unpickler, "vocab": {}}, "holds an object of _?pickle.Unpickler"),
    ],
)
def test_another_file_is_no_checkpoint_of_opennmt(content, message, tmp_path):
    torch.save(content, tmp_path / "m.pt")
    with pytest.raises(ValueError, match=message):
        import_model(tmp_path / "m.pt", tmp_path / "ours", "opennmt")
