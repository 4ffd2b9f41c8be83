# SPDX-License-Identifier: Apache-2.0
"""Train and decode with transformers' MarianMT and FSMT: `real_toolkits.py` runs this in a folder with the corpus.

    python in_transformers.py KIND

As in_joeynmt.py.
"""

import json
import sys
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from subword_nmt.learn_bpe import learn_bpe
from transformers import FSMTConfig, FSMTForConditionalGeneration, FSMTTokenizer, MarianConfig, MarianMTModel
from transformers.models.marian.tokenization_marian import MarianTokenizer

MODEL = Path("model")
UPDATES, BATCH, MAX_LENGTH = 250, 32, 200
SIZES = {
    f"{side}_{name}": value
    for side in ("encoder", "decoder")
    for name, value in {"layers": 2, "ffn_dim": 64, "attention_heads": 4}.items()
}


def lines_of(name: str) -> list[str]:
    return Path(name).read_text(encoding="utf-8").splitlines()


def write_json(name: str, content: Any) -> None:
    (MODEL / name).write_text(json.dumps(content), encoding="utf-8")


def new_marian() -> tuple[Any, Any]:
    """As OPUS-MT with two vocabularies: a SentencePiece model and a vocabulary of each side."""
    sizes = []
    for side, name, vocabulary in (("src", "source", "vocab.json"), ("tgt", "target", "target_vocab.json")):
        options = {"model_type": "unigram", "vocab_size": 40, "hard_vocab_limit": False, "minloglevel": 2}
        prefix = f"model/{name}"
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines_of(f"train.{side}")), model_prefix=prefix, **options
        )
        Path(f"{prefix}.model").rename(f"{prefix}.spm")
        processor = sentencepiece.SentencePieceProcessor(f"{prefix}.spm")
        pieces = [processor.IdToPiece(i) for i in range(3, processor.GetPieceSize())]
        # transformers has one id for both sides' padding.
        tokens = ["</s>", "<unk>", "<pad>", *sorted(pieces)]
        write_json(vocabulary, {token: index for index, token in enumerate(tokens)})
        sizes.append(len(tokens))
    languages = {"source_lang": "en", "target_lang": "de", "separate_vocabs": True}
    write_json("tokenizer_config.json", languages | {"tokenizer_class": "MarianTokenizer"})
    special = {"eos_token_id": 0, "forced_eos_token_id": 0, "pad_token_id": 2, "decoder_start_token_id": 2}
    config: dict[str, Any] = {"vocab_size": sizes[0], "decoder_vocab_size": sizes[1], "d_model": 32}
    config |= {"share_encoder_decoder_embeddings": False, "scale_embedding": True, "activation_function": "swish"}
    model = MarianMTModel(MarianConfig(**config, **SIZES, **special, init_std=0.1))
    return model, MarianTokenizer.from_pretrained(MODEL)


def new_fsmt() -> tuple[Any, Any]:
    """As fairseq's WMT models: two vocabularies and the merges of both sides."""
    with open("codes", "w", encoding="utf-8") as file:
        learn_bpe(lines_of("train.src") + lines_of("train.tgt"), file, 30)
    merges = [line.split() for line in lines_of("codes")[1:]]
    text = "".join(f"{left} {right} 1\n" for left, right in merges)
    (MODEL / "merges.txt").write_text(text, encoding="utf-8")
    sizes = {}
    for side in ("src", "tgt"):
        letters = sorted({letter for line in lines_of(f"train.{side}") for letter in line} - {" "})
        symbols = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(merge) for merge in merges)]
        tokens = ["<s>", "<pad>", "</s>", "<unk>", *dict.fromkeys(symbols)]
        write_json(f"vocab-{side}.json", {token: index for index, token in enumerate(tokens)})
        sizes[f"{side}_vocab_size"] = len(tokens)
    write_json("tokenizer_config.json", {"langs": ["en", "de"], "tokenizer_class": "FSMTTokenizer"})
    config: dict[str, Any] = {"langs": ["en", "de"], "d_model": 32, "init_std": 0.1}
    model = FSMTForConditionalGeneration(FSMTConfig(**config, **SIZES, **sizes))
    for stack in (model.model.encoder, model.model.decoder):
        stack.embed_positions.requires_grad_(False)  # sinusoids, which transformers 5 would train
    return model, FSMTTokenizer.from_pretrained(MODEL)


def train(model: Any, tokenizer: Any) -> None:
    sources, targets = (lines_of(f"train.{side}") for side in ("src", "tgt"))
    optimizer, pad = torch.optim.Adam(model.parameters(), lr=3e-3), model.config.pad_token_id
    for update in range(UPDATES):
        chosen = [index % len(sources) for index in range(update * BATCH, (update + 1) * BATCH)]
        batch = tokenizer([sources[index] for index in chosen], return_tensors="pt", padding=True)
        labels = tokenizer(text_target=[targets[index] for index in chosen], return_tensors="pt", padding=True)
        labels = labels["input_ids"]
        start = torch.full_like(labels[:, :1], model.config.decoder_start_token_id)
        options = {"decoder_input_ids": torch.cat([start, labels[:, :-1]], dim=1), "use_cache": False}
        logits = model(batch["input_ids"], attention_mask=batch["attention_mask"], **options).logits
        loss = torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels, ignore_index=pad)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@torch.no_grad()
def answers(model: Any, tokenizer: Any) -> list[tuple[list[int], torch.Tensor, str]]:
    found = []
    for line in lines_of("test.src"):
        source = tokenizer(line, return_tensors="pt")["input_ids"]
        [ids] = model.generate(source, num_beams=1, max_length=MAX_LENGTH + 1)
        logits = model(source, decoder_input_ids=ids[None, :-1], use_cache=False).logits[0]
        found.append((ids.tolist(), logits, tokenizer.decode(ids, skip_special_tokens=True)))
    return found


def main(kind: str) -> None:
    torch.manual_seed(1)
    MODEL.mkdir()
    model, tokenizer = {"marian": new_marian, "fsmt": new_fsmt}[kind]()
    train(model, tokenizer)
    if kind == "marian":
        model.generation_config.update(bad_words_ids=[[model.config.pad_token_id]])
    model.save_pretrained(MODEL)
    torch.save(answers(model.eval(), tokenizer), "answers.pt")


if __name__ == "__main__":
    main(sys.argv[1])
