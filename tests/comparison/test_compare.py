# SPDX-License-Identifier: Apache-2.0
"""The folder of a comparison, with example measurements."""

import json
from pathlib import Path

import pytest
import yaml

from tests.comparison.example_results import example_results
from vanilla_transformer.comparison import compare as module
from vanilla_transformer.comparison.compare import CompareConfig, compare, load_compare_config

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture
def measured(monkeypatch) -> list[str]:
    """The names of the parts, in the order in which they were measured."""
    parts, results = [], example_results()

    def measure(part: str):
        def measured_part(*_):
            parts.append(part)
            return results[part]

        return measured_part

    for part in ("speed", "long_range", "quality"):
        monkeypatch.setattr(module, f"measure_{part}", measure(part))
    return parts


@pytest.fixture
def config(tmp_path) -> CompareConfig:
    return load_compare_config(CONFIGS / "compare.yaml", [f"output_dir={tmp_path}/out"])


@pytest.fixture
def speed_alone(config: CompareConfig) -> CompareConfig:
    """The comparison without the other parts, whose plots are slow."""
    config.long_range = config.quality = None
    return config


def run(config: CompareConfig) -> dict:
    return compare(config, lambda *_: None)


def test_the_folder_has_report_plots_results_and_configuration(config, measured):
    results = run(config)
    folder = Path(config.output_dir)
    assert {"report.md", "results.json", "config.yaml", "speed.png", "gradients.png", "long_range.png"} <= {
        path.name for path in folder.iterdir()
    }
    assert json.loads((folder / "results.json").read_text(encoding="utf-8")) == json.loads(json.dumps(results))
    written = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    assert written["speed"]["models"] == config.speed.models
    assert written["quality"]["pronunciation"]["updates"] == config.quality["pronunciation"].updates


def test_the_written_configuration_gives_the_same_comparison(config, measured):
    run(config)
    again = load_compare_config(f"{config.output_dir}/config.yaml")
    files = [Path(file).resolve() for each in (again, config) for file in each.quality["pronunciation"].runs.values()]
    assert files[:2] == files[2:]
    assert (again.speed, again.long_range) == (config.speed, config.long_range)
    run(again)
    assert measured == ["speed", "long_range", "quality"]  # once


def test_finished_parts_are_not_measured_again(config, measured, monkeypatch):
    stopped = pytest.raises(KeyboardInterrupt)
    monkeypatch.setattr(module, "measure_quality", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with stopped:
        run(config)
    assert measured == ["speed", "long_range"]
    monkeypatch.setattr(module, "measure_quality", lambda *_: example_results()["quality"])
    run(config)
    assert measured == ["speed", "long_range"]


def test_a_null_part_is_left_out(speed_alone, measured):
    results = run(speed_alone)
    assert measured == ["speed"]
    assert (results["long_range"], results["quality"]) == (None, None)


@pytest.mark.parametrize("content", ["", '{"settings": {', "[]", '{"settings": {}}'])
def test_a_damaged_part_is_named(speed_alone, measured, content):
    part = Path(speed_alone.output_dir) / "parts" / "speed.json"
    run(speed_alone)
    part.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=r"parts/speed.json is damaged: remove it, and the same command measures it"):
        run(speed_alone)


def test_a_part_of_other_settings_is_named(speed_alone, measured):
    run(speed_alone)
    speed_alone.speed.repeats = 9
    with pytest.raises(ValueError, match=r"parts/speed.json was made with other settings"):
        run(speed_alone)
    written = (Path(speed_alone.output_dir) / "config.yaml").read_text(encoding="utf-8")
    assert "repeats: 5" in written  # the settings of the results


def test_a_folder_of_something_else_is_refused(config, measured):
    folder = Path(config.output_dir)
    folder.mkdir()
    (folder / "config.yaml").write_text("training: {output_dir: mine}", encoding="utf-8")  # a training run's
    with pytest.raises(ValueError, match=r"holds files that are of no comparison; choose another folder"):
        run(config)
    assert (folder / "config.yaml").read_text(encoding="utf-8") == "training: {output_dir: mine}"
    assert measured == []


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["speed=null", "long_range=null", "quality=null"], "compares nothing: give it one of the sections"),
        (["quality.pronunciation.updates=0"], "quality.pronunciation.updates=0 must be at least 1"),
        (["sped.repeats=1"], "unknown key sped; known keys are output_dir, speed, long_range, quality"),
        (["speed.repeat=1"], "unknown key speed.repeat; known keys are"),
        (["speed.repeats=many"], "speed.repeats='many': expected int, got str"),
        (
            ["quality.pronunciation.metric=wer"],
            "quality.pronunciation.metric='wer': expected 'word error rate'",
        ),
        (["long_range.models.GRU.model.cell=gro"], "model.cell='gro': expected 'tanh' or 'gru' or 'lstm'"),
    ],
)
def test_configuration_errors_name_the_section_and_key(tmp_path, overrides, message):
    with pytest.raises(ValueError, match=message):
        load_compare_config(CONFIGS / "compare.yaml", [f"output_dir={tmp_path}/out", *overrides])
