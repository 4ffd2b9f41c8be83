# SPDX-License-Identifier: Apache-2.0
"""The results of training as Markdown."""

from typing import Any

from vanilla_transformer.benchmark.report import machine_line, ratios_table, table_by_system, thresholds_table
from vanilla_transformer.benchmark.train import case_title
from vanilla_transformer.benchmark.train_systems import MARIAN, OURS, RNN, TORCH, X_TRANSFORMERS
from vanilla_transformer.comparison.markdown import table


def train_report(results: dict[str, Any]) -> str:
    """Everything that was measured; `results` as `benchmark_training` returns them."""
    settings = results["settings"]
    cases = {case_title(case): case for case in results["cases"]}
    peaks = {title: case["peak"] for title, case in cases.items()}
    parts = [
        "# Training",
        machine_line(results["machine"], settings["timing"]["repeats"]),
        "\n".join(f"- {name} is left out: {reason}." for name, reason in results["skipped"].items()),
        "## Thresholds",
        thresholds_table(results["thresholds"]),
        "## Tokens per second, source and target",
        table_by_system(cases, "results", "{tokens_per_second:,.0f}"),
        "Whole updates on sentences of one length, without padding: the figure in a case's title.",
        "## Ratios of speeds",
        ratios_table(cases, [OURS, RNN], [MARIAN, TORCH, X_TRANSFORMERS]),
        "## Share of the matrix peak",
        table_by_system(cases, "results", "{peak_share:.1%}"),
        f"6 x parameters x tokens of a side, per second, over the rate of a product of {settings['product']}-square "
        f"matrices in the same run, in G operations/s: {', '.join(f'{p / 1e9:,.0f}' for p in peaks.values())}.",
        "## Peak memory of an update",
        _memory(results["memory"], settings),
    ]
    if results["corpus"] is not None:
        parts += ["## Whole runs on real text", _corpus(results["corpus"], settings["corpus"])]
    return "\n\n".join(part for part in parts if part)


def _memory(memory: dict[str, Any], settings: dict[str, Any]) -> str:
    if None in memory.values():
        return "Not measured: peak memory is read from /proc/self/status of Linux, for models on a CPU."
    names = next(iter(memory.values()))
    rows = [[name, *(f"{peaks[name] / 2**20:,.0f}" for peaks in memory.values())] for name in names]
    tokens = settings["models"][settings["memory_size"]]["batch_tokens"]
    return (
        f"{table(['', *memory], rows)}\n\nMiB, weights, gradients and moments included, the imported libraries not; "
        f"{settings['memory_size']}, {tokens:,} target tokens of {min(settings['lengths'])} each."
    )


def _corpus(corpus: dict[str, Any], settings: dict[str, Any]) -> str:
    rows = [
        [
            name,
            *(f"{run[key]:{spec}}" for key, spec in corpus["columns"].items()),
        ]
        for name, run in corpus["runs"].items()
    ]
    header = ["", "tokens/s", "padding", "waiting for data", "seconds to the first update", "updates/s"]
    return (
        f"{table(header, rows)}\n\n{settings['updates']} updates on {settings['source']}, each run {settings['repeats']} "
        f"times in turns; tokens are real ones, source and target. Ratio of tokens/s: {corpus['ratio']:.2f}."
    )
