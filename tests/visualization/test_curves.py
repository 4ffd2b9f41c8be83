# SPDX-License-Identifier: Apache-2.0
from pathlib import Path
from typing import Any

import pytest
from torch.utils.tensorboard import SummaryWriter

from vanilla_transformer.visualization.curves import PANELS, plot_curves, read_history
from vanilla_transformer.visualization.style import model_styles


def write_run(folder: Path, *parts: dict[int, float]) -> Path:
    """A run that reported a loss at these updates, in parts: it was stopped and went on."""
    folder.mkdir()
    (folder / "config.yaml").write_text("", encoding="utf-8")
    for number, part in enumerate(parts):
        writer = SummaryWriter(str(folder / "logs" / "vanilla_transformer"), filename_suffix=f".{number}")
        for update, loss in part.items():
            writer.add_scalar("train/loss", loss, update, walltime=1000.0 * number + update)
        writer.close()
    return folder


def test_repeated_updates_keep_the_last_value_and_nan_is_dropped(tmp_path):
    run = write_run(tmp_path / "run", {10: 3.0, 20: 2.0}, {20: 1.5, 30: float("nan"), 40: 1.0})
    assert read_history(run) == {"train/loss": ([10, 20, 40], [3.0, 1.5, 1.0])}


def test_a_folder_without_a_run_or_a_history_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="run .*nowhere does not exist"):
        read_history(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="is not the folder of a run"):
        read_history(tmp_path)
    with pytest.raises(ValueError, match=r"has no history .* training.trackers"):
        read_history(write_run(tmp_path / "silent"))


def test_every_panel_has_every_run_and_the_learning_rate_its_formula():
    tags = [tag for tags in PANELS.values() for tag in tags]
    histories = {name: {tag: ([1, 2], [first, 1.0]) for tag in tags} for name, first in (("one", 2.0), ("two", 3.0))}
    figure = plot_curves(histories, {"one": ([1, 2, 3], [0.1, 0.2, 0.3])}, {"one": "Transformer", "two": "GRU"})
    panels: dict[str, Any] = {axes.get_title(): axes for axes in figure.axes if axes.get_title()}
    assert list(panels) == list(PANELS)
    for title, axes in panels.items():
        firsts = sorted(line.get_ydata()[0] for line in axes.lines if line.get_linestyle() == "-")
        assert firsts == sorted([2.0, 3.0] * len(PANELS[title]))
    [formula] = [line for line in panels["learning rate"].lines if line.get_linestyle() == "--"]
    assert list(formula.get_ydata()) == [0.1, 0.2, 0.3]


def test_the_kind_of_model_decides_the_colour_of_a_run():
    kinds = {"one": "GRU", "two": "Transformer"}
    figure = plot_curves({name: {"train/loss": ([1, 2], [2.0, 1.0])} for name in kinds}, {}, kinds)
    styles = model_styles({kind: kind for kind in kinds.values()})
    lines: list[Any] = figure.axes[0].lines
    drawn = [line.get_color() for line in lines if len(line.get_xdata())]
    assert drawn == [styles[kind].colour for kind in kinds.values()]
