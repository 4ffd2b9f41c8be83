# SPDX-License-Identifier: Apache-2.0
"""Speed of an RNN's decoding by the native engine, beside PyTorch's code for the same weights.

    python -m tests.inference.native.rnn_speed MODEL SOURCE [LINES [ROUNDS]]

Encoding and search are timed; reading the text and the checks of `generate` are not. The engines take turns (A B A B)
on one thread; a speed is of the median round, in target tokens per second of the CPU. "Same" counts the lines with the
same tokens as PyTorch's, and the last column has the largest difference between the scores of these.
"""

import sys
import time
from functools import partial
from itertools import islice
from statistics import geometric_mean, median
from typing import Any

import torch

from vanilla_transformer.data.corpus import read_lines
from vanilla_transformer.data.tokenizer import load_tokenizer
from vanilla_transformer.generation import length_penalty
from vanilla_transformer.inference.model_folder import load_model_folder
from vanilla_transformer.inference.native.engine import fast_decoder
from vanilla_transformer.search import BeamSearch, BeamSearchConfig, greedy_search


@torch.inference_mode()
def main(folder: str, source: str, lines: str = "128", rounds: str = "3") -> None:
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
                    found[name] = [pair for batch in batches for pair in decode(model, batch, decoder, beams)]
                    seconds[name].append(time.process_time() - start)
            reference = found["torch float32"]
            for name in decoders:
                own = found[name]
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


def decode(model: Any, batch: Any, decoder: Any, num_beams: int) -> list[tuple[list[int], float]]:
    """Tokens and score of each sentence; greedy search has no scores."""
    ids, mask = batch["input_ids"], batch["attention_mask"]
    config = BeamSearchConfig(
        num_beams=num_beams,
        num_return_sequences=1,
        length_normalizer=partial(length_penalty, alpha=0.6),
        eos_token_ids=torch.tensor([model.config.eos_token_id]),
        pad_token_id=model.config.pad_token_id,
    )
    max_lengths = mask.sum(dim=1) + 50
    prompt = torch.full((len(ids), 1), model.config.decoder_start_token_id)
    state = decoder.begin(decoder.encode(ids, mask), mask, 1 + int(max_lengths.max()), num_beams)
    if num_beams == 1:
        targets, scores = greedy_search(state, prompt, max_lengths, config), [0.0] * len(ids)
    else:
        best = BeamSearch(state, prompt, max_lengths, config).run()
        targets, scores = best.sequences[:, 0], best.scores[:, 0].tolist()
    real = [[token for token in row if token != config.pad_token_id] for row in targets[:, 1:].tolist()]
    return list(zip(real, scores, strict=True))


if __name__ == "__main__":
    main(*sys.argv[1:])
