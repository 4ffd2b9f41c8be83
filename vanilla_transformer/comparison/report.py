# SPDX-License-Identifier: Apache-2.0
"""The report of a comparison: report.md, and its plots beside it, from the results alone.

The results are one dict, as in results.json: `machines`, part by part where and when it was measured (device, threads,
torch, transformers, date), and three parts, each `None` if it was left out:

- `speed`: `device`, `precision`, `parameters` of each model, and `rows`, one for a model and a length (tokens), with
  `batch_size` and `tokens_per_second`, a list of the repeats; what could not be measured has no row;
- `long_range`: `device`, `parameters`, `test_sequences`, `chance` of each task (0 to 1), `gradients` (`model`, `seed`,
  `when`, and `norms` from 0 steps back on) and `tasks` (`task`, `model`, `seed`, `trained_at`, `updates`,
  `seconds`, and `accuracy` (0 to 1) at each distance, whose key is a string as JSON wants it);
- `quality`: for each task its `metric`, `unit`, test set and `budgets`; each budget has the scores of the `models`,
  the `paired` comparisons with the Transformer, the scores `by_length` of the source, and `examples`.
"""

from collections.abc import Mapping, Sequence
from math import comb
from pathlib import Path
from typing import Any

from vanilla_transformer.comparison.fairness import TRANSFORMER
from vanilla_transformer.comparison.markdown import escape, table
from vanilla_transformer.comparison.sections import NOT_MEASURED, long_range_section, quality_section, speed_section
from vanilla_transformer.comparison.verdicts import verdicts
from vanilla_transformer.visualization.style import series_styles


def write_report(results: Mapping[str, Any], folder: str | Path) -> Path:
    """Write `folder/report.md` and its plots, over those that are there.

    Returns:
        The path of the report.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: results that cannot be compared, as `vanilla_transformer.comparison.verdicts` tells.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"folder {folder} of the report does not exist")
    styles = series_styles(model_names(results))
    sections = [
        _opening(results),
        _models(results, list(styles)),
        "## Speed of training",
        *speed_section(results["speed"], styles, folder),
        "## Long range",
        *long_range_section(results["long_range"], styles, folder),
        "## Quality",
        *quality_section(results["quality"], styles, folder),
        _fairness(results),
        _reproduction(folder),
    ]
    path = folder / "report.md"
    path.write_text("\n\n".join(sections) + "\n", encoding="utf-8", newline="\n")
    return path


def model_names(results: Mapping[str, Any]) -> list[str]:
    """The models of all parts, the Transformer first, the others in the order of the parts: it decides the colours."""
    speed, long_range = results["speed"], results["long_range"]
    rows = list(speed["rows"]) if speed else []
    rows += [*long_range["tasks"], *long_range["gradients"]] if long_range else []
    names = [row["model"] for row in rows]
    names += [name for task in results["quality"] or [] for result in task["budgets"] for name in result["models"]]
    return sorted(dict.fromkeys(names), key=lambda name: name != TRANSFORMER)


def _opening(results: Mapping[str, Any]) -> str:
    lines = []
    for verdict in verdicts(results):
        lines.append(f"- **{escape(verdict.answer)}**")
        lines += [f"  - {escape(sentence)}" for sentence in verdict.evidence]
    return "\n\n".join(
        [
            f"# {TRANSFORMER} or recurrence: a comparison",
            *_machines(results["machines"]),
            "## Verdicts",
            f'The claims of "Attention Is All You Need", put to the test here. In each comparison the {TRANSFORMER} '
            "meets the rival that did best there.",
            "\n".join(lines),
        ]
    )


def _machines(machines: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A sentence for each machine and day; most comparisons have one."""
    lines: dict[str, list[str]] = {}
    for part, machine in machines.items():
        threads = machine["threads"]
        line = (
            f"{machine['date']}: {machine['device']}, {threads} thread{'s' * (threads != 1)}, "
            f"torch {machine['torch']}, transformers {machine['transformers']}."
        )
        lines.setdefault(line, []).append(part.replace("_", " "))
    return [f"Measured ({', '.join(parts)}) on {escape(line)}" for line, parts in lines.items()]


def _models(results: Mapping[str, Any], models: Sequence[str]) -> str:
    """Parameters, which may differ from part to part."""
    columns: dict[str, Mapping[str, int]] = {}
    for title, part in (("speed", results["speed"]), ("long range", results["long_range"])):
        if part:
            columns[title] = part["parameters"]
    for task in results["quality"] or []:
        columns[escape(task["task"])] = {
            name: model["parameters"] for result in task["budgets"] for name, model in result["models"].items()
        }
    rows = [
        [escape(model), *(f"{column[model]:,}" if model in column else "–" for column in columns.values())]
        for model in models
    ]
    parameters = table(["model", *columns], rows) if columns else NOT_MEASURED
    return f"## Models\n\nNumber of parameters in each part; – where a model took no part.\n\n{parameters}"


def _fairness(results: Mapping[str, Any]) -> str:
    """What was equal and what was not, and how often luck alone decides."""
    speed, long_range, quality = results["speed"], results["long_range"], results["quality"]
    lines = [
        f"The rival of each comparison is chosen by its result. That is hard on the {TRANSFORMER}: the more rivals, "
        "the likelier is a lucky one.",
        "Equal parameters are not equal work, and the table above tells how equal they are. Nothing here says that "
        "each model got the settings that suit it best: `config.yaml`, and what it names, tell which it got.",
    ]
    if speed and speed["rows"]:
        repeats = min(len(row["tokens_per_second"]) for row in speed["rows"])
        lines.append(
            "Speed: one device, one precision, and the batch sizes of the table. The speed of training says nothing "
            "about the speed of decoding. Of two equally fast models, the same one would be faster in each of "
            f"{repeats} repeats in {_share(2, 2**repeats)}, by luck."
        )
    if long_range and long_range["tasks"]:
        seeds = len({run["seed"] for run in long_range["tasks"]})
        lines.append(
            "Long range: a run counts as it ended, even if more training might have solved the task; the tables give "
            f"its updates and minutes. Of two models that are alike, with {seeds} seeds each, all seeds of one would "
            f"be better than all of the other in {_share(2, comb(2 * seeds, seeds))}, by luck."
        )
    if quality:
        comparisons = sum(len(result["paired"]) for task in quality for result in task["budgets"])
        lines.append(
            "Quality: one vocabulary and one test set for all models of a task. At equal updates the slower model gets "
            "more time; at equal time it gets fewer updates. Each model is trained once, and scored at both "
            "budgets: intervals and p-values tell what other test sentences would change, not what another seed would. "
            f"There are {comparisons} p-values in all, and none is corrected for that."
        )
    return "\n".join(["## What was fair, and what luck can do", "", *(f"- {line}" for line in lines)])


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
