# SPDX-License-Identifier: Apache-2.0
"""The tables of the report's section on speed. `vanilla_transformer.comparison.report` documents the results."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from vanilla_transformer.comparison.fairness import TRANSFORMER
from vanilla_transformer.comparison.markdown import MISSING, escape, plural, table, with_extremes
from vanilla_transformer.visualization.comparison import Rows, Styles, models_in_order, training_rows

CASE = ("precision", "threads", "batch_size", "length")  # what rows are compared within


def by_case(rows: Rows, keys: Sequence[str] = CASE) -> dict[tuple[Any, ...], dict[str, Any]]:
    """The values of `keys` → model → its row."""
    cases: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        cases.setdefault(tuple(row[key] for key in keys), {})[row["model"]] = row
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
    for (batch_size, length), case in by_case(shown, ("batch_size", "length")).items():
        speeds = [with_extremes(case[model]["tokens_per_second"], median, ",.0f") for model in models]
        rows.append([f"{length:,}", str(batch_size), *speeds, case[TRANSFORMER]["attention"]])
    header = ["length (tokens)", "sequences in a batch", *map(escape, models)]
    return table([*header, f"attention of the {TRANSFORMER}"], rows)


def ratio_table(speed: Mapping[str, Any], styles: Styles) -> str:
    """The Transformer's speed over each rival's in every setting, length and size of the batch."""
    rivals = [model for model in models_in_order(styles, speed["rows"]) if model != TRANSFORMER]
    rows = []
    cases = by_case(speed["rows"])
    for precision, threads, batch_size, length in sorted(cases, key=_by_setting):
        case = cases[precision, threads, batch_size, length]
        ratios = [_ratio(case[TRANSFORMER], case[rival]) for rival in rivals]
        rows.append([precision, _threads(threads), str(batch_size), f"{length:,}", *ratios])
    return table(["precision", "threads", "sequences in a batch", "length", *map(escape, rivals)], rows)


def scaling_table(speed: Mapping[str, Any], styles: Styles) -> str | None:
    """How many times as fast each model is with the most threads as with the fewest; `None` without both."""
    counts = sorted({row["threads"] for row in speed["rows"] if row["threads"] is not None})
    if len(counts) < 2:
        return None
    models = models_in_order(styles, speed["rows"])
    cases, rows = by_case(speed["rows"]), []
    for precision, threads, batch_size, length in sorted(cases, key=_by_setting):
        fewest = cases.get((precision, counts[0], batch_size, length))
        if threads == counts[-1] and fewest is not None:
            most = cases[precision, threads, batch_size, length]
            gains = [_ratio(most[model], fewest[model]) for model in models]
            rows.append([precision, str(batch_size), f"{length:,}", *gains])
    return table(["precision", "sequences in a batch", "length", *map(escape, models)], rows)


def _by_setting(case: tuple[Any, ...]) -> tuple[Any, ...]:
    """Setting by setting: whole batches from the shortest length to the longest, then one sequence at a time."""
    precision, threads, batch_size, length = case
    return precision, threads, batch_size == 1, length


def _ratio(row: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """Of repeats, which are paired: they were measured one after the other."""
    pairs = zip(row["tokens_per_second"], other["tokens_per_second"], strict=True)
    return with_extremes([speed / others for speed, others in pairs], median, ".2f")


def kernel_table(speed: Mapping[str, Any], styles: Styles) -> str:
    """What Table 1 of the paper says of each model's layers, beside what torch calls to compute them."""
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


def _threads(threads: int | None) -> str:
    return MISSING if threads is None else str(threads)
