# SPDX-License-Identifier: Apache-2.0
"""Alignment error rate by hand, and heads whose alignment is known by construction."""

import pytest

from tests.inference.aligning_model import aligning_model, reorderings
from vanilla_transformer.data.alignment import WordAlignment, parse_alignment
from vanilla_transformer.evaluation.alignment_error_rate import score_alignment_heads, score_alignments
from vanilla_transformer.inference.alignment import AlignmentHeads


def reference(sure: set, possible: set = frozenset()) -> WordAlignment:
    return WordAlignment(frozenset(sure), frozenset(sure | possible))


def test_the_error_rate_of_och_and_ney():
    """A = {00, 11, 22}, S = {00, 33}, P = S + {11}: |A and S| = 1, |A and P| = 2, |A| = 3, |S| = 2."""
    score = score_alignments([[(0, 0), (1, 1), (2, 2)]], [reference({(0, 0), (3, 3)}, {(1, 1)})])
    assert score.error_rate == pytest.approx(1 - (1 + 2) / (3 + 2))
    assert score.precision == pytest.approx(2 / 3)
    assert score.recall == pytest.approx(1 / 2)


def test_links_are_counted_over_the_corpus():
    """1 of 1 right, and 0 of 3 right: 1 - (1 + 1) / (4 + 4), not the mean of 0 and 1."""
    found = [[(0, 0)], [(0, 1), (1, 0), (2, 1)]]
    score = score_alignments(found, [reference({(0, 0)}), reference({(0, 0), (1, 1), (2, 2)})])
    assert score.error_rate == pytest.approx(0.75)


def test_missing_possible_links_cost_nothing():
    assert score_alignments([[(0, 0)]], [reference({(0, 0)}, {(1, 1), (2, 2)})]).error_rate == 0


def test_with_sure_links_alone_it_is_one_minus_f1():
    found, sure = {(0, 0), (1, 1), (2, 1), (4, 4)}, {(0, 0), (1, 1), (3, 3)}
    score = score_alignments([found], [reference(sure)])
    assert score.error_rate == pytest.approx(1 - 2 * score.precision * score.recall / (score.precision + score.recall))


def test_alignments_that_cannot_be_scored_are_refused():
    with pytest.raises(ValueError, match="1 alignments cannot be scored against 2 references"):
        score_alignments([[]], [reference({(0, 0)})] * 2)
    with pytest.raises(ValueError, match="there are no links to score"):
        score_alignments([[]], [reference(set(), {(0, 0)})])


def test_the_head_that_aligns_is_found():
    model, tokenizer = aligning_model()
    pairs = [(source, target, parse_alignment(line, source, target)) for source, target, line in reorderings(20)]
    ranked = score_alignment_heads(model, tokenizer, pairs)
    assert len(ranked) == 2 * (2 * 2 + 2)  # shifts x (layers x heads + means of layers)
    assert {candidate.heads for candidate, score in ranked if score.error_rate == 0} == {((1, 1),), ((1, 0), (1, 1))}
    assert ranked[0][0] == AlignmentHeads(((1, 1),), shift=1)  # of equals, the first: a single head
    assert {candidate.shift for candidate, score in ranked if score.error_rate == 0} == {1}
