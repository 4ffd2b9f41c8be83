# SPDX-License-Identifier: Apache-2.0
"""A difference between the C++ structures and their mirrors is an error before anything is computed."""

import re
from ctypes import Structure, c_int32, c_int64, sizeof

import pytest

from tests.families import FAMILIES
from vanilla_transformer.inference.native import compiler, structures
from vanilla_transformer.inference.native.transformer import NativeDecoder

FIELDS = structures.Linear._fields_
MISMATCHES = {
    "a field more": ([*FIELDS, ("groups", c_int64)], "Linear.groups is nothing in C++ and 8 bytes at offset 48 in"),
    "a field less": (FIELDS[:-1], "Linear is 48 bytes at offset 0 in C++ and 40 bytes at offset 0 in"),
    "another order": (
        [FIELDS[1], FIELDS[0], *FIELDS[2:]],
        "Linear.scale is 8 bytes at offset 8 in C++ and 8 bytes at offset 0 in",
    ),
    "another size": (
        [*FIELDS[:-1], ("is_bfloat16", c_int64)],
        "Linear.is_bfloat16 is 4 bytes at offset 40 in C++ and 8 bytes at offset 40 in",
    ),
    "another name": ([*FIELDS[:-1], ("rows", c_int32)], "Linear.rows is nothing in C++ and 4 bytes at offset 40 in"),
}
INTERNAL = {
    "BFloat16",
    "FieldLayout",
    "Prefetch",
    "RowScale",
    "Rows",
    "SentenceRange",
    "ThreadRows",
}  # Python never sees these


@pytest.mark.parametrize(("fields", "message"), MISMATCHES.values(), ids=MISMATCHES)
def test_layout_mismatch_is_an_error_before_anything_is_computed(monkeypatch, fields, message):
    changed = type("Linear", (Structure,), {"_fields_": fields})
    others = (structure for structure in structures.STRUCTURES if structure is not structures.Linear)
    monkeypatch.setattr(structures, "STRUCTURES", (changed, *others))
    with pytest.raises(AssertionError, match=f"^{re.escape(message)} .*a bug of vanilla_transformer.*$"):
        NativeDecoder(FAMILIES[0].model())


def test_every_structure_is_mirrored_or_internal():
    text = "\n".join(path.read_text(encoding="utf-8") for path in (*compiler.HEADERS, compiler.SOURCE))
    mirrored = {structure.__name__ for structure in structures.STRUCTURES}
    assert set(re.findall(r"^struct (\w+) {", text, re.MULTILINE)) == mirrored | INTERNAL


@pytest.mark.parametrize("structure", structures.STRUCTURES)
def test_fields_leave_no_room_for_another(structure):
    """The library lists its fields by hand: one that it left out would be a gap here."""
    fields = [getattr(structure, name) for name, *_ in structure._fields_]
    starts = [*(field.offset for field in fields[1:]), sizeof(structure)]
    assert all(start - field.offset - field.size < 8 for field, start in zip(fields, starts, strict=True))


def test_constants_are_those_of_the_headers():
    text = "\n".join(path.read_text(encoding="utf-8") for path in compiler.HEADERS)
    constants = structures.load_library().constants()
    assert constants.panel_width in (8, 16, 32)
    assert constants.group in (2, 4)
    for field in ("CacheBlock", "MaxQueriesPerTile", "MaxReplicatedRows"):
        [number] = re.findall(rf"^constexpr int k{field} = (\d+);", text, re.MULTILINE)
        assert getattr(constants, re.sub(r"\B([A-Z])", r"_\1", field).lower()) == int(number)
