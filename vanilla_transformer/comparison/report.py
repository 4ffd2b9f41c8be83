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

from collections.abc import Mapping, Sequence
from math import comb
from pathlib import Path
from typing import Any

from vanilla_transformer.comparison.fairness import TRANSFORMER
from vanilla_transformer.comparison.markdown import MISSING, escape, number, plural, table
from vanilla_transformer.comparison.sections import NOT_MEASURED, long_range_section, quality_section, speed_section
from vanilla_transformer.comparison.verdicts import verdicts
from vanilla_transformer.visualization.style import series_styles


def write_report(results: Mapping[str, Any], folder: str | Path) -> Path:
    """Write `folder/report.md` and its plots, over existing ones.

    Returns:
        The path of the report.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: results that cannot be compared; see `vanilla_transformer.comparison.verdicts`.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"folder {folder} of the report does not exist")
    parameters = parameters_by_part(results)
    models = dict.fromkeys(model for part in parameters.values() for model in part)  # the order decides the colours
    styles = series_styles(sorted(models, key=lambda model: model != TRANSFORMER))
    blocks = [
        f"# {TRANSFORMER} or recurrence: a comparison",
        *_machines(results["machines"]),
        "## Verdicts",
        f'The claims of "Attention Is All You Need", put to the test here. In each comparison the {TRANSFORMER} meets '
        "the rival that did best there.",
        _verdicts(results),
        "## Models",
        f"Number of parameters in each part; {MISSING} where a model took no part.",
        _parameter_table(parameters, list(styles)),
        "## Speed of training",
        *speed_section(results["speed"], styles, folder),
        "## Long range",
        *long_range_section(results["long_range"], styles, folder),
        "## Quality",
        *quality_section(results["quality"], styles, folder),
        "## Fairness and chance",
        "\n".join(f"- {caveat}" for caveat in _caveats(results)),
        _reproduction(folder),
    ]
    path = folder / "report.md"
    path.write_text("\n\n".join(blocks) + "\n", encoding="utf-8", newline="\n")
    return path


def parameters_by_part(results: Mapping[str, Any]) -> dict[str, Mapping[str, int]]:
    """Part or task of quality → model → number of parameters: a model may have another size in each."""
    titles = {"speed": "speed", "long_range": "long range"}
    parts = {title: results[part]["parameters"] for part, title in titles.items() if results[part]}
    for task in results["quality"] or []:
        models = {name: model for result in task["budgets"] for name, model in result["models"].items()}
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


def _verdicts(results: Mapping[str, Any]) -> str:
    lines = []
    for verdict in verdicts(results):
        lines.append(f"- **{escape(verdict.answer)}**")
        lines += [f"  - {escape(sentence)}" for sentence in verdict.evidence]
    return "\n".join(lines)


def _parameter_table(parameters: Mapping[str, Mapping[str, int]], models: Sequence[str]) -> str:
    if not parameters:
        return NOT_MEASURED
    rows = [[escape(model), *(number(p.get(model), ",") for p in parameters.values())] for model in models]
    return table(["model", *map(escape, parameters)], rows)


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
        repeats = min(len(row["tokens_per_second"]) for row in speed["rows"])
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
