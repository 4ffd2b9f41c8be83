# SPDX-License-Identifier: Apache-2.0
"""Train and decode with OpenNMT-py 2 and 3, and eole: `real_toolkits.py` runs this in a folder with the corpus.

    python in_opennmt.py KIND

As in_joeynmt.py; OpenNMT-py's model is `model.pt`. The texts are those of the toolkit's own command with one beam. The
target ids are found by whole forward passes, and have to be these texts.
"""

import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sentencepiece
import torch
import yaml
from absent_packages import stand_in_for  # beside this script

UPDATES, MAX_LENGTH, OUTPUT = 800, 200, "output.txt"
PIECES = "pieces.model"
SIZES: dict[str, Any] = {"heads": 4, "transformer_ff": 64}
TRAINING: dict[str, Any] = {"train_steps": UPDATES, "save_checkpoint_steps": UPDATES, "valid_steps": 10 * UPDATES}
TRAINING |= {"batch_size": 400, "batch_type": "tokens", "normalization": "tokens", "bucket_size": 3000}
TRAINING |= {"optim": "adam", "adam_beta2": 0.998, "decay_method": "noam", "warmup_steps": 60, "learning_rate": 1.5}
TRAINING |= {"label_smoothing": 0.1, "max_grad_norm": 0, "dropout": [0.1], "attention_dropout": [0.1]}


def write_vocabularies(tokenize: Callable[[str], list[str]]) -> None:
    """Write the tokens of each side, and of both, with counts: `src.vocab`, `tgt.vocab`, `both.vocab`."""
    counts = {}
    for side in ("src", "tgt"):
        lines = Path(f"train.{side}").read_text(encoding="utf-8").splitlines()
        counts[side] = Counter(token for line in lines for token in tokenize(line))
    for name, count in (counts | {"both": counts["src"] + counts["tgt"]}).items():
        text = "".join(f"{token}\t{number}\n" for token, number in count.most_common())
        Path(f"{name}.vocab").write_text(text, encoding="utf-8")


def settings(kind: str) -> dict[str, Any]:
    shares = kind in ("onmt2", "eole-pieces")
    vocabularies = {f"{side}_vocab": f"{'both' if shares else side}.vocab" for side in ("src", "tgt")}
    common = {"seed": 1, "overwrite": True, "save_data": "saved", "share_vocab": shares, "report_every": 50}
    common |= vocabularies | {"data": {"corpus": {"path_src": "train.src", "path_tgt": "train.tgt"}}}
    shared = {"share_embeddings": shares, "share_decoder_embeddings": shares}
    if kind.startswith("eole"):
        layout = "SinusoidalConcat" if shares else "SinusoidalInterleaved"
        model = {"architecture": "transformer", "layers": 2, "hidden_size": 32, "embeddings": {"word_vec_size": 32}}
        training = {"model_path": "model", "num_workers": 0, "compute_dtype": "fp32"}
        training["param_init_method"] = "xavier_uniform"
        common |= {"training": TRAINING | training}
        common |= {"model": {**SIZES, **model, **shared, "position_encoding_type": layout}}
        if shares:
            pieces = {"src_subword_model": PIECES, "tgt_subword_model": PIECES}
            common |= {"transforms": ["sentencepiece"], "transforms_configs": {"sentencepiece": pieces}}
        return common
    common |= {"encoder_type": "transformer", "decoder_type": "transformer", "enc_layers": 2, "dec_layers": 2}
    common |= {"word_vec_size": 32, "position_encoding": True, "param_init": 0, "param_init_glorot": True}
    common |= {**TRAINING, **SIZES, **shared, "save_model": "checkpoint"}
    if kind == "onmt2":
        return common | {"rnn_size": 32}
    own = {"hidden_size": 32, "position_encoding_type": "SinusoidalConcat", "add_qkvbias": True, "num_workers": 0}
    return common | own


def run(kind: str) -> None:
    """The toolkit's own commands: train, and translate `test.src` into OUTPUT."""
    if kind.startswith("eole"):
        from eole.bin.main import main

        train: Any = main
        translate: Any = main
        commands = ["eole", "train", "-config"], ["eole", "predict", "-model_path", "model", "-compute_dtype", "fp32"]
    else:
        from onmt.bin.train import main as train
        from onmt.bin.translate import main as translate

        commands = ["onmt_train", "-config"], ["onmt_translate", "-model", "model.pt"]
    sys.argv = [*commands[0], "settings.yaml"]
    train()
    if not kind.startswith("eole"):
        Path(f"checkpoint_step_{UPDATES}.pt").rename("model.pt")
    sys.argv = [*commands[1], "-src", "test.src", "-output", OUTPUT, "-beam_size", "1"]
    sys.argv += ["-max_length", str(MAX_LENGTH)]
    if kind != "onmt2":
        sys.argv += ["-max_length_ratio", "0"]  # no limit by the source's length
    translate()


Forward = Callable[[list[int], list[int]], torch.Tensor]


def opened(kind: str) -> tuple[Forward, list[str], list[str]]:
    """The logits `(target_length, vocab_size)` of source and target ids, and the tokens of both sides."""
    if kind.startswith("eole"):
        from eole.config.run import PredictConfig
        from eole.models.model import get_model_class
        from eole.models.model_saver import get_metadata

        options: dict[str, Any] = {"gpu_ranks": [], "compute_dtype": "fp32", "beam_size": 1}
        config = PredictConfig(model_path=["model"], src="test.src", output=OUTPUT, **options)
        model_class: Any = get_model_class(get_metadata("model")["config"].model)
        model, vocabularies, _ = model_class.for_inference(config)
        model.eval()

        def forward(source: list[int], target: list[int]) -> torch.Tensor:
            # Two more tokens: eole reads a target of one token as a step with a cache, and leaves the last one out.
            states = model(torch.tensor([source]), torch.tensor([[*target, 5, 0]]), torch.tensor([len(source)]))[0]
            return model.generator(states)[0][:-1].float()

        return forward, vocabularies["src"].ids_to_tokens, vocabularies["tgt"].ids_to_tokens
    from onmt.model_builder import build_base_model
    from onmt.utils.parse import ArgumentParser

    checkpoint = torch.load("model.pt", map_location="cpu")
    options: Any = ArgumentParser.ckpt_model_opts(checkpoint["opt"])
    ArgumentParser.update_model_opts(options)
    options.update_vocab = False
    if kind == "onmt2":
        fields = dict(checkpoint["vocab"])
        model = build_base_model(options, checkpoint["vocab"], False, checkpoint, -1)
        tokens = [fields[side].base_field.vocab.itos for side in ("src", "tgt")]
    else:
        from onmt.inputters.inputter import dict_to_vocabs

        vocabularies = dict_to_vocabs(checkpoint["vocab"])
        options.quant_layers, options.quant_type, options.lora_layers = [], "", []
        model = build_base_model(options, vocabularies)
        generator = {f"generator.{name}": value for name, value in checkpoint["generator"].items()}
        torch.nn.Module.load_state_dict(model, checkpoint["model"] | generator)
        tokens = [vocabularies[side].ids_to_tokens for side in ("src", "tgt")]
    model.eval()
    model.generator.eval()

    def forward(source: list[int], target: list[int]) -> torch.Tensor:
        shape = (-1, 1, 1) if kind == "onmt2" else (1, -1, 1)  # version 2 has the batch in the second dimension
        ids = [torch.tensor(side).view(shape) for side in (source, [*target, 0])]  # the last one is left out
        states = model(*ids, torch.tensor([len(source)]))[0]
        linear = model.generator[0] if kind == "onmt2" else model.generator
        return linear(states).flatten(0, 1).float()

    return forward, *tokens


@torch.no_grad()
def answers(kind: str, tokenize: Callable[[str], list[str]]) -> list[tuple[list[int], torch.Tensor, str]]:
    forward, source_tokens, target_tokens = opened(kind)
    places = {token: index for index, token in enumerate(source_tokens)}
    start, end = target_tokens.index("<s>"), target_tokens.index("</s>")
    texts = Path(OUTPUT).read_text(encoding="utf-8").splitlines()
    found = []
    for line, text in zip(Path("test.src").read_text(encoding="utf-8").splitlines(), texts, strict=True):
        source, target = [places[token] for token in tokenize(line)], [start]
        while target[-1] != end and len(target) <= MAX_LENGTH:
            target.append(int(forward(source, target)[-1].argmax()))
        found.append((target, forward(source, target[:-1]), text.strip()))
    return found


def main(kind: str) -> None:
    tokenize: Callable[[str], list[str]] = str.split
    if kind == "eole-pieces":
        lines = [
            line for side in ("src", "tgt") for line in Path(f"train.{side}").read_text(encoding="utf-8").splitlines()
        ]
        options = {"model_type": "unigram", "vocab_size": 40, "hard_vocab_limit": False, "minloglevel": 2}
        sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(lines), model_prefix="pieces", **options)
        processor = sentencepiece.SentencePieceProcessor(PIECES)
        tokenize = lambda line: processor.encode(line, out_type=str)  # noqa: E731 -- one of two
    write_vocabularies(tokenize)
    Path("settings.yaml").write_text(yaml.safe_dump(settings(kind)), encoding="utf-8")
    run(kind)
    torch.save(answers(kind, tokenize), "answers.pt")
    if kind == "eole-pieces":
        Path("model", PIECES).write_bytes(Path(PIECES).read_bytes())


if __name__ == "__main__":
    stand_in_for(
        "aiohttp", "spacy", "waitress", "flask", "fasttext", "gradio", "fastapi", "uvicorn", "rich", "rapidfuzz"
    )
    load = torch.load  # OpenNMT-py's checkpoints are pickles, and torch reads none by default since 2.6
    torch.load = lambda *arguments, **options: load(*arguments, **options | {"weights_only": False})
    main(sys.argv[1])
