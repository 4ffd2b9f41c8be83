# SPDX-License-Identifier: Apache-2.0
"""Results of a preparation, as `vanilla_transformer.preparation.report` documents them."""

from typing import Any

from vanilla_transformer.preparation.filters import REASONS
from vanilla_transformer.preparation.report import LENGTH_BINS


def example_results() -> dict[str, Any]:
    dropped = {"one": dict.fromkeys(REASONS, 0) | {"script": 3}, "two": dict.fromkeys(REASONS, 1)}
    corpora = {
        name: {"read": 1000, "changed": 7, "kept": 1000 - sum(counts.values()), "dropped": counts}
        for name, counts in dropped.items()
    }
    samples: dict[str, list] = {reason: [["two", 5, f"a {reason}", "*b*"]] for reason in REASONS}
    samples["script"].append(["one", 1234, "x" * 1000, "y"])
    lengths = {
        state: {side: [size + place for place in range(LENGTH_BINS)] for place, side in enumerate(("source", "target"))}
        for state, size in (("read", 10), ("kept", 9))
    }
    return {"corpora": corpora, "samples": samples, "lengths": lengths}
