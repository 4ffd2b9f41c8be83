# SPDX-License-Identifier: Apache-2.0
"""The facts of a model card as Markdown, for the double braces of model_card.md."""

import json
import re
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any

from vanilla_transformer.comparison.markdown import escape, table
from vanilla_transformer.configuration_rnn_seq2seq import RNNSeq2SeqConfig
from vanilla_transformer.hub.card_facts import Comparison, ModelCardFacts

NOT_RECORDED = "Not recorded."
PAPER = "[Attention Is All You Need](https://arxiv.org/abs/1706.03762)"
HOW_FLOPS_ARE_COUNTED = (
    "Training FLOPs are counted as in the paper's Table 2: wall time × devices × sustained speed of one device. That "
    "speed was measured on a product of large matrices in the precision of the run. No training sustains it, so the "
    "figure is an upper estimate."
)
SIGNATURES = (
    "Signatures of the metrics, with which [sacreBLEU](https://github.com/mjpost/sacrebleu) gives the same figures:"
)


def card_text(facts: ModelCardFacts) -> dict[str, str]:
    """The variables of the template, escaped."""
    return {
        "name": escape(facts.model_name),
        "name_in_python": json.dumps(facts.model_name, ensure_ascii=False),
        "example_in_python": json.dumps(facts.example_input, ensure_ascii=False),
        "description": _description(facts),
        "training_data": _training_data(facts),
        "training": _training(facts),
        "hyperparameters": table(["", ""], list(_rows(facts.recipe))) if facts.recipe else NOT_RECORDED,
        "results": _results(facts),
        "comparison": _comparison(facts),
        "weights_license": escape(facts.weights_license or "no licence stated"),
    }


def _description(facts: ModelCardFacts) -> str:
    direction = f" for {escape(' → '.join(facts.languages))}" if facts.languages else ""
    kind = f"A Transformer encoder-decoder{direction}, as in {PAPER}."
    if facts.model_type == RNNSeq2SeqConfig.model_type:
        kind = (
            f"A recurrent encoder-decoder (RNN){direction}, the architecture that the Transformer of {PAPER} replaced."
        )
    if facts.base_model is None:
        return kind
    name = escape(facts.base_model)
    return f"{kind} Fine-tuned from {_link(name, facts.base_model) if facts.base_model_on_hub else name}."


def _link(text: str, place: str) -> str:
    return f"[{text}](https://huggingface.co/{place})"


def _training_data(facts: ModelCardFacts) -> str:
    known = {
        "Data": escape(facts.data_description or ""),
        "On the Hub": ", ".join(_link(escape(name), f"datasets/{name}") for name in facts.datasets),
        "Licence of the data": escape(facts.data_license or ""),
        "Pairs": "" if facts.pairs is None else f"{facts.pairs:,}",
    }
    if not any(known.values()):
        return NOT_RECORDED
    known["Licence of the data"] = known["Licence of the data"] or "not stated"
    return "\n".join(f"- {name}: {text}" for name, text in known.items() if text)


def _training(facts: ModelCardFacts) -> str:
    """A table, without rows for unknown facts."""
    versions = [("torch", facts.torch_version), ("transformers", facts.transformers_version)]
    flops = _flops(facts)
    known = {
        "parameters": f"{facts.parameters:,}",
        "updates": "" if facts.updates is None else f"{facts.updates:,}",
        "wall time of the updates": "" if facts.training_seconds is None else _duration(facts.training_seconds),
        "hardware": escape(facts.hardware or ""),
        "training FLOPs": flops,
        "software": escape(", ".join(f"{name} {version}" for name, version in versions if version is not None)),
    }
    text = table(["", ""], [[name, value] for name, value in known.items() if value])
    return f"{text}\n\n{HOW_FLOPS_ARE_COUNTED}" if flops else text


def _flops(facts: ModelCardFacts) -> str:
    if facts.training_seconds is None or facts.devices is None or facts.sustained_flops is None:
        return ""
    total = facts.training_seconds * facts.devices * facts.sustained_flops
    devices = "device" if facts.devices == 1 else "devices"
    return (
        f"{_power(total)} = {facts.training_seconds:,.0f} seconds × {facts.devices} {devices} × "
        f"{_power(facts.sustained_flops)} FLOP/s"
    )


def _results(facts: ModelCardFacts) -> str:
    if not facts.scores:
        return NOT_RECORDED
    rows = [[escape(score.dataset), escape(score.metric), _figure(score.value)] for score in facts.scores]
    parts = [table(["data", "metric", "value"], rows)]
    signatures = [
        f"- {escape(score.metric)} on {escape(score.dataset)}: {_code(score.signature)}"
        for score in facts.scores
        if score.signature
    ]
    return "\n\n".join([*parts, SIGNATURES, "\n".join(signatures)] if signatures else parts)


def _comparison(facts: ModelCardFacts) -> str:
    if facts.comparison is not None:
        return _comparison_table(facts.comparison)
    other = "a Transformer" if facts.model_type == RNNSeq2SeqConfig.model_type else "an RNN"
    return (
        f"This model was trained without {other} beside it. `vanilla-transformer compare` trains both kinds on the "
        "same data, with as many parameters, and reports speed, long range and quality."
    )


def _comparison_table(comparison: Comparison) -> str:
    scores = comparison.models[0].scores
    rows = [
        [
            f"{escape(model.name)}{' (this model)' if index == 0 else ''}",
            f"{model.parameters:,}",
            f"{model.updates:,}",
            _duration(model.training_seconds),
            *(_figure(score.value) for score in model.scores),
        ]
        for index, model in enumerate(comparison.models)
    ]
    datasets = ", ".join(dict.fromkeys(escape(score.dataset) for score in scores))
    header = ["model", "parameters", "updates", "wall time", *(escape(score.metric) for score in scores)]
    return (
        f"Trained on the same data, vocabulary and batches, decoded alike, and scored on {datasets}:\n\n"
        f"{table(header, rows)}\n\n{escape(comparison.difference)}"
    )


def _rows(recipe: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested sections as dotted names."""
    for key, value in recipe.items():
        if isinstance(value, Mapping):
            yield from _rows(value, f"{prefix}{key}.")
        elif value is not None:
            yield escape(f"{prefix}{key}"), escape(value if isinstance(value, str) else json.dumps(value))


def _duration(seconds: float) -> str:
    return f"{seconds:,.0f} seconds ({timedelta(seconds=round(seconds))})"


def _figure(value: float) -> str:
    return f"{value:#.4g}"


def _power(value: float) -> str:
    """As the paper writes it: 3.3 · 10^18."""
    digits, exponent = f"{value:.1e}".split("e")
    return f"{digits} · 10^{int(exponent)}"


def _code(text: str) -> str:
    """A code span: its fence is longer than any run of backticks within."""
    text = " ".join(text.split())
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    space = " " if len(fence) > 1 else ""
    return f"{fence}{space}{text}{space}{fence}"
