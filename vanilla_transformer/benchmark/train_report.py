# SPDX-License-Identifier: Apache-2.0
"""The results of training as Markdown."""

from typing import Any

from vanilla_transformer.benchmark.report import machine_line, rounds_line, skipped_lines, thresholds_table
from vanilla_transformer.benchmark.thresholds import ratios
from vanilla_transformer.benchmark.train import case_title
from vanilla_transformer.benchmark.train_configuration import BASELINES, OURS, RNN
from vanilla_transformer.comparison.markdown import MISSING, table

PAPER_UPDATES = {"base": 100_000, "big": 300_000}  # section 5.2, of 25,000 + 25,000 tokens each


def train_report(results: dict[str, Any]) -> str:
    """Everything that was measured; `results` as `benchmark_training` returns them."""
    settings, cases = results["settings"], results["cases"]
    parts = [
        "# Training",
        f"{machine_line(results['machine'])} Whole updates in one process; "
        f"{rounds_line(settings['timing']['repeats'])}",
        skipped_lines(results["skipped"]),
        "## Thresholds",
        thresholds_table(results["thresholds"]),
        "## Tokens per second, and share of the matrix peak",
        _speeds(cases, [name for name in settings["systems"] if name not in results["skipped"]]),
        "Tokens of source and target, without padding: every sentence has the length in the first column. The share is "
        "6 x parameters x tokens of a side, per second, over the rate of a product of "
        f"{settings['product']}-square matrices in the same run: the last column, in G operations/s.",
        *(f"{name} had no memory for {case_title(case)}." for case in cases for name in case["no_memory"]),
        "## Ratios of speeds",
        _ratios(cases),
        *(_paper_hours(cases, size) for size in PAPER_UPDATES if any(case["size"] == size for case in cases)),
        "## Peak memory of an update",
        _memory(results["memory"], settings),
    ]
    if results["corpus"] is not None:
        parts += ["## Whole runs on real text", _corpus(results["corpus"], settings["corpus"])]
    return "\n\n".join(part for part in parts if part)


def _speeds(cases: list[dict[str, Any]], names: list[str]) -> str:
    rows = []
    for case in cases:
        found = [case["results"].get(name) for name in names]
        cells = ("{tokens_per_second:,.0f} ({peak_share:.0%})".format(**each) if each else MISSING for each in found)
        rows.append([case_title(case), *cells, f"{case['peak'] / 1e9:,.0f}"])
    return table(["", *names, "peak"], rows)


def _ratios(cases: list[dict[str, Any]]) -> str:
    pairs = [*((OURS, name) for name in BASELINES), (OURS, RNN)]
    rows = [
        [case_title(case), *("".join(f"{ratio:.2f}" for ratio in ratios([case], *pair)) or MISSING for pair in pairs)]
        for case in cases
    ]
    return table(["", *(f"{name} / {other}" for name, other in pairs)], rows)


def _paper_hours(cases: list[dict[str, Any]], size: str) -> str:
    speeds = [
        case["results"][OURS]["tokens_per_second"] for case in cases if case["size"] == size and OURS in case["results"]
    ]
    if not speeds:
        return ""
    hours = PAPER_UPDATES[size] * 50_000 / max(speeds) / 3600
    return (
        f"At the best of these rates the paper's {PAPER_UPDATES[size]:,} updates of {size}, 25,000 + 25,000 tokens "
        f"each, would take {hours:,.1f} hours."
    )


def _memory(memory: dict[str, dict[str, int]], settings: dict[str, Any]) -> str:
    if not all(memory.values()):
        return "Not measured: peak memory is known for CUDA, and under Linux for CPUs."
    names = next(iter(memory.values()))
    rows = [[name, *(f"{peaks[name] / 2**20:,.0f}" for peaks in memory.values())] for name in names]
    return (
        f"{table(['', *memory], rows)}\n\nMiB, weights, gradients and moments included, the imported libraries not; "
        f"{settings['memory_size']}, {settings['memory_tokens']:,} tokens a side in sentences of "
        f"{min(settings['lengths'])}; in a process of its own."
    )


def _corpus(corpus: dict[str, Any], settings: dict[str, Any]) -> str:
    columns = {
        "tokens/s": "{tokens_per_second:,.0f}",
        "padding": "{padding_share:.1%}",
        "between updates": "{waiting_share:.1%}",
        "seconds to the first update": "{first_update:.1f}",
        "pairs a batch": "{pairs:.0f}",
    }
    rows = [[name, *(cell.format(**figures) for cell in columns.values())] for name, figures in corpus["runs"].items()]
    return (
        f"{table(['', *columns], rows)}\n\n"
        f"{settings['updates']} updates of {settings['size']} on {settings['source']}, "
        f"mixed precision {settings['mixed_precision']}; medians of {settings['repeats']} runs in turns, each in a new "
        "process with warm caches. Tokens are real ones of both sides. Between updates: from an optimizer's step to "
        "the next forward pass, where a run waits for data. The first update: from the start of the process to the end "
        f"of its step. Ratio of tokens/s: {corpus['ratio']:.2f}."
    )
