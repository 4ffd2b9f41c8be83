# SPDX-License-Identifier: Apache-2.0
"""The results of a sweep of two runs, by a formula."""

import random
from typing import Any

BUDGETS = [0.44, 1.33, 4.0]


def example_results() -> dict[str, Any]:
    """Nine trials for each run; trial 4 fails in the first rung, and the best are those with the highest rates."""
    return {
        "metric": "word error rate",
        "higher_is_better": False,
        "unit": "%",
        "budget_unit": "minutes",
        "budgets": BUDGETS,
        "plan": "Transformer and RNN: 3 rungs of trials",
        "runs": {"Transformer": example_run(0.0, {"model.norm_position": "post"}), "RNN": example_run(3.0, {})},
    }


def example_run(worse: float, more: dict[str, Any]) -> dict[str, Any]:
    draws, trials = random.Random(1), []
    for number in range(10):
        rate = 0.5 if number == 0 else round(10 ** draws.uniform(-1, 0.3), 4)
        settings = {"optimizer.learning_rate_scale": rate, "optimizer.warmup_steps": draws.choice([100, 200, 400])}
        settings |= {"optimizer.max_grad_norm": draws.choice([None, 1.0])} | more
        trials.append({"number": number, "settings": settings, "rungs": []})
    others = sorted(trials[1:], key=lambda trial: -trial["settings"]["optimizer.learning_rate_scale"])
    others.remove(trials[4])
    for rung, count in enumerate((8, 3, 1)):
        for trial in (trials[0], *others[:count]):
            score = 60 + worse - 12 * rung - 5 * trial["settings"]["optimizer.learning_rate_scale"]
            facts = {"minutes": BUDGETS[rung], "updates": 100 * 3**rung, "epochs": 0.5, "parameters": 800_000}
            trial["rungs"].append(facts | {"score": score, "precision": "bf16", "error": None})
    trials[4]["rungs"].append({"score": None, "error": "the loss is not finite | 10 updates were skipped"})
    importance = {"optimizer.learning_rate_scale": 0.75, "optimizer.warmup_steps": 0.25}
    overrides = ["optimizer.warmup_steps=100", "optimizer.max_grad_norm=null"]
    return {"best": others[0]["number"], "overrides": overrides, "importance": importance, "trials": trials}
