# SPDX-License-Identifier: Apache-2.0
"""The report of a comparison: report.md and its plots, computed from the results alone.

The results are one dict, saved as results.json: `machines`, where and when each part was measured (device, threads,
torch, transformers, date), and three parts, each `None` if it was left out:

- `speed`: `device`, `parameters` of each model, `training` (`precision` and `threads` of the setting that training
  uses), `left_out` (settings that were not measured, and why), `kernels` of each model (`layer`, a row of Table 1,
  `attention`, and what `describe_kernels` returns), and `rows`, one for a model, a length (tokens), a `batch_size`
  (sequences; 1 is one sequence at a time), a `precision` and a number of `threads` (`None` on devices other than
  CPUs), with `attention` (the Transformer's backend, the fastest there) and `tokens_per_second`, the target tokens per
  second of each repeat;
- `long_range`: `device`, `parameters`, `test_sequences`, `chance` (accuracy, 0 to 1) of each task, `gradients`
  (`model`, `seed`, `when`: "initialisation" or "after training", and `norms` for each distance from 0) and `tasks`
  (`task`, `model`, `seed`, `trained_at`, `updates`, `seconds`, and `accuracy` (0 to 1) by distance, as a string);
- `quality`: for each task `task`, `metric`, `higher_is_better`, `unit`, `signature`, `sentences` (number),
  `vocab_size`, `budgets`, those of updates first and the most minutes last, and `crossings` (see `find_crossings`).
  Each budget is a run of every model: `budget` ("equal updates" or "equal time"), `amount` in words, `updates` or
  `minutes` (the other is `None`), the scores of the `models`, the `paired` comparisons with the Transformer, the scores
  `by_length` of the source, and `examples`.
"""

from collections.abc import Mapping
from pathlib import Path
from statistics import mean, median
from typing import Any

from jinja2 import Environment, StrictUndefined

from vanilla_transformer.comparison.crossing import crossing_table
from vanilla_transformer.comparison.fairness import TRANSFORMER
from vanilla_transformer.comparison.intervals import CONFIDENCE_LEVEL
from vanilla_transformer.comparison.markdown import (
    MISSING,
    escape,
    number,
    plural,
    table,
    with_extremes,
    with_range,
)
from vanilla_transformer.comparison.speed import PRECISIONS
from vanilla_transformer.comparison.speed_tables import (
    describe_setting,
    kernel_table,
    scaling_table,
    speed_table,
)
from vanilla_transformer.comparison.verdicts import (
    AHEAD,
    BEHIND,
    UNCLEAR,
    Finding,
    Verdict,
    accuracies_by_model,
    count_outcomes,
    p_text,
    verdicts,
)
from vanilla_transformer.training.reporting import truncate
from vanilla_transformer.visualization import comparison as plots
from vanilla_transformer.visualization.comparison import DISTANCE_UNITS, STAGES, TASK_TITLES, Rows, Styles
from vanilla_transformer.visualization.style import model_styles

TEMPLATE = Path(__file__).with_name("report_template.md")


def write_report(results: Mapping[str, Any], folder: Path) -> None:
    """Write `folder/report.md`, which is `report_template.md` filled in, and its plots, over existing ones."""
    speed, long_range, quality = results["speed"], results["long_range"], results["quality"]
    parameters = _parameters_by_part(results)
    models = dict.fromkeys(model for part in parameters.values() for model in part)
    styles = model_styles({model: model for model in sorted(models, key=lambda model: model != TRANSFORMER)})
    facts = {
        **results,
        "machines": _machines(results["machines"]),
        "verdicts": [verdict for judged in verdicts(results).values() for verdict in judged],
        "parameter_table": _parameter_table(parameters, styles),
        "styles": styles,
        "titles": TASK_TITLES,
        "units": DISTANCE_UNITS,
        "confidence": f"{CONFIDENCE_LEVEL:.0%}",
        "error": f"{1 - CONFIDENCE_LEVEL:.2g}",
        "config": folder / "config.yaml",
    }
    if speed:
        plots.plot_speed(speed, styles).savefig(folder / "speed.png")
        facts["training_setting"] = describe_setting(speed["training"])
        facts["tables"] = {
            "speed": speed_table(speed, styles),
            "scaling": scaling_table(speed, styles),
            "kernels": kernel_table(speed, styles),
        }
    if long_range:
        runs, gradients = long_range["tasks"], long_range["gradients"]
        plots.plot_long_range(runs, long_range["chance"], styles).savefig(folder / "long_range.png")
        facts["task_table"] = lambda task: _task_table([run for run in runs if run["task"] == task], styles)
        if gradients:
            plots.plot_gradients(gradients, styles).savefig(folder / "gradients.png")
            facts["farthest"] = len(gradients[0]["norms"]) - 1
            facts["gradient_table"] = _gradient_table(gradients, styles)
    if quality:
        plots.plot_learning_curves(quality, styles).savefig(folder / "quality.png")
        plots.plot_quality_by_length(quality, styles).savefig(folder / "quality_by_length.png")
    options: dict[str, Any] = {"trim_blocks": True, "lstrip_blocks": True, "keep_trailing_newline": True}
    environment = Environment(undefined=StrictUndefined, **options)
    environment.filters["escape"] = escape  # for Markdown
    environment.globals |= {"budget_table": _budget_table, "length_table": _length_table}
    environment.globals |= {"example_table": _example_table, "scale": _scale, "verdict_table": _verdict_table}
    environment.globals |= {"crossing_table": crossing_table}
    text = environment.from_string(TEMPLATE.read_text("utf-8")).render(facts)
    (folder / "report.md").write_text(text, encoding="utf-8", newline="\n")


def _parameters_by_part(results: Mapping[str, Any]) -> dict[str, Mapping[str, int]]:
    """Part or task of quality → model → number of parameters: a model may have another size in each."""
    titles = {"speed": "speed", "long_range": "long range"}
    parts = {title: results[part]["parameters"] for part, title in titles.items() if results[part]}
    for task in results["quality"] or []:
        models = task["budgets"][0]["models"]
        parts[task["task"]] = {name: model["parameters"] for name, model in models.items()}
    return parts


def _machines(machines: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A sentence for each machine and day; most comparisons have one."""
    parts: dict[str, list[str]] = {}
    for part, machine in machines.items():
        line = (
            f"{machine['date']}: {machine['device']}, {plural(machine['threads'], 'thread')}, "
            f"torch {machine['torch']}, transformers {machine['transformers']}."
        )
        parts.setdefault(line, []).append(part.replace("_", " "))
    return [f"({', '.join(names)}) on {escape(line)}" for line, names in parts.items()]


def _parameter_table(parameters: Mapping[str, Mapping[str, int]], styles: Styles) -> str:
    rows = [[escape(model), *(number(part.get(model), ",") for part in parameters.values())] for model in styles]
    return table(["model", *map(escape, parameters)], rows)


def _verdict_table(verdict: Verdict) -> str:
    """A row for each rival in each group: the outcome and the difference in every setting, and their counts."""
    settings = list(dict.fromkeys(finding.pair.setting for finding in verdict.findings))
    found: dict[tuple[str, str], dict[str, Finding]] = {}
    for finding in verdict.findings:
        found.setdefault((finding.pair.group, finding.pair.rival), {})[finding.pair.setting] = finding
    rows = []
    for (group, rival), findings in found.items():
        cells = [f"{findings[s].outcome}: {findings[s].difference}" if s in findings else MISSING for s in settings]
        counts = " / ".join(map(str, count_outcomes(findings.values()).values()))
        rows.append([*([escape(group)] if group else []), escape(rival), counts, *cells])
    groups = ["task"] if verdict.findings[0].pair.group else []
    return table([*groups, "rival", f"{AHEAD} / {BEHIND} / {UNCLEAR}", *map(escape, settings)], rows)


def _gradient_table(gradients: Rows, styles: Styles) -> str:
    rows = []
    for model in plots.models_in_order(styles, gradients):
        runs = [run for run in gradients if run["model"] == model]
        norms = [[plots.relative_norms(run)[-1] for run in runs if run["when"] == when] for when in STAGES]
        rows.append([escape(model), *(with_extremes(seeds, median, ".2g") for seeds in norms)])
    return table(["model", *STAGES.values()], rows)


def _task_table(runs: Rows, styles: Styles) -> str:
    distances = sorted(map(int, runs[0]["accuracy"]))
    accuracies = {distance: accuracies_by_model(runs, [distance]) for distance in distances}
    rows = []
    for model in plots.models_in_order(styles, runs):
        model_runs = [run for run in runs if run["model"] == model]
        minutes = median(run["seconds"] for run in model_runs) / 60
        updates = median(run["updates"] for run in model_runs)
        cells = [with_extremes(accuracies[distance][model], mean) for distance in distances]
        rows.append([escape(model), *cells, str(len(model_runs)), f"{updates:,.0f}", f"{minutes:.1f}"])
    columns = [f"{d:,} (as trained)" if d == runs[0]["trained_at"] else f"{d:,}" for d in distances]
    return table(["model", *columns, "seeds", "updates (median)", "minutes (median)"], rows)


def _budget_table(task: Mapping[str, Any], result: Mapping[str, Any], styles: Styles) -> str:
    pairs = {pair["model"]: f"{pair['difference']:+.1f}, {p_text(pair['p_value'])}" for pair in result["paired"]}
    rows = []
    for model in (model for model in styles if model in result["models"]):
        facts = result["models"][model]
        score = with_range(facts["score"], *facts["interval"])
        minutes, speed = f"{facts['training_seconds'] / 60:.1f}", f"{facts['target_tokens_per_second']:,.0f}"
        precision = PRECISIONS[facts["mixed_precision"]]
        amounts = [f"{facts['updates']:,}", f"{facts['epochs']:.1f}", minutes, precision, speed]
        rows.append([escape(model), score, pairs.get(model, MISSING), *amounts])
    difference = f"difference to {TRANSFORMER}"
    header = [
        "model",
        escape(task["metric"]),
        difference,
        "updates",
        "epochs",
        "minutes",
        "precision",
        "target tokens/s",
    ]
    return table(header, rows)


def _length_table(result: Mapping[str, Any], styles: Styles) -> str:
    models = [model for model in styles if model in result["models"]]
    rows = [
        [escape(row["bucket"]), f"{row['sentences']:,}", *(f"{row['scores'][model]:.1f}" for model in models)]
        for row in result["by_length"]
    ]
    return table(["source tokens", "sentences", *map(escape, models)], rows)


def _example_table(example: Mapping[str, Any], styles: Styles) -> str:
    texts = {"source": example["source"], "reference": example["reference"]}
    texts |= {model: example["outputs"][model] for model in styles if model in example["outputs"]}
    return table(["", "text"], [[escape(name), escape(truncate(text, 200))] for name, text in texts.items()])


def _scale(task: Mapping[str, Any]) -> str:
    better = "higher" if task["higher_is_better"] else "lower"
    return f"{escape(task['metric'])} in {escape(task['unit'])}, {better} is better"
