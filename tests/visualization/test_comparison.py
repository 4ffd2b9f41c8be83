# SPDX-License-Identifier: Apache-2.0
"""The plots show what was measured, and a model looks the same in all of them."""

import copy
from itertools import combinations, product
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from tests.comparison.example_results import LENGTHS, MODELS, TRAINED_AT, example_results
from vanilla_transformer.configuration_rnn_seq2seq import RNNSeq2SeqConfig
from vanilla_transformer.configuration_vanilla_transformer import VanillaTransformerConfig
from vanilla_transformer.visualization.comparison import (
    learning_curve,
    plot_gradients,
    plot_learning_curves,
    plot_long_range,
    plot_quality_by_length,
    plot_speed,
    relative_norms,
)
from vanilla_transformer.visualization.style import (
    CELLS,
    FONT_SIZE,
    MODEL_PLACES,
    SeriesStyle,
    model_kind,
    model_styles,
    series_styles,
)

RESULTS = example_results()
STYLES = series_styles(MODELS)


def all_figures() -> dict[str, Figure]:
    long_range = RESULTS["long_range"]
    return {
        "speed": plot_speed(RESULTS["speed"], STYLES),
        "gradients": plot_gradients(long_range["gradients"], STYLES),
        "long range": plot_long_range(long_range["tasks"], long_range["chance"], STYLES),
        "quality": plot_learning_curves(RESULTS["quality"], STYLES),
        "quality by length": plot_quality_by_length(RESULTS["quality"], STYLES),
    }


def named_colours(figure: Figure) -> dict[str, str]:
    """Label → colour, as the legend shows them."""
    legend: Any = figure.legends[0]
    shown = {}
    for handle, text in zip(legend.legend_handles, legend.get_texts(), strict=True):
        colour = handle.get_color() if isinstance(handle, Line2D) else handle.get_facecolor()
        shown[text.get_text()] = to_hex(colour)
    return shown


def line_of(axes: Axes, model: str) -> Any:
    (line,) = (line for line in axes.lines if line.get_color() == STYLES[model].colour)
    return line


def band_of(axes: Any, model: str) -> tuple[float, float]:
    """The lowest and the highest value of a model's band."""
    bands = [collection for collection in axes.collections if isinstance(collection, PolyCollection)]
    (band,) = (band for band in bands if to_hex(band.get_facecolor()[0]) == STYLES[model].colour)
    heights = band.get_paths()[0].vertices[:, 1]
    return heights.min(), heights.max()


def simulate_deuteranopia(colour: str) -> np.ndarray:
    """Machado et al. (2009), severity 1, in linear RGB."""
    matrix = np.array([[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]])
    return matrix @ np.array(to_rgb(colour)) ** 2.2


def test_a_model_has_the_same_colour_in_all_figures():
    for name, figure in all_figures().items():
        shown = named_colours(figure)
        assert {model: shown[model] for model in MODELS} == {m: STYLES[m].colour for m in MODELS}, name


def styles_of(*names: str) -> dict[str, SeriesStyle]:
    return model_styles({name: name for name in names})


def test_a_kind_of_model_has_the_same_style_among_any_others():
    kinds = ["Transformer", *CELLS.values(), *(f"{cell} + attention" for cell in CELLS.values())]
    looks = {kind: (style.colour, style.marker) for kind, style in styles_of(*kinds).items()}
    assert len(set(looks.values())) == len(kinds)
    for others in (["mine"], kinds[::-1], ["Transformer", "Bahdanau 2015"]):
        for kind in kinds:
            style = styles_of(*others, kind)[kind]
            assert (style.colour, style.marker) == looks[kind]


def test_models_of_one_kind_are_told_apart():
    styles = model_styles({"first": "GRU", "second": "GRU", "Transformer": "Transformer"})
    assert styles["first"].colour == styles_of("GRU")["GRU"].colour
    assert len({(style.colour, style.marker, style.dash) for style in styles.values()}) == 3


@pytest.mark.parametrize("first", ["model 0", "GRU + multiplicative attention", "LSTM"])
def test_twenty_models_have_distinct_styles_and_more_are_refused(first: str):
    names = [first, *(f"model {number}" for number in range(1, 20))]
    for all_styles in (series_styles(names), styles_of(*names)):
        assert len({(style.colour, style.marker, style.dash) for style in all_styles.values()}) == 20
    for make in (series_styles, lambda names: styles_of(*names)):
        with pytest.raises(ValueError, match="21 models"):
            make([*names, "one more"])


def test_the_kind_of_a_model_has_a_style():
    configs: list[Any] = [VanillaTransformerConfig()]
    for cell, attention in product(CELLS, ("none", "additive", "multiplicative")):
        fields: dict[str, Any] = {"cell": cell, "attention": attention, "input_feeding": "none"}
        configs.append(RNNSeq2SeqConfig(**fields))
    kinds = {model_kind(config) for config in configs}
    assert kinds <= set(MODEL_PLACES)
    assert len(kinds) == 1 + 2 * len(CELLS)


def test_colours_stay_distinct_under_deuteranopia():
    kinds = ["Transformer", *CELLS.values(), *(f"{cell} + attention" for cell in CELLS.values())]
    colours = [style.colour for style in styles_of(*kinds).values()]
    for first, second in combinations(colours, 2):
        distance = np.linalg.norm(simulate_deuteranopia(first) - simulate_deuteranopia(second))
        assert distance > 0.1, (first, second)  # of sqrt(3) between black and white


def test_a_model_without_a_style_is_refused():
    with pytest.raises(ValueError, match="Elman with attention"):
        plot_speed(RESULTS["speed"], series_styles(MODELS[:-1]))


def test_all_text_has_the_legible_size():
    for name, figure in all_figures().items():
        texts = [text for axes in figure.axes for text in [*axes.get_xticklabels(), *axes.get_yticklabels()]]
        texts += [label for axes in figure.axes for label in (axes.xaxis.label, axes.yaxis.label, axes.title)]
        texts += figure.legends[0].get_texts()
        assert {text.get_fontsize() for text in texts if text.get_text()} == {FONT_SIZE}, name


def test_speed_is_the_median_with_a_band_over_all_repeats():
    rows = [row for row in RESULTS["speed"]["rows"] if (row["precision"], row["threads"]) == ("bfloat16", 2)]
    whole, alone = plot_speed(RESULTS["speed"], STYLES).axes
    assert (whole.get_xscale(), whole.get_yscale()) == ("log", "log")
    for axes, lengths, is_alone in ((whole, LENGTHS, False), (alone, [128, 512], True)):
        for model in MODELS:
            shown = [row for row in rows if row["model"] == model and (row["batch_size"] == 1) == is_alone]
            repeats = [row["tokens_per_second"] for row in shown]
            assert list(line_of(axes, model).get_xdata()) == lengths
            np.testing.assert_allclose(line_of(axes, model).get_ydata(), np.median(repeats, axis=1))
            np.testing.assert_allclose(band_of(axes, model), (np.min(repeats), np.max(repeats)))


def test_the_legend_is_ordered_by_the_ends_of_the_lines():
    speed = copy.deepcopy(RESULTS["speed"])
    for row in speed["rows"]:
        row["tokens_per_second"] = [1000.0 + 100 * MODELS.index(row["model"])]
    assert list(named_colours(plot_speed(speed, STYLES))) == MODELS[::-1]


def test_relative_norms_start_at_one_whatever_the_scale():
    run = {"model": "GRU", "seed": 1, "when": "initialisation", "norms": [4.0, 2.0, 0.0]}
    assert relative_norms(run) == [1.0, 0.5, 0.0]


@pytest.mark.parametrize("nearest", [0.0, float("nan")])
def test_a_zero_or_nan_gradient_at_distance_0_is_refused(nearest: float):
    with pytest.raises(ValueError, match=r"GRU, seed 1, initialisation: .* positive"):
        relative_norms({"model": "GRU", "seed": 1, "when": "initialisation", "norms": [nearest, 1.0]})


def test_vanished_gradients_are_drawn_at_the_floor_and_the_axis_says_so():
    runs = [
        {"model": MODELS[0], "seed": seed, "when": "initialisation", "norms": [2.0, 1.0, last]}
        for seed, last in enumerate([0.0, 0.0, 0.5])
    ]
    (axes,) = plot_gradients(runs, STYLES).axes
    np.testing.assert_allclose(line_of(axes, MODELS[0]).get_ydata(), [1, 0.5, 1e-12])
    assert "drawn there" in axes.get_ylabel()
    runs[0]["norms"][2] = runs[1]["norms"][2] = 0.1
    (axes,) = plot_gradients(runs, STYLES).axes
    assert "drawn there" not in axes.get_ylabel()


def test_gradients_have_a_panel_for_each_stage():
    figure = plot_gradients(RESULTS["long_range"]["gradients"], STYLES)
    assert [axes.get_title() for axes in figure.axes] == ["at initialisation", "after training"]


def test_long_range_panels_mark_the_trained_distance_and_chance():
    long_range = RESULTS["long_range"]
    figure = plot_long_range(long_range["tasks"], long_range["chance"], STYLES)
    assert [axes.get_title() for axes in figure.axes] == ["copy", "associative recall", "parity (state tracking)"]
    panels: list[Any] = figure.axes
    for axes, task in zip(panels, ("copy", "recall", "parity"), strict=True):
        (trained,) = (line for line in axes.lines if line.get_linestyle() == "--")
        assert set(trained.get_xdata()) == {TRAINED_AT}
        (guessing,) = (line for line in axes.lines if line.get_linestyle() == ":")
        assert set(guessing.get_ydata()) == {100 * long_range["chance"][task]}


def test_long_range_is_the_mean_with_a_band_over_all_seeds_in_percent():
    runs = [
        {"task": "copy", "model": MODELS[0], "seed": seed, "trained_at": 8, "accuracy": {"16": a, "8": 1.0}}
        for seed, a in enumerate([0.2, 0.3, 0.7])
    ]
    (axes,) = plot_long_range(runs, {"copy": 0.125}, STYLES).axes
    np.testing.assert_allclose(line_of(axes, MODELS[0]).get_xydata(), [[8, 100], [16, 40]])
    np.testing.assert_allclose(band_of(axes, MODELS[0]), (20, 100))


def test_learning_curves_have_every_run_with_its_interval():
    panels = plot_learning_curves(RESULTS["quality"], STYLES).axes
    budgets = sorted(RESULTS["quality"][0]["budgets"], key=lambda result: result["models"][MODELS[1]]["updates"])
    for axes, costs in zip(panels, ([0.5, 1.0, 1.5, 2.0], [120, 270, 450, 570]), strict=False):
        line = line_of(axes, MODELS[1])
        models = [result["models"][MODELS[1]] for result in budgets]
        np.testing.assert_allclose(line.get_xydata(), [[x, m["score"]] for x, m in zip(costs, models, strict=True)])
        lows, highs = zip(*(model["interval"] for model in models), strict=True)
        np.testing.assert_allclose(band_of(axes, MODELS[1]), (min(lows), max(highs)))


def test_crossings_are_marked_on_the_curve_of_the_transformer():
    task = RESULTS["quality"][0]
    axes, _ = plot_learning_curves([task], STYLES).axes
    rings = [line.get_xydata()[0] for line in axes.lines if line.get_linestyle() == "None"]
    assert len(rings) == 2
    for x, y in rings:
        curve = np.log(line_of(axes, MODELS[0]).get_xdata()), line_of(axes, MODELS[0]).get_ydata()
        assert y == pytest.approx(np.interp(np.log(x), *curve))


def test_a_run_that_ends_by_time_costs_its_budget():
    facts = {"score": 1.0, "interval": [0.5, 1.5], "updates": 30, "training_seconds": 61.0}
    budgets = [{"minutes": minutes, "models": {"GRU": facts}} for minutes in (1.0, None)]
    assert [x for x, *_ in learning_curve({"budgets": budgets}, "GRU", "minutes")] == [1.0, 61 / 60]
    assert [x for x, *_ in learning_curve({"budgets": budgets}, "GRU", "updates")] == [30, 30]


def test_quality_has_a_bar_for_each_model_and_bucket():
    figure = plot_quality_by_length(RESULTS["quality"], STYLES)
    panels: list[Any] = figure.axes
    for axes, task in zip(panels, RESULTS["quality"], strict=True):
        by_length = task["budgets"][-1]["by_length"]
        assert len(axes.patches) == len(MODELS) * len(by_length)
        for model in MODELS:
            bars = [bar for bar in axes.patches if to_hex(bar.get_facecolor()) == STYLES[model].colour]
            assert [bar.get_height() for bar in bars] == [row["scores"][model] for row in by_length]
            assert [round(bar.get_x() + bar.get_width() / 2) for bar in bars] == list(range(len(by_length)))
