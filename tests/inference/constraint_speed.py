# SPDX-License-Identifier: Apache-2.0
"""Time and quality of beam search with terms of the reference, beside the same without.

    python -m tests.inference.constraint_speed MODEL SOURCE REFERENCE [LINES [ENGINE]]

Every line gets one, two or three words of its reference that are at least four letters long. Runs alternate; times are
the fastest of each, in seconds of the CPU. A line fails that lacks one of its terms, or has it more than once.
"""

import re
import sys
import time
from itertools import islice
from typing import Any

import torch
from sacrebleu.metrics import BLEU

from vanilla_transformer.data.corpus import read_lines
from vanilla_transformer.inference.terms import LexicalConstraints
from vanilla_transformer.inference.translator import Translator

ROUNDS = 2


def terms_of(reference: str, number: int) -> list[str]:
    """Every second long word, as often as the reference has it."""
    words = [word for word in re.findall(r"\w+", reference) if len(word) > 3]
    chosen = words[::2][:number]
    return [word for word in dict.fromkeys(chosen) for _ in range(occurrences(word, reference))]


def occurrences(term: str, text: str) -> int:
    return len(re.findall(rf"\b{re.escape(term)}\b", text))


def main(model: str, source: str, reference: str, lines: str = "500", engine: str = "auto") -> None:
    torch.set_num_threads(1)
    kind: Any = engine
    translator = Translator.from_pretrained(model, device="cpu", engine=kind)
    sources, references = (list(islice(read_lines(path), int(lines))) for path in (source, reference))
    bleu = BLEU()
    print(f"{len(sources)} lines, {translator.engine} engine, beam 4, one thread")
    print("| terms a line | seconds without | with | ratio | BLEU without | with | lines that fail without | with |")
    print("|---|---|---|---|---|---|---|---|")
    for number in (1, 2, 3):
        terms = [terms_of(line, number) for line in references]
        constrained = ["\t".join([line, *own]) for line, own in zip(sources, terms, strict=True)]
        times: dict[bool, list[float]] = {False: [], True: []}
        outputs = {}
        for _ in range(ROUNDS):
            for has_terms, given in ((False, sources), (True, constrained)):
                constraints = LexicalConstraints(in_lines=True) if has_terms else None
                start = time.process_time()
                outputs[has_terms] = translator.translate(given, num_beams=4, constraints=constraints)
                times[has_terms].append(time.process_time() - start)
        failing = [
            sum(
                any(occurrences(term, text) != own.count(term) for term in own)
                for own, text in zip(terms, outputs[has_terms], strict=True)
            )
            for has_terms in (False, True)
        ]
        without, with_terms = (min(times[has_terms]) for has_terms in (False, True))
        scores = [bleu.corpus_score(outputs[has_terms], [references]).score for has_terms in (False, True)]
        mean = sum(map(len, terms)) / len(terms)
        print(
            f"| {mean:.2f} | {without:.2f} | {with_terms:.2f} | {with_terms / without:.2f} | {scores[0]:.1f} | "
            f"{scores[1]:.1f} | {failing[0]} | {failing[1]} |",
            flush=True,
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
