# SPDX-License-Identifier: Apache-2.0
"""Train and decode with JoeyNMT 2: `real_toolkits.py` runs this in a process, in a folder with the corpus.

    python in_joeynmt.py KIND

It writes the model to `model`. `answers.pt` has for each test line: target ids from BOS on, the logits that predict
them, and the text.
"""

import runpy
import sys
from pathlib import Path
from typing import Any

import sentencepiece
import torch
import yaml
from joeynmt.config import load_config, parse_global_args
from joeynmt.prediction import prepare
from joeynmt.search import greedy
from subword_nmt.learn_bpe import learn_bpe

CODES, PIECES, PIECES_VOCABULARY = "codes.bpe", "pieces.model", "pieces.vocab"
MAX_LENGTH = 200


def learn_subwords() -> None:
    with open("train.src", encoding="utf-8") as source, open("train.tgt", encoding="utf-8") as target:
        lines = [*source, *target]
    with open(CODES, "w", encoding="utf-8") as file:
        learn_bpe(lines, file, 30)
    options = {"model_type": "unigram", "vocab_size": 40, "hard_vocab_limit": False, "minloglevel": 2}
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(lines), model_prefix="pieces", **options)
    processor = sentencepiece.SentencePieceProcessor(PIECES)
    pieces = [processor.IdToPiece(i) for i in range(3, processor.GetPieceSize())]
    Path(PIECES_VOCABULARY).write_text("\n".join(pieces) + "\n", encoding="utf-8")


def settings(kind: str) -> dict[str, Any]:
    words: dict[str, Any] = {"level": "word"}
    codes = {"level": "bpe", "tokenizer_type": "subword-nmt", "tokenizer_cfg": {"codes": CODES}}
    pieces = {"level": "bpe", "tokenizer_type": "sentencepiece", "voc_file": PIECES_VOCABULARY}
    pieces["tokenizer_cfg"] = {"model_file": PIECES}
    sides = {"post": pieces, "pre": codes}.get(kind, words)
    embeddings = {"embedding_dim": 32, "scale": True}
    transformer = {"type": "transformer", "num_layers": 2, "num_heads": 4, "hidden_size": 32, "ff_size": 64}
    transformer |= {"embeddings": embeddings, "layer_norm": kind}
    recurrent = {"type": "recurrent", "rnn_type": kind, "hidden_size": 32, "embeddings": {"embedding_dim": 32}}
    attention = {"gru": ("bahdanau", "bridge"), "lstm": ("luong", "last")}.get(kind, ("", ""))
    encoder: dict[str, Any] = transformer if kind in ("post", "pre") else recurrent | {"bidirectional": True}
    decoder = encoder | {"attention": attention[0], "init_hidden": attention[1], "input_feeding": True}
    model = {"encoder": encoder, "decoder": transformer if encoder is transformer else decoder}
    if encoder is transformer:
        model |= {"tied_embeddings": kind == "post", "tied_softmax": True}
        model |= {"initializer": "xavier_uniform", "embed_initializer": "xavier_uniform"}
    training: dict[str, Any] = {"optimizer": "adamw", "learning_rate": 0.005, "model_dir": "model"}
    training |= {"scheduling": "warmupinversesquareroot", "learning_rate_warmup": 30, "early_stopping_metric": "ppl"}
    training |= {"batch_size": 64, "batch_type": "sentence"}
    training |= {"epochs": 99, "updates": 250, "validation_freq": 250, "logging_freq": 50}
    training |= {"normalization": "tokens", "label_smoothing": 0.1, "print_valid_sents": [0]}
    languages = {side: {"lang": lang, "max_length": 99, **sides} for side, lang in (("src", "src"), ("trg", "tgt"))}
    return {
        "name": kind,
        "joeynmt_version": "2.3.0",
        "model_dir": "model",
        "use_cuda": False,
        "random_seed": 7,
        "data": {"train": "train", "dev": "dev", "dataset_type": "plain", **languages},
        "testing": {"beam_size": 1, "batch_size": 16, "batch_type": "sentence", "max_output_length": MAX_LENGTH},
        "training": training,
        "model": model,
    }


@torch.no_grad()
def answers() -> list[tuple[list[int], torch.Tensor, str]]:
    config = load_config(Path("model", "config.yaml"))
    model, _, _, data = prepare(parse_global_args(config, rank=0, mode="translate"), rank=0, mode="translate")
    model.eval()
    source, target = data.tokenizer["src"], data.tokenizer["tgt"]
    found = []
    for line in Path("test.src").read_text(encoding="utf-8").splitlines():
        tokens = source(source.pre_process(line))
        ids, lengths, _ = data.sequence_encoder["src"]([tokens], bos=False, eos=True)
        x = torch.tensor(ids)
        mask = (x != model.pad_index).unsqueeze(1)
        encoded: dict[str, Any] = {"src_mask": mask}
        encoded["encoder_output"], encoded["encoder_hidden"], _, _ = model(
            return_type="encode", src=x, src_length=torch.tensor(lengths), src_mask=mask
        )
        [best], _, _ = greedy(model=model, max_output_length=MAX_LENGTH, min_output_length=1, **encoded)
        ids = [model.bos_index, *best.tolist()]
        steps = len(ids) - 1
        logits, _, _, _ = model(
            return_type="decode",
            trg_input=torch.tensor([ids[:-1]]),
            unroll_steps=steps,
            decoder_hidden=None,
            trg_mask=torch.ones(1, 1, steps, dtype=torch.bool),
            **encoded,
        )
        [words] = model.trg_vocab.arrays_to_sentences([best], cut_at_eos=True)
        found.append((ids, logits[0], target.post_process(words)))
    return found


if __name__ == "__main__":
    load = torch.load  # JoeyNMT's checkpoints are pickles, and torch reads none by default since 2.6
    torch.load = lambda *arguments, **options: load(*arguments, **options | {"weights_only": False})
    learn_subwords()
    Path("config.yaml").write_text(yaml.safe_dump(settings(sys.argv[1])), encoding="utf-8")
    sys.argv = ["joeynmt", "train", "config.yaml", "--skip-test"]
    runpy.run_module("joeynmt", run_name="__main__")
    torch.save(answers(), "answers.pt")
