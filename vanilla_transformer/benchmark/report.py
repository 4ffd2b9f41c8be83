# SPDX-License-Identifier: Apache-2.0
"""The results as Markdown."""

from collections.abc import Callable
from statistics import geometric_mean
from typing import Any

from vanilla_transformer.benchmark.systems import CTRANSLATE2, FAST, GENERATE, MARIAN, TORCH
from vanilla_transformer.benchmark.thresholds import ratios, real_ratio
from vanilla_transformer.comparison.markdown import number, table

BASELINES = (MARIAN, *CTRANSLATE2.values())
OURS = (GENERATE, TORCH, *FAST.values())


def report(results: dict[str, Any]) -> str:
    """Everything that was measured; `results` as `benchmark_decoding` returns them."""
    settings, synthetic = results["settings"], results["synthetic"]
    parts = [
        "# Decoding",
        _machine(results["machine"], settings),
        "\n".join(f"- {name} is left out: {reason}." for name, reason in results["skipped"].items()),
        "## Thresholds",
        _thresholds(results["thresholds"]),
        "## Output tokens per second",
        _by_case(synthetic, lambda result: f"{result['tokens_per_second']:,.0f}"),
        f"{settings['source_tokens']} source tokens, exactly {settings['target_tokens']} target tokens, random "
        "weights; B: sentences at once, b: beams. Sentences per second are these figures divided by "
        f"{settings['target_tokens']}.",
        "## Ratios of speeds",
        _ratios(synthetic),
        "## Sentences with the targets of our fast decoder in float32",
        _by_case(synthetic, lambda result: f"{result['match']:.0%}"),
        "## Memory",
        _memory(synthetic, settings),
        "## Roofline",
        _roofline(results["roofline"], synthetic),
    ]
    if results["real"] is not None:
        parts += ["## Real sentences", _real(results["real"], settings["real"])]
    return "\n\n".join(part for part in parts if part)


def _machine(machine: dict[str, Any], settings: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version or 'not installed'}" for name, version in machine["versions"].items())
    flags = ", ".join(machine["flags"]) or "none of interest"
    return (
        f"{machine['cpu']}, {machine['cores']} cores ({flags}); {machine['threads']} threads for every system; "
        f"models in torch on {machine['device']}; {versions}. One process, the same weights; median of "
        f"{settings['timing']['repeats']} rounds, each of which measures every system once."
    )


def _thresholds(thresholds: list[dict[str, Any]]) -> str:
    words = {True: "met", False: "**not met**", None: "not measured"}
    rows = [
        [row["ratio"], f"{row['required']:.2f}", number(row["measured"], ".2f"), words[row["is_met"]]]
        for row in thresholds
    ]
    missed = sum(row["is_met"] is False for row in thresholds)
    summary = f"{missed} of {len(rows)} thresholds are not met." if missed else "No measured threshold is missed."
    return f"{table(['', 'at least', 'measured', ''], rows)}\n\n{summary}"


def _by_case(synthetic: list[dict[str, Any]], figure: Callable[[dict[str, Any]], str]) -> str:
    """A row for each system, with a figure of its result in each case."""
    cases = _cases(synthetic)
    rows = [[name, *(figure(case["results"][name]) for case in cases)] for name in cases[0]["results"]]
    return table(["", *_columns(synthetic)], rows)


def _ratios(synthetic: list[dict[str, Any]]) -> str:
    rows = []
    for baseline in BASELINES:
        for name in OURS:
            found = ratios(synthetic, name, baseline)
            if found is not None:
                rows.append(
                    [f"{name} / {baseline}", *(number(ratio, ".2f") for ratio in [*found, geometric_mean(found)])]
                )
    return table(["", *_columns(synthetic), "geometric mean"], rows)


def _memory(synthetic: list[dict[str, Any]], settings: dict[str, Any]) -> str:
    memory = {size["size"]: size["memory"] for size in synthetic}
    if None in memory.values():
        return "Not measured: peak memory is read from /proc/self/status of Linux, for models on a CPU."
    names = next(iter(memory.values()))
    rows = [[name, *(f"{peaks[name] / 2**20:,.0f}" for peaks in memory.values())] for name in names]
    return (
        f"{table(['', *memory], rows)}\n\n"
        "MiB of resident memory at its peak, weights included, the imported libraries not, in a process of its own "
        f"that decodes {max(settings['batch_sizes'])} sentences with {max(settings['beams'])} beams. Where weights "
        "were packed or quantized, the original model is still in memory."
    )


def _roofline(machine: dict[str, Any], synthetic: list[dict[str, Any]]) -> str:
    cases = _cases(synthetic)
    peaks = ", ".join(f"{precision} {peak / 1e9:,.0f}" for precision, peak in machine["peaks"].items())
    lines = [f"Memory bandwidth: {machine['bandwidth'] / 1e9:.1f} GB/s. Square products, in G operations/s: {peaks}."]
    for size in synthetic:
        rates = ", ".join(f"{precision} {rate / 1e9:.1f}" for precision, rate in size["bandwidths"].items())
        lines.append(f"Reading as many bytes as one step of {size['size']} has weights, in GB/s: {rates}.")
    rows = [
        [name, *(_fraction(case["roofline"][precision]) for case in cases)]
        for precision, name in FAST.items()
        if precision in cases[0]["roofline"]
    ]
    return "\n".join(lines) + (
        f"\n\n{table(['', *_columns(synthetic)], rows)}\n\n"
        "The roofline of a call in milliseconds, and its fraction of the measured time. Every step reads all weights "
        "once and multiplies them with all rows, at the rates above, and takes the longer of the two; attention, the "
        "softmax and the search are not counted."
    )


def _fraction(roofline: dict[str, float]) -> str:
    return f"{roofline['roofline_seconds'] * 1e3:.1f} ms, {roofline['fraction']:.0%}"


def _real(real: dict[str, Any], settings: dict[str, Any]) -> str:
    rows = []
    for name, result in real["results"].items():
        rates = (f"{result['sentences_per_second']:,.1f}", f"{result['tokens_per_second']:,.0f}")
        compared = (number(real_ratio(real, name, baseline), ".2f") for baseline in BASELINES)
        rows.append([name, str(result["batch_size"]), *rates, f"{result['bleu']:.2f}", *compared])
    header = ["", "batch", "sentences/s", "tokens/s", "BLEU", *(f"/ {baseline}" for baseline in BASELINES)]
    signature = next(iter(real["results"].values()))["bleu_signature"]
    return (
        f"{table(header, rows)}\n\n{real['sentences']:,} sentences of {settings['source']}, sorted by length; each "
        f"system at its fastest batch size of {', '.join(map(str, settings['batch_sizes']))}; {settings['beams']} "
        f"beams. Our fast decoder ranks by the paper's penalty (alpha {settings['alpha']:g}), the others by "
        f"length^{settings['length_penalty']:g}. {signature}."
    )


def _cases(synthetic: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [case for size in synthetic for case in size["cases"]]


def _columns(synthetic: list[dict[str, Any]]) -> list[str]:
    return [f"{size['size']} B{case['batch_size']} b{case['beams']}" for size in synthetic for case in size["cases"]]
