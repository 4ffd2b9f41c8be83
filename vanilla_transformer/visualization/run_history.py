# SPDX-License-Identifier: Apache-2.0
"""The course of a training run, from the files that its tracker TensorBoard wrote."""

import math
from dataclasses import dataclass
from pathlib import Path

LOGS = "logs"  # in the run's folder


@dataclass(frozen=True)
class RunHistory:
    """What a run reported, by its names: "train/loss", "validation/bleu", …

    Args:
        name: of the run.
        figures: for each name the updates, rising, and the values at them; what is no number is left out.
    """

    name: str
    figures: dict[str, tuple[list[int], list[float]]]


def read_history(run: str | Path, name: str) -> RunHistory:
    """Everything that a run reported, over all its parts: where one went over the same updates again, the last.

    Raises:
        FileNotFoundError: no such folder, or it is not a run.
        ValueError: the run wrote no logs, or they are empty.
    """
    from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

    folder = Path(run)
    if not folder.is_dir():
        raise FileNotFoundError(f"run {folder} does not exist")
    if not (folder / "config.yaml").is_file():
        raise FileNotFoundError(f"{folder} is not the folder of a run: it has no config.yaml")
    files = sorted({path.parent for path in (folder / LOGS).rglob("events.out.tfevents.*")})
    values: dict[str, dict[int, tuple[float, float]]] = {}  # name → update → when, value
    for directory in files:
        events = EventAccumulator(str(directory), size_guidance={SCALARS: 0}).Reload()
        for tag in events.Tags()[SCALARS]:
            for event in events.Scalars(tag):
                at = values.setdefault(tag, {})
                at[event.step] = max(at.get(event.step, (0.0, 0.0)), (event.wall_time, event.value))
    if not values:
        raise ValueError(
            f"run {folder} has no history in {folder / LOGS}: it has not come to its first report "
            "(training.log_every), or was trained without training.trackers=[tensorboard]"
        )
    figures = {}
    for tag, at in values.items():
        finite = [(update, value) for update, (_, value) in sorted(at.items()) if math.isfinite(value)]
        figures[tag] = ([update for update, _ in finite], [value for _, value in finite])
    return RunHistory(name, figures)
