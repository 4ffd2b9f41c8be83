# SPDX-License-Identifier: Apache-2.0
"""The curves of a training run, from the event files of its TensorBoard tracker."""

import math
from dataclasses import dataclass
from pathlib import Path

LOGS = "logs"  # in the run's folder


@dataclass(frozen=True)
class RunHistory:
    """The scalars that a run logged: tag, such as "train/loss" → updates, rising, and the finite values at them."""

    name: str
    scalars: dict[str, tuple[list[int], list[float]]]


def read_history(run: str | Path, name: str) -> RunHistory:
    """Read every scalar. Where a resumed run repeated an update, its last value counts.

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
    values: dict[str, dict[int, tuple[float, float]]] = {}  # tag → update → wall time, value
    for directory in sorted({path.parent for path in (folder / LOGS).rglob("events.out.tfevents.*")}):
        events = EventAccumulator(str(directory), size_guidance={SCALARS: 0}).Reload()
        for tag in events.Tags()[SCALARS]:
            latest = values.setdefault(tag, {})
            for event in events.Scalars(tag):
                latest[event.step] = max(latest.get(event.step, (0.0, 0.0)), (event.wall_time, event.value))
    if not values:
        raise ValueError(
            f"run {folder} has no history in {folder / LOGS}: it has not come to its first report "
            "(training.log_every), or was trained without training.trackers=[tensorboard]"
        )
    scalars = {}
    for tag, latest in values.items():
        finite = [(update, value) for update, (_, value) in sorted(latest.items()) if math.isfinite(value)]
        scalars[tag] = [update for update, _ in finite], [value for _, value in finite]
    return RunHistory(name, scalars)
