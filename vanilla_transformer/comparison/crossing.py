# SPDX-License-Identifier: Apache-2.0
"""Where the Transformer's curve of quality and a rival's cross, against minutes and against updates."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from vanilla_transformer.comparison.fairness import TRANSFORMER
from vanilla_transformer.comparison.markdown import escape, table
from vanilla_transformer.visualization.comparison import COSTS, learning_curve

Curve = Sequence[tuple[float, float]]  # (cost, score), the lowest cost first


def find_crossings(task: Mapping[str, Any]) -> list[dict[str, Any]]:
    """For each cost, in minutes and in updates, and each rival, where its curve crosses the Transformer's.

    Between the points measured a score changes in proportion to the logarithm of the cost.

    Args:
        task: an entry of the part `quality` of the results.

    Returns:
        `cost`, `model`, `range` (the lowest and highest cost that both curves have; `None`: they share none), `start`
        ("ahead", "behind" or "even": the Transformer at the start of the range), and `crossings`, each with the cost
        that it is `at` and its `score`.
    """
    rivals = [model for model in task["budgets"][0]["models"] if model != TRANSFORMER]
    sign = 1 if task["higher_is_better"] else -1
    found = []
    for cost in COSTS:
        own = [(x, score) for x, score, _ in learning_curve(task, TRANSFORMER, cost)]
        for model in rivals:
            other = [(x, score) for x, score, _ in learning_curve(task, model, cost)]
            found.append({"cost": cost, "model": model} | _compare(own, other, sign))
    return found


def _compare(own: Curve, other: Curve, sign: int) -> dict[str, Any]:
    low, high = max(own[0][0], other[0][0]), min(own[-1][0], other[-1][0])
    if low > high:
        return {"range": None, "start": "even", "crossings": []}
    costs = sorted({x for x, _ in (*own, *other) if low <= x <= high})
    leads = [sign * (_score_at(own, x) - _score_at(other, x)) for x in costs]
    decided = [i for i, lead in enumerate(leads) if lead != 0]
    start = "even" if not decided else "ahead" if leads[decided[0]] > 0 else "behind"
    crossings = []
    for i, j in pairwise(decided):
        if leads[i] * leads[j] < 0:
            at = costs[i + 1]  # a tie between them
            if j == i + 1:
                weight = leads[i] / (leads[i] - leads[j])
                at = math.exp((1 - weight) * math.log(costs[i]) + weight * math.log(costs[j]))
            crossings.append({"at": at, "score": _score_at(own, at)})
    return {"range": [low, high], "start": start, "crossings": crossings}


def _score_at(curve: Curve, cost: float) -> float:
    costs, scores = zip(*curve, strict=True)
    return float(np.interp(math.log(cost), np.log(costs), scores))


def crossing_table(task: Mapping[str, Any]) -> str:
    """For each rival, where the Transformer is ahead and behind."""
    cells: dict[str, list[str]] = {}
    for found in task["crossings"]:
        cells.setdefault(found["model"], []).append(_describe(found))
    header = ["rival", *(f"the {TRANSFORMER} against {cost}" for cost in COSTS)]
    return table(header, [[escape(model), *texts] for model, texts in cells.items()])


def _describe(found: Mapping[str, Any]) -> str:
    """Such as "behind up to 1.2, then ahead (measured from 0.5 to 2)"."""
    if found["range"] is None:
        return "no budget in common"
    low, high = map(_amount, found["range"])
    text, now = "", found["start"]
    for crossing in found["crossings"]:
        text += f"{now} up to {_amount(crossing['at'])}, then "
        now = "ahead" if now == "behind" else "behind"
    return f"{text}{now} (measured {f'at {low}' if low == high else f'from {low} to {high}'})"


def _amount(cost: float) -> str:
    return f"{cost:,.0f}" if cost >= 100 else f"{cost:.2g}"
