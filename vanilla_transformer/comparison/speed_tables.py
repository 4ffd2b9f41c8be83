# SPDX-License-Identifier: Apache-2.0
"""The tables of the report's section on speed. `vanilla_transformer.comparison.report` documents the results."""

from collections.abc import Mapping
from statistics import median
from typing import Any

from vanilla_transformer.comparison.fairness import TRANSFORMER
from vanilla_transformer.comparison.markdown import escape, plural, table, with_extremes
from vanilla_transformer.visualization.comparison import Rows, Styles, models_in_order, training_rows


def by_case(rows: Rows) -> dict[tuple[Any, ...], dict[str, Any]]:
    """(precision, threads, batch size, length) → model → its row."""
    cases: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        case = row["precision"], row["threads"], row["batch_size"], row["length"]
        cases.setdefault(case, {})[row["model"]] = row
    return cases


def describe_setting(setting: Mapping[str, Any]) -> str:
    """Such as "bfloat16, 2 threads"."""
    threads = setting["threads"]
    return setting["precision"] if threads is None else f"{setting['precision']}, {plural(threads, 'thread')}"


def speed_table(speed: Mapping[str, Any], styles: Styles) -> str:
    """Tokens per second in the setting of training, by length and size of the batch."""
    whole, alone = training_rows(speed)
    shown = [*whole, *(row for row in alone if row not in whole)]
    models = models_in_order(styles, shown)
    rows = []
    for (_, _, batch_size, length), case in by_case(shown).items():
        speeds = [with_extremes(case[model]["tokens_per_second"], median, ",.0f") for model in models]
        rows.append([f"{length:,}", str(batch_size), *speeds, case[TRANSFORMER]["attention"]])
    header = ["length (tokens)", "sequences in a batch", *map(escape, models)]
    return table([*header, f"attention of the {TRANSFORMER}"], rows)


def scaling_table(speed: Mapping[str, Any], styles: Styles) -> str | None:
    """How many times as fast each model is with the most threads as with the fewest; `None` without both."""
    counts = sorted({row["threads"] for row in speed["rows"] if row["threads"] is not None})
    if len(counts) < 2:
        return None
    models = models_in_order(styles, speed["rows"])
    cases, rows = by_case(speed["rows"]), []
    for (precision, threads, batch_size, length), most in cases.items():
        fewest = cases.get((precision, counts[0], batch_size, length))
        if threads == counts[-1] and fewest is not None:
            gains = [_ratios(most[model], fewest[model]) for model in models]
            cells = [with_extremes(ratios, median, ".2f") for ratios in gains]
            rows.append([f"{length:,}", str(batch_size), precision, *cells])
    return table(["length (tokens)", "sequences in a batch", "precision", *map(escape, models)], rows)


def _ratios(row: Mapping[str, Any], other: Mapping[str, Any]) -> list[float]:
    """The ratio of each pair of repeats; repeats at the same place were measured one after the other."""
    pairs = zip(row["tokens_per_second"], other["tokens_per_second"], strict=True)
    return [speed / of_other for speed, of_other in pairs]


def kernel_table(speed: Mapping[str, Any], styles: Styles) -> str:
    """Each model's row of Table 1 of the paper, beside the kernels that torch calls."""
    rows = []
    for model in (model for model in styles if model in speed["kernels"]):
        kernel = speed["kernels"][model]
        sequential = "1" if kernel["layer"] == "self-attention" else "n"
        calls = [_calls(kernel["layer"], kernel[key]) for key in ("calls_per_token", "calls_per_token_padded")]
        operator = f"`{kernel['operator']}` ({kernel['share']:.0%})"
        rows.append([escape(model), kernel["layer"], sequential, *calls, operator])
    header = ["model", "layers", "sequential operations, longest path", "kernels", "kernels, with padding"]
    return table([*header, "most time in"], rows)


def _calls(layer: str, per_token: float) -> str:
    """With fewer calls than tokens, one call computes all tokens."""
    if per_token < 1:
        return "all tokens at once" if layer == "self-attention" else "fused: one call reads all tokens"
    return f"not fused: {plural(round(per_token), 'call')} for each token"
