# SPDX-License-Identifier: Apache-2.0
"""Train and decode with fairseq: `real_toolkits.py` runs this in a process, in a folder with the corpus.

    python in_fairseq.py KIND

As in_joeynmt.py. The kind "published" takes a model, and test lines with references, from PyPI's detransliterator.
"""

import importlib
import importlib.util
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from absent_packages import stand_in_for  # beside this script
from subword_nmt.apply_bpe import BPE
from subword_nmt.learn_bpe import learn_bpe

MODEL, CODES = Path("model"), Path("model", "codes")
OPTIONS = {
    "post": "--share-all-embeddings",
    "learned": "--encoder-normalize-before --decoder-normalize-before --encoder-learned-pos --decoder-learned-pos",
}
SIZES = " ".join(
    f"--{side}-embed-dim 32 --{side}-ffn-embed-dim 64 --{side}-layers 2 --{side}-attention-heads 4"
    for side in ("encoder", "decoder")
)
TRAINING = (
    "--arch transformer --cpu --num-workers 0 --seed 7 --optimizer adam --lr 0.005 --lr-scheduler inverse_sqrt "
    "--warmup-updates 30 --criterion label_smoothed_cross_entropy --label-smoothing 0.1 --max-tokens 400 "
    "--max-update 250 --dropout 0.1 --no-epoch-checkpoints --disable-validation --save-dir model"
)


def run(command: str, *arguments: str) -> None:
    """A command of fairseq's: `preprocess` or `train`."""
    sys.argv = [f"fairseq-{command}", *arguments]
    importlib.import_module(f"fairseq_cli.{command}").cli_main()


def train_model(kind: str) -> None:
    MODEL.mkdir()
    corpus = ["--source-lang", "src", "--target-lang", "tgt", "--destdir", "model"]
    if kind == "post":
        lines = [Path(f"train.{side}").read_text(encoding="utf-8").splitlines() for side in ("src", "tgt")]
        with CODES.open("w", encoding="utf-8") as file:
            learn_bpe([*lines[0], *lines[1]], file, 30)
        with CODES.open(encoding="utf-8") as file:
            bpe = BPE(file)
        for side, text in zip(("src", "tgt"), lines, strict=True):
            pieces = "".join(f"{bpe.process_line(line)}\n" for line in text)
            Path(f"train.{side}").write_text(pieces, encoding="utf-8")
        corpus.append("--joined-dictionary")
    run("preprocess", *corpus, "--trainpref", "train")
    run("train", "model", *corpus[:4], *f"{TRAINING} {SIZES} {OPTIONS[kind]}".split())


def copy_published() -> None:
    spec: Any = importlib.util.find_spec("detransliterator")
    assets = Path(spec.origin).parent / "assets"
    shutil.copytree(assets / "latin2nqo_001.35" / "checkpoints", MODEL)
    shutil.copytree(assets / "latin2nqo_001.35" / "data", MODEL, dirs_exist_ok=True)
    for side, name in (("src", "emk-tonal"), ("tgt", "nqo")):
        lines = (assets / "test_data" / f"diane_parallel_002.{name}").read_text(encoding="utf-8").splitlines()[:100]
        Path(f"test.{side}").write_text("\n".join(lines) + "\n", encoding="utf-8")


@torch.no_grad()
def answers(source_lang: str, target_lang: str) -> list[tuple[list[int], torch.Tensor, str]]:
    from fairseq.models.transformer import TransformerModel

    [checkpoint] = MODEL.glob("checkpoint_[bl]*.pt")
    codes = next((str(file) for file in (CODES, MODEL / "bpe.code") if file.is_file()), None)
    subwords = {"bpe": "subword_nmt", "bpe_codes": codes} if codes else {}
    options = {"tokenizer": "space", "source_lang": source_lang, "target_lang": target_lang} | subwords
    hub: Any = TransformerModel.from_pretrained("model", checkpoint.name, "model", **options)
    model = hub.eval().models[0]
    found = []
    for line in Path("test.src").read_text(encoding="utf-8").splitlines():
        source = hub.encode(line)
        target = hub.generate(source, beam=1, max_len_b=400)[0]["tokens"]
        ids = [model.decoder.dictionary.eos(), *target.tolist()]
        encoded = model.encoder(source[None], torch.tensor([len(source)]))
        logits = model.decoder(torch.tensor([ids[:-1]]), encoder_out=encoded)[0][0]
        found.append((ids, logits, hub.decode(target)))
    return found


if __name__ == "__main__":
    stand_in_for("scipy", "sklearn", "soundfile", "torchaudio")
    load = torch.load  # fairseq's checkpoints are pickles, and torch reads none by default since 2.6
    torch.load = lambda *arguments, **options: load(*arguments, **options | {"weights_only": False})
    if sys.argv[1] == "published":
        copy_published()
    else:
        train_model(sys.argv[1])
    languages = ("roman", "nqo") if sys.argv[1] == "published" else ("src", "tgt")
    torch.save(answers(*languages), "answers.pt")
