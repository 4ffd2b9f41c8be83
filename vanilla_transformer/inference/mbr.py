# SPDX-License-Identifier: Apache-2.0
"""Minimum Bayes risk decoding: of several candidates the one that is most like the others.

The candidates stand for the model's whole distribution (Kumar and Byrne 2004; of samples: Eikema and Aziz 2020,
arXiv:2005.10283).
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Literal

from vanilla_transformer.inference.sampling import Sampling
from vanilla_transformer.inference.translate import Translation, sample_lines, translate_lines
from vanilla_transformer.inference.translator import Translator

Utility = Literal["chrf", "bleu"]


def mbr_windows(
    translator: Translator,
    windows: Iterable[Sequence[str]],
    utility: Utility,
    count: int,
    sampling: Sampling | None = None,
    **options,
) -> Iterator[list[Translation]]:
    """For each line of a stream of windows, in order, a list of its one translation.

    Args:
        count: candidates for each line.
        sampling: how to draw them; `None`: the best of beam search, all with the same weight.
        options: as for `translate_lines`.

    Raises:
        ValueError: as `translate_lines`.
    """
    decode = partial(translate_lines, num_return_sequences=count)
    if sampling is not None:
        decode = partial(sample_lines, sampling=sampling, count=count)
    first_line, own = 1, options | {"decoder": translator.decoder}
    for window in windows:
        for candidates in decode(translator.model, translator.tokenizer, window, first_line=first_line, **own):
            utilities = expected_utilities([candidate.text for candidate in candidates], utility)
            yield [candidates[utilities.index(max(utilities))]]
        first_line += len(window)


def expected_utilities(texts: Sequence[str], utility: Utility) -> list[float]:
    """The mean of each text's sentence-level score against every text as reference, sacreBLEU's, in points.

    Args:
        utility: "chrf" by fastchrf, whose scores are sacreBLEU's; "bleu" with effective order.
    """
    counts = Counter(texts)  # the same text is scored once, and counts as often as it is there
    distinct = list(counts)
    if utility == "chrf":
        from fastchrf import pairwise_chrf

        [scores] = pairwise_chrf([distinct], [distinct])
    else:
        from sacrebleu.metrics.bleu import BLEU

        bleu = BLEU(effective_order=True)
        scores = [[bleu.sentence_score(text, [reference]).score for reference in distinct] for text in distinct]
    totals = {
        text: sum(score * counts[reference] for score, reference in zip(row, distinct, strict=True))
        for text, row in zip(distinct, scores, strict=True)
    }
    return [totals[text] / len(texts) for text in texts]
