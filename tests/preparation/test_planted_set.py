# SPDX-License-Identifier: Apache-2.0
"""A set with each kind of dirt planted: `pytest -s` prints how much of it is dropped, and what else is."""

import json
from pathlib import Path

from tests.preparation.planted import planted_set
from vanilla_transformer.data.corpus import CorpusConfig, read_lines
from vanilla_transformer.preparation.configuration import FilterConfig, PrepareConfig
from vanilla_transformer.preparation.filters import REASONS
from vanilla_transformer.preparation.prepare import prepare

LATIN = {"source_scripts": ["Latin"], "target_scripts": ["Latin"]}
LANGUAGES = {"source_language": "en", "target_language": "de"}


def write(folder: Path, name: str, pairs: list[tuple[str, str]]) -> CorpusConfig:
    """The pairs as JSON lines, in which a side may hold any character."""
    path = folder / f"{name}.jsonl"
    rows = [json.dumps({"source": source, "target": target}) for source, target in pairs]
    path.write_text("\n".join(rows), encoding="utf-8")
    return CorpusConfig(path=str(path))


def test_recall_and_false_drops_on_a_planted_set(tmp_path: Path):
    rows, held_out = planted_set(clean=1000, each=100, held_out=50)
    config = PrepareConfig(
        output_dir=str(tmp_path / "out"),
        corpora={"raw": write(tmp_path, "raw", [row.pair for row in rows])},
        held_out={"test": write(tmp_path, "test", held_out)},
        filters=FilterConfig(**LATIN, **LANGUAGES),
        write_dropped=True,
        processes=1,
    )
    prepare(config)
    dropped = {}
    for line in read_lines(tmp_path / "out" / "raw.dropped.jsonl"):
        row = json.loads(line)
        dropped[row["line"] - 1] = row["reason"]
    print(f"\n{'planted':16} {'pairs':>6} {'dropped':>8} {'for this reason':>16}")
    for reason in (*REASONS, None):
        places = [place for place, row in enumerate(rows) if row.reason == reason]
        all_drops = sum(place in dropped for place in places)
        named = sum(dropped.get(place) == reason for place in places)
        print(f"{reason or 'clean':16} {len(places):6} {all_drops:8} {named if reason else '':>16}")
        if reason is None:
            assert all_drops <= 0.01 * len(places)
        else:
            assert len(places) == 100
            assert named >= 0.95 * len(places)
    expected = [row.kept_as for place, row in enumerate(rows) if place not in dropped]
    written = (read_lines(tmp_path / "out" / f"raw.{side}") for side in ("source", "target"))
    assert list(zip(*written, strict=True)) == expected  # in order, and normalised
