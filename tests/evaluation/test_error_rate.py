# SPDX-License-Identifier: Apache-2.0
import random

import pytest

from vanilla_transformer.evaluation.error_rate import PronunciationScore, score_pronunciations


def edit_distance(a: list[str], b: list[str]) -> int:
    """Wagner and Fischer 1974: d[i][j] is the distance between the first i of `a` and the first j of `b`."""
    d = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i in range(len(a) + 1):
        for j in range(len(b) + 1):
            if i == 0 or j == 0:
                d[i][j] = i + j
            else:
                d[i][j] = min(d[i - 1][j] + 1, d[i][j - 1] + 1, d[i - 1][j - 1] + (a[i - 1] != b[j - 1]))
    return d[-1][-1]


def pronunciation(longest: int, shortest: int = 1) -> str:
    return " ".join(random.choices(["AA", "AE", "B", "CH"], k=random.randint(shortest, longest)))


def test_phoneme_errors_are_edit_distances():
    predictions = [pronunciation(12, shortest=0) for _ in range(300)]
    references = [pronunciation(12) for _ in range(300)]
    errors = sum(edit_distance(p.split(), r.split()) for p, r in zip(predictions, references, strict=True))
    score = score_pronunciations(predictions, [[reference] for reference in references])
    assert score.phoneme_error_rate == pytest.approx(errors / sum(len(r.split()) for r in references))
    wrong = sum(p != r for p, r in zip(predictions, references, strict=True))
    assert score.word_error_rate == pytest.approx(wrong / 300)
    assert score.words == 300


def test_a_phoneme_is_one_symbol_however_many_letters_it_has():
    assert score_pronunciations(["AA B"], [["CH B"]]).phoneme_error_rate == 1 / 2


def test_a_word_is_right_if_it_matches_any_listed_pronunciation():
    listed = ["T AH M EY T OW", "T AH M AA T OW"]
    for answer in listed:
        assert score_pronunciations([answer], [listed]) == PronunciationScore(1, 0.0, 0.0)


def test_errors_count_against_the_closest_and_its_length():
    # One substitution to the second, of four phonemes; the first, of two, is three edits away.
    assert score_pronunciations(["A B C X"], [["A Q", "A B C D"]]).phoneme_error_rate == 1 / 4


def test_of_two_equally_close_the_shorter_counts():
    assert score_pronunciations(["A B C"], [["A B C D", "A B"]]).phoneme_error_rate == 1 / 2


def test_rates_are_over_the_whole_corpus():
    # 0 errors of 1 phoneme and 1 of 3: not the mean of 0 and 1/3.
    assert score_pronunciations(["A", "A B X"], [["A"], ["A B C"]]) == PronunciationScore(2, 1 / 2, 1 / 4)


def test_an_empty_answer_misses_every_phoneme():
    assert score_pronunciations([""], [["A B C"]]) == PronunciationScore(1, 1.0, 1.0)


@pytest.mark.parametrize(("predictions", "references"), [(["A"], [["A"], ["B"]]), ([], [])])
def test_counts_that_do_not_fit_are_refused(predictions: list[str], references: list[list[str]]):
    with pytest.raises(ValueError, match=rf"^{len(predictions)} predictions .* {len(references)} words$"):
        score_pronunciations(predictions, references)


@pytest.mark.parametrize("variants", [[], [""], ["A", " "]])
def test_a_word_without_a_pronunciation_is_refused(variants: list[str]):
    with pytest.raises(ValueError, match=r"^word 2 has no listed pronunciation"):
        score_pronunciations(["A", "A"], [["A"], variants])
