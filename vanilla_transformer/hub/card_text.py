# SPDX-License-Identifier: Apache-2.0
"""The facts of a model card as Markdown: what model_card.md has in double braces."""

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
    "speed was measured: a product of large matrices in the precision of the run. No training computes so fast all the "
    "time, so the figure is an upper estimate."
)


def card_text(facts: ModelCardFacts) -> dict[str, str]:
    """The variables of the template, escaped."""
    return {
        "name": escape(facts.model_name),
        "name_in_python": _python_string(facts.model_name),
        "example_in_python": _python_string(facts.example_input),
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
    origin = f" Fine-tuned from {_base_model(facts)}." if facts.base_model is not None else ""
    if facts.model_type == RNNSeq2SeqConfig.model_type:
        return (
            f"A recurrent encoder-decoder (RNN){direction}, the kind of model that the Transformer of {PAPER} replaced."
            f"{origin}"
        )
    return f"A Transformer encoder-decoder{direction}, as in {PAPER}.{origin}"


def _base_model(facts: ModelCardFacts) -> str:
    name = escape(facts.base_model or "")
    return f"[{name}](https://huggingface.co/{facts.base_model})" if facts.base_model_on_hub else name


def _training_data(facts: ModelCardFacts) -> str:
    links = [f"[{escape(name)}](https://huggingface.co/datasets/{name})" for name in facts.datasets]
    found = {
        "Data": escape(facts.data_description or ""),
        "On the Hub": ", ".join(links),
        "Licence of the data": escape(facts.data_license or "not stated"),
        "Pairs": "" if facts.pairs is None else f"{facts.pairs:,}",
    }
    if not (facts.data_description or links or facts.data_license or facts.pairs is not None):
        return NOT_RECORDED
    return "\n".join(f"- {name}: {text}" for name, text in found.items() if text)


def _training(facts: ModelCardFacts) -> str:
    """A table, without rows for what is unknown."""
    versions = [("torch", facts.torch_version), ("transformers", facts.transformers_version)]
    flops = _flops(facts)
    found = {
        "parameters": f"{facts.parameters:,}",
        "updates": "" if facts.updates is None else f"{facts.updates:,}",
        "wall time of the updates": "" if facts.training_seconds is None else _duration(facts.training_seconds),
        "hardware": escape(facts.hardware or ""),
        "training FLOPs": flops,
        "software": escape(", ".join(f"{name} {version}" for name, version in versions if version is not None)),
    }
    text = table(["", ""], [[name, value] for name, value in found.items() if value])
    return f"{text}\n\n{HOW_FLOPS_ARE_COUNTED}" if flops else text


def _flops(facts: ModelCardFacts) -> str:
    if facts.training_seconds is None or facts.devices is None or facts.sustained_flops is None:
        return ""
    total = facts.training_seconds * facts.devices * facts.sustained_flops
    return (
        f"{_power(total)} = {facts.training_seconds:,.0f} seconds × {facts.devices} "
        f"{'device' if facts.devices == 1 else 'devices'} × {_power(facts.sustained_flops)} FLOP/s"
    )


def _results(facts: ModelCardFacts) -> str:
    if not facts.scores:
        return NOT_RECORDED
    rows = [[escape(score.dataset), escape(score.metric), _figure(score.value)] for score in facts.scores]
    text = table(["data", "metric", "value"], rows)
    signatures = [
        f"- {escape(score.metric)} on {escape(score.dataset)}: {_code(score.signature)}"
        for score in facts.scores
        if score.signature
    ]
    if not signatures:
        return text
    explanation = (
        "Signatures of the metrics, with which [sacreBLEU](https://github.com/mjpost/sacrebleu) gives the same figures:"
    )
    return "\n\n".join([text, explanation, "\n".join(signatures)])


def _comparison(facts: ModelCardFacts) -> str:
    if facts.comparison is not None:
        return _beside(facts.comparison)
    rival = "a Transformer" if facts.model_type == RNNSeq2SeqConfig.model_type else "an RNN"
    return (
        f"This model was trained without {rival} beside it. `vanilla-transformer compare` trains both kinds on the "
        "same data, with as many parameters, and reports speed, long range and quality."
    )


def _beside(comparison: Comparison) -> str:
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
    return "\n\n".join(
        [
            f"Trained on the same data, vocabulary and batches, decoded alike, and scored on {datasets}:",
            table(header, rows),
            escape(comparison.difference),
        ]
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
    """Four digits."""
    return f"{value:#.4g}"


def _power(value: float) -> str:
    """As the paper writes it: 3.3 · 10^18."""
    digits, exponent = f"{value:.1e}".split("e")
    return f"{digits} · 10^{int(exponent)}"


def _python_string(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _code(text: str) -> str:
    """A code span: its fence is longer than any run of backticks within."""
    text = " ".join(text.split())
    longest = max(map(len, re.findall("`+", text)), default=0)
    space = " " if longest else ""
    return f"{'`' * (longest + 1)}{space}{text}{space}{'`' * (longest + 1)}"
