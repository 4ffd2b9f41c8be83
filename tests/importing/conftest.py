# SPDX-License-Identifier: Apache-2.0
"""SentencePiece models of many scripts, and the comparison of an imported model with its source."""

import io
from collections.abc import Callable
from pathlib import Path

import pytest
import sentencepiece
import torch

# Scripts, case, combining marks, digits, punctuation, spaces of several kinds, emoji, ligatures and wide letters.
LINES = [
    "The Transformer follows this overall architecture using stacked self-attention.",
    "Der Decoder hat 6 gleiche Schichten; größer, schöner, süßer!",
    "Модель обучается на 4,5 миллионах пар предложений.",
    "注意力机制允许对依赖关系进行建模。 エンコーダとデコーダ",
    "ध्यान तंत्र अनुक्रम मॉडलिंग का अभिन्न अंग",
    "آلية الانتباه تسمح بنمذجة التبعيات",
    "מנגנון הקשב מאפשר מידול",
    "주의 메커니즘은 모델링을 허용한다",
    "Ο μετασχηματιστής είναι η πρώτη αρχιτεκτονική",
    "กลไกความสนใจ ทำให้สามารถสร้างแบบจำลอง",
    "  two  spaces\u00a0and\u3000wide   ones ",
    "ﬁne ﬂuid ① Ｗｉｄｅ e\u0301 ½ … “quoted” — dash",
    "smile 🙂 ▁ under ▁▁ lines </s> <unk> <pad>",
    "▁begins",
    "x",
]


def train_sentencepiece(path: Path, lines: list[str], kind: str, vocab_size: int, **options) -> Path:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines * 4),
        model_writer=model,
        model_type=kind,
        vocab_size=vocab_size,
        minloglevel=2,
        **{"hard_vocab_limit": False, "num_threads": 1} | options,
    )
    path.write_bytes(model.getvalue())
    return path


@torch.no_grad()
def largest_difference(ours, logits_of: Callable, sources: list[list[int]], targets: list[list[int]]) -> float:
    """Between our logits and those that `logits_of(source, target)` gives, sentence by sentence."""
    worst = 0.0
    for source, target in zip(sources, targets, strict=True):
        source_ids, target_ids = torch.tensor([source]), torch.tensor([target])
        logits = ours(input_ids=source_ids, decoder_input_ids=target_ids).logits[0]
        expected = logits_of(source_ids, target_ids)[0]
        worst = max(worst, (logits[:, : expected.shape[-1]] - expected).abs().max().item())
    return worst


@pytest.fixture
def draw() -> Callable[..., list[list[int]]]:
    """Sentences of ids from `low` to `high`, of different lengths."""

    def sentences(low: int, high: int, count: int = 6) -> list[list[int]]:
        return [torch.randint(low, high, (2 + 3 * i,)).tolist() for i in range(count)]

    return sentences
