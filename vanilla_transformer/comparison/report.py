# SPDX-License-Identifier: Apache-2.0
"""The report of a comparison: report.md and its plots, computed from the results alone.

The results are one dict, saved as results.json: `machines`, where and when each part was measured (device, threads,
torch, transformers, date), and three parts, each `None` if it was left out:

- `speed`: `device`, `precision`, `parameters` of each model, and `rows`, one for a model and a length (tokens), with
  `batch_size` and `tokens_per_second`, the target tokens per second of each repeat;
- `long_range`: `device`, `parameters`, `test_sequences`, `chance` (accuracy, 0 to 1) of each task, `gradients`
  (`model`, `seed`, `when`: "initialisation" or "after training", and `norms` for each distance from 0) and `tasks`
  (`task`, `model`, `seed`, `trained_at`, `updates`, `seconds`, and `accuracy` (0 to 1) by distance, as a string);
- `quality`: for each task `task`, `metric`, `higher_is_better`, `unit`, `signature`, `sentences` (number),
  `vocab_size` and `budgets`; each budget has its `amount`, the scores of the `models`, the `paired` comparisons with
  the Transformer, the scores `by_length` of the source, and `examples`.
"""

from collections.abc import Iterable, Iterator, Mapping
from math import comb
from pathlib import Path
from statistics import mean, median
from typing import Any

from vanilla_transformer.comparison.fairness import TRANSFORMER
from vanilla_transformer.comparison.markdown import (
    MISSING,
    escape,
    number,
    plural,
    table,
    truncate,
    with_extremes,
    with_range,
)
from vanilla_transformer.comparison.verdicts import (
    SIGNIFICANCE_LEVEL,
    Verdict,
    accuracies_by_model,
    p_text,
    speeds_by_length,
    verdicts,
)
from vanilla_transformer.visualization import comparison as plots
from vanilla_transformer.visualization.comparison import DISTANCE_UNITS, STAGES, TASK_TITLES, Rows, Styles
from vanilla_transformer.visualization.style import series_styles

NOT_MEASURED = "Not measured."
PLOTTED_BUDGET = "equal time"
EXAMPLES = 3  # for each task

TABLE_1 = table(
    ["Table 1 of the paper: layer", "work per layer", "sequential operations", "longest path between two positions"],
    [["self-attention", "O(n² · d)", "O(1)", "O(1)"], ["recurrent", "O(n · d²)", "O(n)", "O(n)"]],
)


def write_report(results: Mapping[str, Any], folder: Path) -> None:
    """Write `folder/report.md` and its plots, over existing ones."""
    parameters = _parameters_by_part(results)
    models = dict.fromkeys(model for part in parameters.values() for model in part)  # the order decides the colours
    styles = series_styles(sorted(models, key=lambda model: model != TRANSFORMER))
    judged = verdicts(results)
    blocks = [
        f"# {TRANSFORMER} or recurrence: a comparison",
        *_machines(results["machines"]),
        "## Verdicts",
        f'The claims of "Attention Is All You Need", put to the test here. In each comparison the {TRANSFORMER} meets '
        "the rival that did best there.",
        "\n".join(_verdict_lines(judged.values())),
        "## Models",
        f"Number of parameters in each part; {MISSING} where a model took no part.",
        table(
            ["model", *map(escape, parameters)],
            [[escape(model), *(number(part.get(model), ",") for part in parameters.values())] for model in styles],
        ),
        "## Speed of training",
        *_speed_section(results["speed"], judged["speed"], styles, folder),
        "## Long range",
        *_long_range_section(results["long_range"], styles, folder),
        "## Quality",
        *_quality_section(results["quality"], styles, folder),
        "## Fairness and chance",
        "\n".join(f"- {caveat}" for caveat in _caveats(results)),
        _reproduction(folder),
    ]
    (folder / "report.md").write_text("\n\n".join(blocks) + "\n", encoding="utf-8", newline="\n")


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
    return [f"Measured ({', '.join(names)}) on {escape(line)}" for line, names in parts.items()]


def _verdict_lines(judged: Iterable[Verdict]) -> Iterator[str]:
    for verdict in judged:
        answer, *evidence = map(escape, verdict.sentences)
        yield f"- **{answer}**"
        yield from (f"  - {sentence}" for sentence in evidence)


def _speed_section(speed: Mapping[str, Any] | None, verdict: Verdict, styles: Styles, folder: Path) -> list[str]:
    """Tokens per second by length, beside the paper's Table 1."""
    if not speed:
        return [NOT_MEASURED, TABLE_1]
    plots.plot_speed(speed, styles).savefig(folder / "speed.png")
    models = plots.models_in_order(styles, speed["rows"])
    batch_sizes = {row["length"]: row["batch_size"] for row in speed["rows"]}
    findings = {finding.where: f"{finding.evidence}: {finding.outcome}" for finding in verdict.findings}
    rows = []
    for length, repeats in speeds_by_length(speed["rows"]).items():
        speeds = [with_extremes(repeats[model], median, ",.0f") for model in models]
        finding = escape(findings.get(f"length {length:,}", MISSING))
        rows.append([f"{length:,}", str(batch_sizes[length]), *speeds, finding])
    header = ["length (tokens)", "batch size", *map(escape, models), f"{TRANSFORMER} / fastest rival"]
    return [
        f"Whole updates on {escape(speed['device'])} in {escape(speed['precision'])}, in target tokens per second "
        "(each batch has as many source tokens): the median and, in parentheses, the lowest and highest of the "
        "repeats. The models were measured in turns, so that a slow moment of the machine affects all of them.",
        "![Training speed against length, a line for each model](speed.png)",
        table(header, rows),
        f"The theory, for a sequence of length n and vectors of width d:\n\n{TABLE_1}",
        "Few sequential operations let a device work on all positions at once, but the work of self-attention grows "
        "with the square of the length. Which of the two decides depends on the length, the width and the device.",
    ]


def _long_range_section(long_range: Mapping[str, Any] | None, styles: Styles, folder: Path) -> list[str]:
    """How far gradients reach, and how accuracy falls with the distance."""
    if not long_range:
        return [NOT_MEASURED]
    runs, chance = long_range["tasks"], long_range["chance"]
    plots.plot_long_range(runs, chance, styles).savefig(folder / "long_range.png")
    blocks = [
        "### Gradient norm by distance",
        *_gradients(long_range["gradients"], styles, folder),
        "### Accuracy by distance",
        "The models train on distances up to the dashed line, and are tested up to there and beyond, on random "
        "sequences of other seeds. The shortest sequences are so few that training has seen them. The mean over the "
        "seeds is drawn, with a band from the lowest to the highest.",
        "![Accuracy against distance, a panel for each task](long_range.png)",
    ]
    for task in dict.fromkeys(run["task"] for run in runs):
        blocks.append(
            f"**{TASK_TITLES[task]}**, accuracy in % by distance in {DISTANCE_UNITS[task]}; guessing gives "
            f"{100 * chance[task]:.1f}%. In parentheses the lowest and highest seed."
        )
        blocks.append(_task_table([run for run in runs if run["task"] == task], styles))
    return blocks


def _gradients(gradients: Rows, styles: Styles, folder: Path) -> list[str]:
    if not gradients:
        return [NOT_MEASURED]
    plots.plot_gradients(gradients, styles).savefig(folder / "gradients.png")
    farthest = len(gradients[0]["norms"]) - 1
    rows = []
    for model in plots.models_in_order(styles, gradients):
        runs = [run for run in gradients if run["model"] == model]
        norms = [[plots.relative_norms(run)[farthest] for run in runs if run["when"] == when] for when in STAGES]
        rows.append([escape(model), *(with_extremes(seeds, median, ".2g") for seeds in norms)])
    return [
        "The norm of the gradient of the encoder's last output with respect to the input d steps back, divided by the "
        "norm at d = 0: the median over the seeds, with a band from the lowest to the highest. The attention of the "
        "decoder is a second, shorter path, which this does not measure.",
        "![Relative gradient norm against steps back, before and after training](gradients.png)",
        f"The relative norm {farthest:,} steps back, with the lowest and highest seed in parentheses:",
        table(["model", *STAGES.values()], rows),
    ]


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
    columns = [f"{d:,} (longest in training)" if d == runs[0]["trained_at"] else f"{d:,}" for d in distances]
    return table(["model", *columns, "seeds", "updates (median)", "minutes (median)"], rows)


def _quality_section(quality: Rows | None, styles: Styles, folder: Path) -> list[str]:
    """Scores by task and budget, by length of the source, and a few outputs."""
    if not quality:
        return [NOT_MEASURED]
    plots.plot_quality_by_length(quality, PLOTTED_BUDGET, styles).savefig(folder / "quality_by_length.png")
    blocks = [
        f"The difference is the model's score minus that of the {TRANSFORMER}. It counts if p < {SIGNIFICANCE_LEVEL} "
        "(paired bootstrap resampling of the test sentences). The 95% confidence interval of each score is in "
        "parentheses.",
        *(block for task in quality for block in _quality_of_task(task, styles)),
        "### By length of the source",
        "![Scores by length of the source, a bar for each model](quality_by_length.png)",
    ]
    for task in quality:
        (result,) = (result for result in task["budgets"] if result["budget"] == PLOTTED_BUDGET)
        models = [model for model in styles if model in result["models"]]
        rows = [
            [escape(row["bucket"]), f"{row['sentences']:,}", *(f"{row['scores'][model]:.1f}" for model in models)]
            for row in result["by_length"]
        ]
        blocks.append(f"**{escape(task['task'])}**, {PLOTTED_BUDGET}, {_scale(task)}:")
        blocks.append(table(["source tokens", "sentences", *map(escape, models)], rows))
    return blocks


def _quality_of_task(task: Mapping[str, Any], styles: Styles) -> list[str]:
    signature = f" Signature: `{task['signature']}`." if task["signature"] else ""
    header = ["model", escape(task["metric"]), f"difference to {TRANSFORMER}"]
    header += ["updates", "epochs", "minutes", "target tokens/s"]
    blocks = [
        f"### {escape(task['task'])}",
        f"{_scale(task)}; {task['sentences']:,} test sentences, a vocabulary of {task['vocab_size']:,}.{signature}",
    ]
    for result in task["budgets"]:
        pairs = {pair["model"]: f"{pair['difference']:+.1f}, {p_text(pair['p_value'])}" for pair in result["paired"]}
        rows = []
        for model in (model for model in styles if model in result["models"]):
            facts = result["models"][model]
            score = with_range(facts["score"], *facts["interval"])
            minutes, speed = f"{facts['training_seconds'] / 60:.1f}", f"{facts['target_tokens_per_second']:,.0f}"
            amounts = [f"{facts['updates']:,}", f"{facts['epochs']:.1f}", minutes, speed]
            rows.append([escape(model), score, pairs.get(model, MISSING), *amounts])
        blocks.append(f"**{escape(result['budget'].capitalize())}** ({escape(result['amount'])}):")
        blocks.append(table(header, rows))
    last = task["budgets"][-1]
    blocks.append(f"The models' outputs at {escape(last['budget'])}:")
    for example in last["examples"][:EXAMPLES]:
        texts = {"source": example["source"], "reference": example["reference"]}
        texts |= {model: example["outputs"][model] for model in styles if model in example["outputs"]}
        blocks.append(table(["", "text"], [[escape(name), escape(truncate(text))] for name, text in texts.items()]))
    return blocks


def _scale(task: Mapping[str, Any]) -> str:
    better = "higher" if task["higher_is_better"] else "lower"
    return f"{escape(task['metric'])} in {escape(task['unit'])}, {better} is better"


def _caveats(results: Mapping[str, Any]) -> list[str]:
    """Which conditions were equal, which were not, and how often chance alone decides."""
    speed, long_range, quality = results["speed"], results["long_range"], results["quality"]
    caveats = [
        f"The rival of each comparison is chosen by its result. That is hard on the {TRANSFORMER}: the more rivals, "
        "the likelier is a lucky one.",
        "Equal parameters are not equal work; the table above shows how equal the parameters are. Nothing here shows "
        "that a model got the settings that suit it best: `config.yaml`, and the files it names, record which it got.",
    ]
    if speed:
        repeats = len(speed["rows"][0]["tokens_per_second"])
        caveats.append(
            "Speed: one device, one precision, and the batch sizes of the table. The speed of training says nothing "
            "about the speed of decoding. Of two equally fast models, the same one would be faster in each of "
            f"{repeats} repeats in {_share(2, 2**repeats)}, by chance."
        )
    if long_range:
        seeds = len({run["seed"] for run in long_range["tasks"]})
        caveats.append(
            "Long range: a run counts as it ended, even if more training might have solved the task; the tables give "
            f"its updates and minutes. Of two equally good models, with {seeds} seeds each, all seeds of one would be "
            f"better than all of the other in {_share(2, comb(2 * seeds, seeds))}, by chance."
        )
    if quality:
        comparisons = sum(len(result["paired"]) for task in quality for result in task["budgets"])
        caveats.append(
            "Quality: one vocabulary and one test set for all models of a task. At equal updates the slower model gets "
            "more time; at equal time it gets fewer updates. Each model is trained once, and scored at both budgets: "
            "confidence intervals and p-values account for other test sentences, not for other seeds. None of the "
            f"{comparisons} p-values is corrected for multiple comparisons."
        )
    return caveats


def _reproduction(folder: Path) -> str:
    return f"""## How to reproduce

In the folder where this comparison was run:

```bash
vanilla-transformer compare {folder / "config.yaml"} output_dir=runs/compare-again
```

`config.yaml` is the resolved configuration, and every run under `quality/` has its own beside its checkpoints.
`results.json` holds every figure; verdicts, tables and plots are computed from it alone. A part is left out by
`speed=null`, `long_range=null` or `quality=null`. Speeds depend on the machine and on what else runs on it."""


def _share(cases: int, of: int) -> str:
    return "every case" if cases >= of else f"one case in {of // cases:,}"
