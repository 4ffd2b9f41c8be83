# SPDX-License-Identifier: Apache-2.0
"""The plots of a sweep show every score, and the best in the run's colour."""

import pytest
from matplotlib.figure import Figure

from tests.tuning.example_results import BUDGETS, example_results
from vanilla_transformer.visualization.style import series_styles
from vanilla_transformer.visualization.sweep import plot_rungs, plot_values

RESULTS = example_results()
RUNS = RESULTS["runs"]
STYLES = series_styles(list(RUNS))


def scores_of(trial: dict) -> list[float]:
    return [outcome["score"] for outcome in trial["rungs"] if outcome["score"] is not None]


def legend_of(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


@pytest.mark.parametrize(("place", "name"), list(enumerate(RUNS)))
def test_each_trial_is_a_line_through_its_rungs(place: int, name: str):
    axes = plot_rungs(RESULTS, STYLES).axes[place]
    drawn = [(list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines]
    assert drawn == [(BUDGETS[: len(scores_of(t))], scores_of(t)) for t in RUNS[name]["trials"]]
    best = [number for number, line in enumerate(axes.lines) if line.get_color() == STYLES[name].colour]
    assert best == [RUNS[name]["best"]]


def test_each_key_has_a_panel_with_the_scores_of_the_first_rung():
    figure = plot_values(RESULTS, STYLES)
    panels = {axes.get_title(): axes for axes in figure.axes if axes.get_title()}
    assert set(panels) == set(RUNS["Transformer"]["trials"][0]["settings"])
    for key, axes in panels.items():
        users = {name: run for name, run in RUNS.items() if key in run["trials"][0]["settings"]}
        assert [line.get_color() for line in axes.lines if len(line.get_xdata())] == [
            STYLES[name].colour for name in users
        ]
        for line, run in zip(axes.lines, users.values(), strict=False):
            expected = [scores_of(trial)[0] for trial in run["trials"] if scores_of(trial)]
            assert list(line.get_ydata()) == expected
    assert legend_of(figure) == list(RUNS)


def test_listed_values_stand_evenly_in_their_order():
    (axes,) = (axes for axes in plot_values(RESULTS, STYLES).axes if axes.get_title() == "optimizer.max_grad_norm")
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "null"]
    values = [trial["settings"]["optimizer.max_grad_norm"] for trial in RUNS["RNN"]["trials"] if scores_of(trial)]
    assert [round(x) for x in axes.lines[1].get_xdata()] == [int(value is None) for value in values]


def test_many_numbers_stand_where_they_are():
    (axes,) = (
        axes for axes in plot_values(RESULTS, STYLES).axes if axes.get_title() == "optimizer.learning_rate_scale"
    )
    rates = [t["settings"]["optimizer.learning_rate_scale"] for t in RUNS["RNN"]["trials"] if scores_of(t)]
    assert list(axes.lines[1].get_xdata()) == rates
    assert axes.get_xscale() == ("log" if max(rates) > 8 * min(rates) else "linear")
