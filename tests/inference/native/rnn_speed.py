# SPDX-License-Identifier: Apache-2.0
"""Speed of an RNN's decoding by the native engine, beside PyTorch's code for the same weights.

    python -m tests.inference.native.rnn_speed MODEL SOURCE [LINES [ROUNDS]]

Encoding and search are included; reading the text is not. The engines take turns (A B A B) on one thread; a speed is of
the median round, in target tokens per second of the CPU. "Same" counts the lines with the same tokens as PyTorch's, and
the last column has the largest difference of the other scores.
"""

import sys
import time
from itertools import islice
from statistics import geometric_mean, median
from typing import Any

import torch

from vanilla_transformer.data.corpus import read_lines
from vanilla_transformer.data.tokenizer import load_tokenizer
from vanilla_transformer.inference.model_folder import load_model_folder
from vanilla_transformer.inference.native.engine import fast_decoder
from vanilla_transformer.inference.translate import generate


def main(folder: str, source: str, lines: str = "320", rounds: str = "3") -> None:
    torch.set_num_threads(1)
    model: Any = load_model_folder(folder, torch.device("cpu"))
    tokenizer: Any = load_tokenizer(folder)
    encoded = sorted(tokenizer(list(islice(filter(str.strip, read_lines(source)), int(lines))))["input_ids"], key=len)
    decoders = {"torch float32": fast_decoder(model, engine="torch")}
    decoders |= {f"native {precision}": fast_decoder(model, precision, "native") for precision in ("float32", "int8")}
    ratios: dict[str, list[float]] = {name: [] for name in decoders}
    print(f"{len(encoded)} lines, {rounds} rounds")
    print("| batch | beams | engine | tokens/s | ratio | same | score |\n|---|---|---|---|---|---|---|")
    for size in (1, 32):
        batches = [
            tokenizer.pad({"input_ids": encoded[i : i + size]}, return_tensors="pt")
            for i in range(0, len(encoded), size)
        ]
        for beams in (1, 4):
            seconds: dict[str, list[float]] = {name: [] for name in decoders}
            found: dict[str, list[Any]] = {}
            for _ in range(int(rounds)):
                for name, decoder in decoders.items():
                    start = time.process_time()
                    found[name] = [decode(model, batch, decoder, beams) for batch in batches]
                    seconds[name].append(time.process_time() - start)
            reference = [pair for batch in found["torch float32"] for pair in batch]
            for name in decoders:
                own = [pair for batch in found[name] for pair in batch]
                same = [expected[0] == pair[0] for expected, pair in zip(reference, own, strict=True)]
                apart = [abs(a[1] - b[1]) for a, b, is_same in zip(reference, own, same, strict=True) if is_same]
                ratios[name].append(median(seconds["torch float32"]) / median(seconds[name]))
                speed = sum(len(tokens) for tokens, _ in own) / median(seconds[name])
                print(
                    f"| {size} | {beams} | {name} | {speed:.0f} | {ratios[name][-1]:.2f} | {sum(same)} | "
                    f"{max(apart, default=0):.1e} |",
                    flush=True,
                )
    for name, own in ratios.items():
        print(f"geometric mean, {name}: {geometric_mean(own):.2f}")


def decode(model: Any, batch: Any, decoder: Any, beams: int) -> list[tuple[list[int], float]]:
    """Tokens and score of each sentence; greedy search has no scores."""
    found = generate(model, dict(batch), decoder, {"num_beams": beams, "max_new_tokens": 60})
    pad = model.generation_config.pad_token_id
    targets = [[token for token in row if token != pad] for row in found.sequences[:, 1:].tolist()]
    scores = [0.0] * len(targets) if beams == 1 else found.sequences_scores.tolist()
    return list(zip(targets, scores, strict=True))


if __name__ == "__main__":
    main(*sys.argv[1:])
