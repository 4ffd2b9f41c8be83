# SPDX-License-Identifier: Apache-2.0
"""JoeyNMT's folders. The references are its formulas, written here under the names of its parameters."""

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
import yaml
from torch import nn
from torch.nn import functional

from tests.importing.conftest import LINES, largest_difference, train_sentencepiece
from vanilla_transformer import RNNSeq2SeqForConditionalGeneration
from vanilla_transformer.data.tokenizer import load_tokenizer
from vanilla_transformer.generation import beam_search
from vanilla_transformer.importing.import_model import import_model
from vanilla_transformer.inference.model_folder import load_model_folder

SOURCE_SIZE, TARGET_SIZE, BOS, EOS = 40, 36, 2, 3
SPECIAL = ["<unk>", "<pad>", "<s>", "</s>"]


def module(**children: nn.Module) -> nn.ModuleDict:
    return nn.ModuleDict(children)


class Model(nn.Module):
    """The embeddings, tied as config.yaml says; `forward(source, target)` gives logits of one sentence."""

    def __init__(self, settings: dict[str, Any]):
        super().__init__()
        self.settings = settings
        widths = [settings[stack]["embeddings"]["embedding_dim"] for stack in ("encoder", "decoder")]
        self.src_embed = module(lut=nn.Embedding(SOURCE_SIZE, widths[0], padding_idx=1))
        self.trg_embed = self.src_embed
        if not settings.get("tied_embeddings"):
            self.trg_embed = module(lut=nn.Embedding(TARGET_SIZE, widths[1], padding_idx=1))

    def head(self, width: int) -> nn.Linear:
        embedding = self.trg_embed["lut"].weight
        head = nn.Linear(width, len(embedding), bias=False)
        if self.settings.get("tied_softmax"):
            head.weight = embedding
        return head

    def embedded(self, stack: str, tokens: torch.Tensor) -> torch.Tensor:
        owner = "encoder" if self.settings.get("tied_embeddings") else stack
        vectors = (self.src_embed if stack == "encoder" else self.trg_embed)["lut"](tokens)
        scale = self.settings[owner]["embeddings"].get("scale", False)
        return vectors * math.sqrt(vectors.shape[-1]) if scale else vectors


class Transformer(Model):
    """Pre- or post-norm layers with interleaved sinusoids; the last LayerNorms only with pre-norm."""

    def __init__(self, settings: dict[str, Any]):
        super().__init__(settings)
        width, self.is_pre = settings["encoder"]["hidden_size"], settings["encoder"]["layer_norm"] == "pre"

        def norm() -> nn.LayerNorm:
            return nn.LayerNorm(width, eps=1e-6)

        def attention() -> nn.ModuleDict:
            names = ("k_layer", "v_layer", "q_layer", "output_layer")
            return module(**{name: nn.Linear(width, width) for name in names})

        def feed_forward() -> nn.ModuleDict:
            inner = settings["encoder"]["ff_size"]
            activation = {"relu": nn.ReLU, "gelu": nn.GELU, "swish": nn.SiLU}[settings["encoder"]["activation"]]()
            layers = (nn.Linear(width, inner), activation, nn.Identity(), nn.Linear(inner, width), nn.Identity())
            return module(layer_norm=norm(), pwff_layer=nn.Sequential(*layers))

        encoder = [
            module(src_src_att=attention(), layer_norm=norm(), feed_forward=feed_forward())
            for _ in range(settings["encoder"]["num_layers"])
        ]
        decoder = [
            module(
                **{name: attention() for name in ("trg_trg_att", "src_trg_att")},
                **{name: norm() for name in ("x_layer_norm", "dec_layer_norm")},
                feed_forward=feed_forward(),
            )
            for _ in range(settings["decoder"]["num_layers"])
        ]
        last = {"layer_norm": norm()} if self.is_pre else {}
        self.encoder = module(layers=nn.ModuleList(encoder), **last)
        self.decoder = module(layers=nn.ModuleList(decoder), output_layer=self.head(width), **last)
        self.encoder["pe"] = module()
        self.encoder["pe"].register_buffer("pe", torch.zeros(1, 50, width))

    def positions(self, vectors: torch.Tensor) -> torch.Tensor:
        _, length, width = vectors.shape
        angles = [[p / 10000 ** (2 * (i // 2) / width) for i in range(width)] for p in range(length)]
        rows = [[(math.sin, math.cos)[i % 2](angle) for i, angle in enumerate(row)] for row in angles]
        return vectors + torch.tensor(rows)

    def attend(self, parts: nn.ModuleDict, query: torch.Tensor, memory: torch.Tensor, is_causal: bool = False):
        heads = self.settings["encoder"]["num_heads"]
        inputs = (("q_layer", query), ("k_layer", memory), ("v_layer", memory))
        q, k, v = (parts[name](x).unflatten(-1, (heads, -1)).transpose(1, 2) for name, x in inputs)
        context = functional.scaled_dot_product_attention(q, k, v, is_causal=is_causal)
        return parts["output_layer"](context.transpose(1, 2).flatten(-2))

    def around(self, norm: nn.Module, x: torch.Tensor, sublayer) -> torch.Tensor:
        return x + sublayer(norm(x)) if self.is_pre else norm(x + sublayer(x))

    def forward(self, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        memory = self.positions(self.embedded("encoder", source))
        for layer in self.encoder["layers"]:
            memory = self.around(layer["layer_norm"], memory, lambda x: self.attend(layer["src_src_att"], x, x))  # noqa: B023 -- called at once
            memory = self.around(layer["feed_forward"]["layer_norm"], memory, layer["feed_forward"]["pwff_layer"])
        memory = self.encoder["layer_norm"](memory) if self.is_pre else memory
        x = self.positions(self.embedded("decoder", target))
        for layer in self.decoder["layers"]:
            x = self.around(layer["x_layer_norm"], x, lambda x: self.attend(layer["trg_trg_att"], x, x, True))  # noqa: B023 -- called at once
            x = self.around(layer["dec_layer_norm"], x, lambda x: self.attend(layer["src_trg_att"], x, memory))  # noqa: B023 -- called at once
            x = self.around(layer["feed_forward"]["layer_norm"], x, layer["feed_forward"]["pwff_layer"])
        return self.decoder["output_layer"](self.decoder["layer_norm"](x) if self.is_pre else x)


class Recurrent(Model):
    """torch's GRU or LSTM of several layers on both sides, and the attentional vector from the new top state."""

    def __init__(self, settings: dict[str, Any]):
        encoder, decoder = settings["encoder"], settings["decoder"]
        width, memory = decoder["hidden_size"], 2 * encoder["hidden_size"]
        super().__init__(settings)
        kind = {"gru": nn.GRU, "lstm": nn.LSTM}[encoder["rnn_type"]]
        sizes = [stack["embeddings"]["embedding_dim"] for stack in (encoder, decoder)]
        fed = width if decoder["input_feeding"] else 0
        self.encoder = module(
            rnn=kind(sizes[0], encoder["hidden_size"], encoder["num_layers"], batch_first=True, bidirectional=True)
        )
        attention = {"key_layer": nn.Linear(memory, width, bias=False)}
        if decoder["attention"] == "bahdanau":
            attention["query_layer"] = nn.Linear(width, width, bias=False)
            attention["energy_layer"] = nn.Linear(width, 1, bias=False)
        self.decoder = module(
            rnn=kind(sizes[1] + fed, width, decoder["num_layers"], batch_first=True),
            att_vector_layer=nn.Linear(width + memory, width),
            output_layer=self.head(width),
            attention=module(**attention),
            **({"bridge_layer": nn.Linear(memory, width)} if decoder["init_hidden"] == "bridge" else {}),
        )

    def first_state(self, final: torch.Tensor) -> torch.Tensor:
        settings = self.settings["decoder"]
        width, start = settings["hidden_size"], settings["init_hidden"]
        if start == "bridge":
            state = torch.tanh(self.decoder["bridge_layer"](final))
        elif start == "last":
            state = final[:, :width] if final.shape[1] == 2 * width else final
        else:
            state = torch.zeros(1, width)
        return state[None].repeat(settings["num_layers"], 1, 1)

    def attend(self, query: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        parts = self.decoder["attention"]
        keys = parts["key_layer"](values)
        if "energy_layer" in parts:
            scores = parts["energy_layer"](torch.tanh(parts["query_layer"](query) + keys)).transpose(1, 2)
        else:
            scores = query @ keys.transpose(1, 2)
        return scores.softmax(-1) @ values

    def forward(self, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        values, final = self.encoder["rnn"](self.embedded("encoder", source))
        is_lstm = isinstance(final, tuple)
        final = final[0] if is_lstm else final
        state: Any = self.first_state(torch.cat([final[-2], final[-1]], dim=-1))
        state = (state, state) if is_lstm else state
        vector, vectors = torch.zeros(1, 1, self.settings["decoder"]["hidden_size"]), []
        for x in self.embedded("decoder", target).split(1, dim=1):
            x = torch.cat([x, vector], dim=-1) if self.settings["decoder"]["input_feeding"] else x
            query, state = self.decoder["rnn"](x, state)
            context = self.attend(query, values)
            vector = torch.tanh(self.decoder["att_vector_layer"](torch.cat([query, context], dim=-1)))
            vectors.append(vector)
        return self.decoder["output_layer"](torch.cat(vectors, dim=1))


def transformer(**changes: Any) -> dict[str, Any]:
    stack = {"type": "transformer", "num_heads": 2, "hidden_size": 16, "ff_size": 24, "num_layers": 2}
    stack |= {"embeddings": {"embedding_dim": 16, "scale": True}, "layer_norm": "post", "activation": "relu"} | changes
    return {"encoder": stack, "decoder": stack | {"num_layers": 1, "freeze": True}}


def recurrent(encoder: int, decoder: int, sizes: tuple[int, int], depths: tuple[int, int], **changes: Any):
    first = {"type": "recurrent", "rnn_type": "gru", "bidirectional": True}
    last = first | {"attention": "bahdanau", "input_feeding": True, "init_hidden": "bridge"}
    return {
        stack: kind
        | {"hidden_size": width, "num_layers": depth, "embeddings": {"embedding_dim": size, "scale": size == 5}}
        | {name: value for name, value in changes.items() if name in kind}
        for stack, kind, width, depth, size in zip(
            ("encoder", "decoder"), (first, last), (encoder, decoder), depths, sizes, strict=True
        )
    }


MODELS: dict[str, dict[str, Any]] = {
    "post-norm": transformer() | {"tied_softmax": True},
    "pre-norm": transformer(layer_norm="pre", activation="swish"),
    "one vocabulary": transformer(layer_norm="pre", activation="gelu")
    | {"tied_softmax": True, "tied_embeddings": True},
    "narrow embeddings": recurrent(8, 12, (5, 6), (2, 2)),
    "wide embeddings": recurrent(6, 4, (5, 10), (1, 3), rnn_type="lstm", attention="luong"),
    "the forward state": recurrent(6, 6, (6, 6), (2, 2), rnn_type="lstm", init_hidden="last") | {"tied_softmax": True},
    "both last states": recurrent(3, 6, (6, 7), (1, 1), init_hidden="last", attention="luong"),
    "from zeros, no feeding": recurrent(4, 6, (5, 5), (2, 1), init_hidden="zero", input_feeding=False),
}


def write(name: str, folder: Path, data: dict[str, Any] | None = None, **sections: Any) -> Model:
    """A random model, and the folder that JoeyNMT would have written for it."""
    settings = MODELS[name]
    kind = Transformer if settings["encoder"]["type"] == "transformer" else Recurrent
    model = kind(settings).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    folder.mkdir()
    torch.save({"model_state": model.state_dict(), "stats_state": {"steps": 7}}, folder / "7.ckpt")
    shutil.copy(folder / "7.ckpt", folder / "best.ckpt")
    side = {"level": "word", "max_length": 50} | (data or {})
    config = {
        "model": settings,
        "data": {"src": side | {"lang": "xx"}, "trg": side | {"lang": "yy"}},
        "training": {"label_smoothing": 0.1},
        "testing": {"beam_size": 5, "beam_alpha": 1.0, "max_output_length": 12},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config | sections), encoding="utf-8")
    write_vocabulary(folder / "src_vocab.txt", [*SPECIAL, *(f"a{i}" for i in range(SOURCE_SIZE - 4))])
    shared = settings.get("tied_embeddings")
    letter, size = ("a", SOURCE_SIZE) if shared else ("b", TARGET_SIZE)
    write_vocabulary(folder / "trg_vocab.txt", [*SPECIAL, *(f"{letter}{i}" for i in range(size - 4))])
    return model


def write_vocabulary(path: Path, tokens: list[str]) -> None:
    path.write_text("".join(f"{token}\n" for token in tokens), encoding="utf-8")


@torch.no_grad()
def greedy(model: Model, source: list[int]) -> list[int]:
    """JoeyNMT's greedy search: neither padding nor the start, and no end at once."""
    tokens = [BOS]
    while len(tokens) <= 12 and tokens[-1] != EOS:
        logits = model(torch.tensor([source]), torch.tensor([tokens]))[0, -1]
        logits[[1, BOS, *([EOS] if len(tokens) == 1 else [])]] = -math.inf
        tokens.append(int(logits.argmax()))
    return tokens


@pytest.mark.parametrize("name", MODELS)
def test_logits_and_greedy_tokens_are_those_of_the_formulas(name, tmp_path, draw):
    model = write(name, tmp_path / "joey")
    import_model(tmp_path / "joey", tmp_path / "ours")
    ours: Any = load_model_folder(tmp_path / "ours")
    assert isinstance(ours, RNNSeq2SeqForConditionalGeneration) == isinstance(model, Recurrent)
    sources = [[*source, EOS] for source in draw(4, SOURCE_SIZE)]
    assert largest_difference(ours, model, sources, [[BOS, *target] for target in draw(4, TARGET_SIZE)]) < 1e-4
    for source in sources:
        expected = greedy(model, source)
        assert ours.generate(torch.tensor([source]), num_beams=1)[0].tolist() == expected
        assert ours.generate(torch.tensor([source]), num_beams=1, custom_generate=beam_search)[0].tolist() == expected


def test_widening_by_zeros_outlives_an_update(tmp_path):
    model = write("narrow embeddings", tmp_path / "joey")
    import_model(tmp_path / "joey", tmp_path / "ours")
    ours: Any = load_model_folder(tmp_path / "ours")
    optimizer = torch.optim.Adam(ours.parameters(), lr=0.1)
    ours(input_ids=torch.tensor([[5, 6, 3]]), labels=torch.tensor([[7, 3]])).loss.backward()
    optimizer.step()
    [width, ours_width] = model.src_embed["lut"].weight.shape[1], ours.config.embedding_size
    changed = ours.model.encoder.embed_tokens.weight
    assert ours_width == 12
    assert changed[5, :width].ne(0).all()
    assert not changed[:, width:].any()


def test_settings_of_training_and_search_come_along(tmp_path):
    write("pre-norm", tmp_path / "joey")
    ours = import_model(tmp_path / "joey" / "7.ckpt", tmp_path / "ours")
    assert (ours.config.label_smoothing, ours.config.final_layer_norm) == (0.1, True)
    generation = ours.generation_config
    assert (generation.num_beams, generation.alpha, generation.max_new_tokens) == (5, 1.0, 12)


def test_words_are_read_and_written_by_the_vocabularies(tmp_path):
    write("pre-norm", tmp_path / "joey", {"lowercase": True, "normalize": True})
    import_model(tmp_path / "joey", tmp_path / "ours")
    tokenizer = load_tokenizer(tmp_path / "ours")
    assert tokenizer(" A0\u3000 Ａ35 b0 </s> ")["input_ids"] == [4, 39, 0, 0, EOS]
    assert tokenizer(text_target="b0 B31")["input_ids"] == [4, 35, EOS]
    assert tokenizer.decode([4, 35, EOS], skip_special_tokens=True) == "b0 b31"


def test_characters_with_a_sign_for_the_space(tmp_path):
    write("post-norm", tmp_path / "joey", {"level": "char"})
    for side, size in (("src", SOURCE_SIZE), ("trg", TARGET_SIZE)):
        write_vocabulary(
            tmp_path / "joey" / f"{side}_vocab.txt", [*SPECIAL, *"▁abcdefghijklmnopqrstuvwxyz0123456789"][:size]
        )
    import_model(tmp_path / "joey", tmp_path / "ours")
    tokenizer = load_tokenizer(tmp_path / "ours")
    assert tokenizer("ab c?<s>")["input_ids"] == [5, 6, 4, 7, 0, 0, 23, 0, EOS]
    assert tokenizer.decode([5, 6, 4, 7, EOS], skip_special_tokens=True) == "ab c"


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_sentencepiece_reads_pieces_that_the_vocabulary_lacks_as_smaller_ones(kind, tmp_path):
    write("one vocabulary", tmp_path / "joey", {"level": "bpe", "tokenizer_cfg": {"model_file": "/elsewhere/sp.model"}})
    path = train_sentencepiece(tmp_path / "joey" / "sp.model", LINES[:1], kind, 39)
    processor = sentencepiece.SentencePieceProcessor(str(path))
    pieces = [processor.IdToPiece(i) for i in range(3, processor.GetPieceSize())]
    used = processor.encode(LINES[0], out_type=str)
    lacking = max((piece for piece in pieces if piece in used), key=len)
    assert len(lacking) > 1
    pieces = [piece for piece in pieces if lacking not in piece]
    tokens = [*SPECIAL, *pieces, *(f"z{i}" for i in range(40))][:SOURCE_SIZE]
    for side in ("src", "trg"):
        write_vocabulary(tmp_path / "joey" / f"{side}_vocab.txt", tokens)
    import_model(tmp_path / "joey", tmp_path / "ours")
    ids = load_tokenizer(tmp_path / "ours")(LINES[0])["input_ids"]
    assert 0 not in ids
    assert "".join(tokens[index] for index in ids) == "▁" + LINES[0].replace(" ", "▁") + "</s>"


def change(folder: Path, section: str, part: str | None = None, **changes: Any) -> None:
    path = folder / "config.yaml"
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    (config[section][part] if part else config[section]).update(changes)
    path.write_text(yaml.safe_dump(config), encoding="utf-8")


BROKEN = {
    "truncated": (
        lambda f: (f / "best.ckpt").write_bytes((f / "best.ckpt").read_bytes()[:9000]),
        "is no checkpoint, or it is damaged",
    ),
    "foreign class": (
        lambda f: torch.save({"model_state": {}, "x": pytest.approx(1)}, f / "best.ckpt"),
        "holds an object of ",
    ),
    "another content": (lambda f: torch.save({"weights": {}}, f / "best.ckpt"), "it has no entry 'model_state'"),
    "no checkpoint": (lambda f: [path.unlink() for path in f.glob("*.ckpt")], "has no checkpoint of JoeyNMT, such as"),
    "no configuration": (lambda f: (f / "config.yaml").unlink(), "there is no config.yaml of JoeyNMT in"),
    "no YAML": (lambda f: (f / "config.yaml").write_text("a: [", encoding="utf-8"), "config.yaml is no YAML: while"),
    "another configuration": (
        lambda f: (f / "config.yaml").write_text("model: {encoder: {}}", encoding="utf-8"),
        "is no configuration of JoeyNMT: it has no section model.decoder",
    ),
    "no vocabulary": (lambda f: (f / "trg_vocab.txt").unlink(), r"has no vocabulary trg_vocab\.txt"),
    "short vocabulary": (
        lambda f: write_vocabulary(f / "src_vocab.txt", ["a", "b"]),
        "states vocab_size=6, but its weights have vocab_size=40",
    ),
    "no codes": (
        lambda f: change(f, "data", "src", level="bpe", tokenizer_type="subword-nmt", tokenizer_cfg={"codes": "bpe.x"}),
        r"BPE codes .*bpe\.x do not exist",
    ),
    "tokenization": (lambda f: change(f, "data", "trg", level="bytes"), "tokenization 'bytes' must be one of word, "),
    "prompts": (
        lambda f: change(f, "data", special_symbols={"sep_token": "<sep>"}),
        r"special_symbols\.sep_token: a model with prompts cannot be imported",
    ),
    "mixed": (
        lambda f: change(f, "model", "encoder", type="recurrent"),
        r"stacks of the types \['recurrent', 'transfo",
    ),
    "positions of norms": (
        lambda f: change(f, "model", "encoder", layer_norm="pre"),
        "encoder.layer_norm=pre and decoder.layer_norm=post; both must be the same",
    ),
    "norms": (
        lambda f: [change(f, "model", stack, layer_norm="pre") for stack in ("encoder", "decoder")],
        "states final_layer_norm=True, but its weights have final_layer_norm=False",
    ),
    "residuals": (
        lambda f: [change(f, "model", stack, alpha=2.0) for stack in ("encoder", "decoder")],
        r"has alpha=2\.0; use one of 1\.0",
    ),
    "heads": (
        lambda f: [change(f, "model", stack, num_heads=3) for stack in ("encoder", "decoder")],
        "num_heads=3 does not divide d_model=16",
    ),
    "width": (lambda f: [change(f, "model", x, ff_size=8) for x in ("encoder", "decoder")], "states d_ff=8, but its w"),
}
BROKEN_RECURRENT = {
    "one direction": (
        lambda f: change(f, "model", "encoder", bidirectional=False),
        r"has encoder\.bidirectional=False; use True",
    ),
    "cells": (lambda f: change(f, "model", "decoder", rnn_type="lstm"), r"decoder\.rnn_type='lstm'; use 'gru'"),
    "activation": (lambda f: change(f, "model", "decoder", activation="relu"), r"activation='relu'; use 'tanh'"),
    "attention": (
        lambda f: change(f, "model", "decoder", attention="luong"),
        "states attention=multiplicative, but its weights have attention=additive",
    ),
    "width": (
        lambda f: change(f, "model", "decoder", hidden_size=10),
        r"the weights for model\.decoder.*weight_ih_l0 have 36 rows, and config\.yaml has 10 \+ 10 \+ 10",
    ),
    "depth": (
        lambda f: change(f, "model", "encoder", num_layers=1),
        "states num_layers=1, but its weights have num_la",
    ),
}


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [("post-norm", *case) for case in BROKEN.values()]
    + [("narrow embeddings", *case) for case in BROKEN_RECURRENT.values()],
    ids=[*BROKEN, *(f"recurrent {kind}" for kind in BROKEN_RECURRENT)],
)
def test_what_cannot_be_imported_is_one_line(name, damage, message, tmp_path):
    write(name, tmp_path / "joey")
    damage(tmp_path / "joey")
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        import_model(tmp_path / "joey", tmp_path / "ours", "joeynmt")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "ours").exists()
