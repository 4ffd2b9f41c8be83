# SPDX-License-Identifier: Apache-2.0
"""The results as Markdown."""

from collections.abc import Iterable
from statistics import geometric_mean
from typing import Any

from vanilla_transformer.benchmark.systems import CTRANSLATE2, FAST, GENERATE, MARIAN, TORCH
from vanilla_transformer.benchmark.thresholds import ratios
from vanilla_transformer.comparison.markdown import MISSING, number, table

BASELINES = (MARIAN, *CTRANSLATE2.values())
OURS = (GENERATE, TORCH, *FAST.values())


def report(results: dict[str, Any]) -> str:
    """Everything that was measured; `results` as `benchmark_decoding` returns them."""
    settings, synthetic = results["settings"], results["synthetic"]
    cases = {
        f"{size['size']} B{case['batch_size']} b{case['beams']}": case for size in synthetic for case in size["cases"]
    }
    parts = [
        "# Decoding",
        f"{machine_line(results['machine'])} {results['machine']['threads']} threads for every system; one process, "
        f"the same weights; {rounds_line(settings['timing']['repeats'])}",
        skipped_lines(results["skipped"]),
        "## Thresholds",
        thresholds_table(results["thresholds"]),
        "## Output tokens per second",
        table_by_system(cases, "results", "{tokens_per_second:,.0f}"),
        f"{settings['source_tokens']} source tokens, exactly {settings['target_tokens']} target tokens, random "
        "weights; B: sentences at once, b: beams. Sentences per second are these figures divided by "
        f"{settings['target_tokens']}.",
        "## Ratios of speeds",
        ratios_table(cases, OURS, BASELINES),
        "## Sentences with the targets of our fast decoder in float32",
        table_by_system(cases, "results", "{match:.0%}"),
        "## Memory",
        _memory(synthetic, settings),
        "## Roofline",
        _roofline(results["roofline"], synthetic, cases),
    ]
    if results["real"] is not None:
        parts += ["## Real sentences", _real(results["real"], settings["real"])]
    return "\n\n".join(part for part in parts if part)


def machine_line(machine: dict[str, Any]) -> str:
    """What `describe_machine` found."""
    versions = ", ".join(f"{name} {version or 'not installed'}" for name, version in machine["versions"].items())
    flags = ", ".join(machine["flags"]) or "none of interest"
    return f"{machine['cpu']}, {machine['cores']} cores ({flags}); every model on {machine['device']}; {versions}."


def rounds_line(rounds: int) -> str:
    """How often the systems took turns."""
    return f"median of {rounds} rounds, each of which measures every system once."


def skipped_lines(skipped: dict[str, str]) -> str:
    """The systems that could not run, and why."""
    return "\n".join(f"- {name} is left out: {reason}." for name, reason in skipped.items())


def thresholds_table(thresholds: list[dict[str, Any]]) -> str:
    """What `check_thresholds` found, and how many thresholds are missed."""
    words = {True: "met", False: "**not met**", None: "not measured"}
    rows = [
        [row["ratio"], f"{row['required']:.2f}", number(row["measured"], ".2f"), words[row["is_met"]]]
        for row in thresholds
    ]
    missed = sum(row["is_met"] is False for row in thresholds)
    summary = f"{missed} of {len(rows)} thresholds are not met." if missed else "No measured threshold is missed."
    return f"{table(['', 'at least', 'measured', ''], rows)}\n\n{summary}"


def table_by_system(cases: dict[str, dict[str, Any]], part: str, cell: str) -> str:
    """A row for each system, and a column for each case by its title.

    Args:
        part: the key of a case's dictionary by system.
        cell: a format for its values, which are dictionaries.
    """
    names = next(iter(cases.values()))[part]
    rows = [[name, *(cell.format(**case[part][name]) for case in cases.values())] for name in names]
    return table(["", *cases], rows)


def ratios_table(cases: dict[str, dict[str, Any]], systems: Iterable[str], baselines: Iterable[str]) -> str:
    """Speeds over those of each baseline, in each case and as geometric mean."""
    pairs = {f"{name} / {baseline}": (name, baseline) for baseline in baselines for name in systems}
    found = {title: ratios(list(cases.values()), *pair) for title, pair in pairs.items()}
    rows = [
        [title, *(f"{ratio:.2f}" for ratio in [*each, geometric_mean(each)])] for title, each in found.items() if each
    ]
    return table(["", *cases, "geometric mean"], rows)


def _memory(synthetic: list[dict[str, Any]], settings: dict[str, Any]) -> str:
    memory = {size["size"]: size["memory"] for size in synthetic}
    if None in memory.values():
        return "Not measured: peak memory is read from /proc/self/status of Linux, for models on a CPU."
    names = next(iter(memory.values()))
    rows = [[name, *(f"{peaks[name] / 2**20:,.0f}" for peaks in memory.values())] for name in names]
    return (
        f"{table(['', *memory], rows)}\n\n"
        "MiB of resident memory at its peak, weights included, the imported libraries not, in a process of its own "
        f"that decodes {max(settings['batch_sizes'])} sentences with {max(settings['beams'])} beams, from a model "
        "folder. The native engine gives back the folder's weights, and the other systems in torch keep them."
    )


def _roofline(machine: dict[str, Any], synthetic: list[dict[str, Any]], cases: dict[str, dict[str, Any]]) -> str:
    peaks = ", ".join(f"{precision} {peak / 1e9:,.0f}" for precision, peak in machine["peaks"].items())
    lines = [f"Memory bandwidth: {machine['bandwidth'] / 1e9:.1f} GB/s. Square products, in G operations/s: {peaks}."]
    for size in synthetic:
        rates = ", ".join(f"{precision} {rate / 1e9:.1f}" for precision, rate in size["bandwidths"].items())
        lines.append(f"Reading as many bytes as one step of {size['size']} has weights, in GB/s: {rates}.")
    rows = []
    for name in next(iter(cases.values()))["roofline"]:
        found = [case["roofline"][name] for case in cases.values()]
        rows.append([name, *(f"{bound['roofline_seconds'] * 1e3:.1f} ms, {bound['fraction']:.0%}" for bound in found)])
    return "\n".join(lines) + (
        f"\n\n{table(['', *cases], rows)}\n\n"
        "The roofline of a call in milliseconds, and its fraction of the measured time. Every step reads all weights "
        "once and multiplies them with all rows, at the rates above, and takes the longer of the two; attention, the "
        "softmax and the search are not counted. Above 100% a system multiplies faster than the square product of the "
        "same precision."
    )


def _real(real: dict[str, Any], settings: dict[str, Any]) -> str:
    cells = ("{batch_size}", "{sentences_per_second:,.1f}", "{tokens_per_second:,.0f}", "{bleu:.2f}")
    rows = []
    for name, result in real["results"].items():
        compared = (ratios([real], name, baseline) for baseline in BASELINES)
        compared = (f"{found[0]:.2f}" if found else MISSING for found in compared)
        rows.append([name, *(cell.format(**result) for cell in cells), *compared])
    header = ["", "batch", "sentences/s", "tokens/s", "BLEU", *(f"/ {baseline}" for baseline in BASELINES)]
    signature = next(iter(real["results"].values()))["bleu_signature"]
    return (
        f"{table(header, rows)}\n\n{real['sentences']:,} sentences of {settings['source']}, sorted by length; each "
        f"system at its fastest batch size of {', '.join(map(str, settings['batch_sizes']))}; {settings['beams']} "
        f"beams. Our fast decoder ranks by the paper's penalty (alpha {settings['alpha']:g}), the others by "
        f"length^{settings['length_penalty']:g}. {signature}."
    )
