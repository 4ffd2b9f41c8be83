# SPDX-License-Identifier: Apache-2.0
"""Alignment error rate (Och and Ney 2003, section 7), and the attention heads that have the lowest."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from vanilla_transformer.data.alignment import Link, WordAlignment
from vanilla_transformer.inference.alignment import AlignmentHeads, align, count_heads


@dataclass(frozen=True)
class AlignmentScore:
    """Rates from 0 to 1, over all links of all pairs.

    Args:
        error_rate: 1 - (|A and S| + |A and P|) / (|A| + |S|), for the links found A, the sure S and the possible P.
        precision: share of the links found that are possible.
        recall: share of the sure links that are found.
    """

    error_rate: float
    precision: float
    recall: float


def score_alignments(found: Sequence[Iterable[Link]], references: Sequence[WordAlignment]) -> AlignmentScore:
    """Compare alignments with their references.

    Raises:
        ValueError: another number of them; neither sure links nor any that were found.
    """
    if len(found) != len(references):
        raise ValueError(f"{len(found)} alignments cannot be scored against {len(references)} references")
    links = sure = right_sure = right_possible = 0
    for own, reference in zip(map(set, found), references, strict=True):
        links += len(own)
        sure += len(reference.sure)
        right_sure += len(own & reference.sure)
        right_possible += len(own & reference.possible)
    if not links + sure:
        raise ValueError("there are no links to score: neither sure ones in the references nor any that were found")
    error_rate = 1 - (right_sure + right_possible) / (links + sure)
    return AlignmentScore(error_rate, right_possible / links if links else 1.0, right_sure / sure if sure else 1.0)


def score_alignment_heads(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[tuple[str, str, WordAlignment]],
    **options: str | None,
) -> list[tuple[AlignmentHeads, AlignmentScore]]:
    """Each head of each decoder layer, and the mean of each layer's heads, with both shifts; the lowest error first.

    Args:
        pairs: source, target and reference.
        options: `tag` and `target_language`, as for `align`.

    Raises:
        ValueError: as `align` and `score_alignments`.
    """
    layers, heads = count_heads(model)
    sets = [((layer, head),) for layer in range(layers) for head in range(heads)]
    if heads > 1:
        sets += [tuple((layer, head) for head in range(heads)) for layer in range(layers)]
    candidates = [AlignmentHeads(each, shift) for each in sets for shift in (0, 1)]
    sources, targets, references = zip(*pairs, strict=True)
    found = align(model, tokenizer, sources, targets, candidates, **options)
    scores = [score_alignments(links, references) for links in zip(*found, strict=True)]
    return sorted(zip(candidates, scores, strict=True), key=lambda each: each[1].error_rate)
