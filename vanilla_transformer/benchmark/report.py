# SPDX-License-Identifier: Apache-2.0
"""The results as Markdown."""

from statistics import geometric_mean
from typing import Any

from vanilla_transformer.benchmark.systems import CTRANSLATE2, FAST, GENERATE, MARIAN, TORCH
from vanilla_transformer.benchmark.verdicts import ratios, real_ratio
from vanilla_transformer.comparison.markdown import table

PEERS = (MARIAN, *CTRANSLATE2.values())
OURS = (GENERATE, TORCH, *FAST.values())
MIB = 2**20


def report(results: dict[str, Any]) -> str:
    """Everything that was measured; `results` as `benchmark_decoding` returns them."""
    parts = [
        "# Decoding",
        _machine(results["machine"], results["settings"]),
        _left_out(results["left_out"]),
        "## Bars",
        _bars(results["bars"]),
        "## Output tokens per second",
        _speeds(results["sizes"], results["settings"]),
        "## Ratios of speeds",
        _ratios(results["sizes"]),
        "## Sentences with the targets of the fast loop in float32",
        _same(results["sizes"]),
        "## Memory",
        _memory(results["sizes"], results["settings"]),
        "## What the machine allows",
        _limits(results["limits"], results["sizes"]),
    ]
    if results["real"] is not None:
        parts += ["## Real sentences", _real(results["real"], results["settings"]["real"])]
    return "\n\n".join(part for part in parts if part)


def _machine(machine: dict[str, Any], settings: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version or 'not installed'}" for name, version in machine["versions"].items())
    flags = ", ".join(machine["flags"]) or "none of interest"
    return (
        f"{machine['cpu']}, {machine['cores']} cores ({flags}); {machine['threads']} threads for everyone; "
        f"models in torch on {machine['device']}; {versions}. One process, the same weights; median of "
        f"{settings['timing']['repeats']} rounds, in each of which every contender is measured once."
    )


def _left_out(left_out: dict[str, str]) -> str:
    return "\n".join(f"- {name} is left out: {reason}." for name, reason in left_out.items())


def _bars(bars: list[dict[str, Any]]) -> str:
    words = {True: "met", False: "**not met**", None: "not measured"}
    rows = [[bar["what"], f"{bar['required']:.2f}", _ratio(bar["measured"]), words[bar["is_met"]]] for bar in bars]
    unmet = sum(bar["is_met"] is False for bar in bars)
    summary = f"{unmet} of {len(bars)} bars are not met." if unmet else "No measured bar is missed."
    return f"{table(['', 'at least', 'measured', ''], rows)}\n\n{summary}"


def _speeds(sizes: list[dict[str, Any]], settings: dict[str, Any]) -> str:
    rows = [
        [name, *(f"{cell['results'][name]['tokens_per_second']:,.0f}" for cell in _cells(sizes))]
        for name in _names(sizes)
    ]
    note = (
        f"{settings['source_tokens']} source tokens, exactly {settings['target_tokens']} target tokens, random "
        f"weights; B: sentences at once, b: beams. Sentences per second are a {settings['target_tokens']}th of it."
    )
    return f"{table(['', *_columns(sizes)], rows)}\n\n{note}"


def _ratios(sizes: list[dict[str, Any]]) -> str:
    rows = []
    for peer in PEERS:
        for name in OURS:
            found = ratios(sizes, name, peer)
            if found is not None:
                rows.append([f"{name} / {peer}", *map(_ratio, found), _ratio(geometric_mean(found))])
    return table(["", *_columns(sizes), "geometric mean"], rows)


def _same(sizes: list[dict[str, Any]]) -> str:
    rows = [[name, *(f"{cell['results'][name]['same']:.0%}" for cell in _cells(sizes))] for name in _names(sizes)]
    return table(["", *_columns(sizes)], rows)


def _memory(sizes: list[dict[str, Any]], settings: dict[str, Any]) -> str:
    if any(size["memory"] is None for size in sizes):
        return "Not measured: resident memory is read from /proc/self/statm, and is that of models on a CPU."
    rows = [[name, *(f"{size['memory'][name] / MIB:,.0f}" for size in sizes)] for name in _names(sizes)]
    return (
        f"{table(['', *(size['size'] for size in sizes)], rows)}\n\n"
        "MiB of resident memory at its peak, beyond the imported libraries, weights included, in a process of its own "
        f"that decodes {max(settings['batch_sizes'])} sentences with {max(settings['beams'])} beams. Where weights "
        "were laid out anew or quantized, the model that they came from is still there."
    )


def _limits(limits: dict[str, Any], sizes: list[dict[str, Any]]) -> str:
    peaks = ", ".join(f"{precision} {peak / 1e9:,.0f}" for precision, peak in limits["peaks"].items())
    lines = [f"Memory is read with {limits['bandwidth'] / 1e9:.1f} GB/s. Square products, in G operations/s: {peaks}."]
    for size in sizes:
        bandwidths = (f"{one} {rate / 1e9:.1f}" for one, rate in size["bandwidths"].items())
        lines.append(f"As many bytes as a step of {size['size']} has weights, in GB/s: {', '.join(bandwidths)}.")
    precisions = sorted({precision for cell in _cells(sizes) for precision in cell["limits"]}, key=list(FAST).index)
    rows = [[FAST[one], *(_reached(cell["limits"][one]) for cell in _cells(sizes))] for one in precisions]
    return "\n".join(lines) + (
        f"\n\n{table(['', *_columns(sizes)], rows)}\n\n"
        "The least milliseconds of a call, and the share of it that the call reached (least / measured). The least: in "
        "every step all weights are read once and multiplied with all rows, at the rates above, whichever takes "
        "longer; attention, the softmax and the search are not counted."
    )


def _reached(limit: dict[str, float]) -> str:
    return f"{limit['roofline_seconds'] * 1e3:.1f} ms, {limit['reached']:.0%}"


def _real(real: dict[str, Any], settings: dict[str, Any]) -> str:
    rows = []
    for name, one in real["results"].items():
        rates = (f"{one['sentences_per_second']:,.1f}", f"{one['tokens_per_second']:,.0f}")
        compared = (_ratio(real_ratio(real, name, peer)) for peer in PEERS)
        rows.append([name, str(one["batch_size"]), *rates, f"{one['bleu']:.2f}", *compared])
    header = ["", "batch", "sentences/s", "tokens/s", "BLEU", *(f"/ {peer}" for peer in PEERS)]
    signature = next(iter(real["results"].values()))["bleu_signature"]
    return (
        f"{table(header, rows)}\n\n{real['sentences']:,} sentences of {settings['source']}, sorted by length; each "
        f"at the fastest of {', '.join(map(str, settings['batch_sizes']))} at once; {settings['beams']} beams. "
        f"The fast loop ranks by the paper's penalty (alpha {settings['alpha']:g}), the others by "
        f"length^{settings['length_penalty']:g}. {signature}."
    )


def _cells(sizes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [cell for size in sizes for cell in size["cells"]]


def _columns(sizes: list[dict[str, Any]]) -> list[str]:
    return [f"{size['size']} B{cell['batch_size']} b{cell['beams']}" for size in sizes for cell in size["cells"]]


def _names(sizes: list[dict[str, Any]]) -> list[str]:
    return list(_cells(sizes)[0]["results"])


def _ratio(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
