# SPDX-License-Identifier: Apache-2.0
"""Curves of two models, each a straight line against the logarithm of the cost."""

from typing import Any

import pytest

from vanilla_transformer.comparison.crossing import crossing_table, find_crossings


def task_of(
    transformer: dict[float, float], rnn: dict[float, float], higher_is_better: bool = True, updates: int = 100
) -> dict[str, Any]:
    """A task whose scores are by minutes; the Transformer makes so many `updates` in a minute, the RNN half of them."""

    def facts(score: float, speed: float, minutes: float) -> dict[str, Any]:
        return {"score": score, "updates": speed * minutes, "training_seconds": 60 * minutes, "interval": [0, 0]}

    budgets = [
        {
            "minutes": minutes,
            "models": {
                "Transformer": facts(transformer[minutes], updates, minutes),
                "RNN": facts(rnn[minutes], updates / 2, minutes),
            },
        }
        for minutes in transformer
    ]
    return {"higher_is_better": higher_is_better, "budgets": budgets}


def against_minutes(task: dict[str, Any]) -> dict[str, Any]:
    return next(found for found in find_crossings(task) if found["cost"] == "minutes")


def test_curves_cross_where_their_lines_against_the_logarithm_meet():
    # Leads of -2 at 1 minute and +2 at 4: half-way on the logarithmic axis is 2 minutes.
    found = against_minutes(task_of({1.0: 10.0, 4.0: 20.0}, {1.0: 12.0, 4.0: 18.0}))
    assert (found["model"], found["range"], found["start"]) == ("RNN", [1.0, 4.0], "behind")
    (crossing,) = found["crossings"]
    assert (crossing["at"], crossing["score"]) == (pytest.approx(2.0), pytest.approx(15.0))


def test_a_lower_error_rate_is_ahead():
    scores = {1.0: 10.0, 4.0: 20.0}, {1.0: 12.0, 4.0: 18.0}
    assert against_minutes(task_of(*scores, higher_is_better=False))["start"] == "ahead"


def test_against_updates_scores_of_different_runs_are_compared():
    # In 2 minutes the RNN makes the 100 updates that the Transformer makes in 1, and has a better score then.
    task = task_of({1.0: 10.0, 2.0: 20.0}, {1.0: 8.0, 2.0: 11.0})
    minutes, updates = find_crossings(task)
    assert (minutes["start"], minutes["crossings"]) == ("ahead", [])
    assert (updates["cost"], updates["start"], updates["range"]) == ("updates", "behind", [100, 100])


def test_curves_may_cross_more_than_once():
    task = task_of({1.0: 1.0, 2.0: 3.0, 4.0: 1.0}, {1.0: 2.0, 2.0: 2.0, 4.0: 2.0})
    found = against_minutes(task)
    assert [crossing["at"] for crossing in found["crossings"]] == [pytest.approx(2**0.5), pytest.approx(2**1.5)]
    assert "| behind up to 1.4, then ahead up to 2.8, then behind (measured from 1 to 4) |" in crossing_table(
        task | {"crossings": [found]}
    )


def test_curves_cross_at_a_tie_only_if_the_lead_changes():
    tie = {1.0: 2.0, 2.0: 2.0, 4.0: 2.0}
    assert [c["at"] for c in against_minutes(task_of({1.0: 1.0, 2.0: 2.0, 4.0: 5.0}, tie))["crossings"]] == [2.0]
    assert against_minutes(task_of({1.0: 1.0, 2.0: 2.0, 4.0: 1.0}, tie))["crossings"] == []
    assert against_minutes(task_of(tie, tie))["start"] == "even"


def test_runs_without_common_costs_are_not_compared():
    task = task_of({1.0: 10.0}, {1.0: 12.0})
    crossings = find_crossings(task)
    assert [(found["cost"], found["range"]) for found in crossings] == [("minutes", [1.0, 1.0]), ("updates", None)]
    row = crossing_table(task | {"crossings": crossings}).splitlines()[-1]
    assert row == "| RNN | behind (measured at 1) | no budget in common |"
