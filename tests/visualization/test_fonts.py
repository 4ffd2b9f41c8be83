# SPDX-License-Identifier: Apache-2.0
import logging

from vanilla_transformer.visualization import fonts
from vanilla_transformer.visualization.fonts import DEFAULT_FAMILY, fonts_for


def test_latin_and_cyrillic_need_no_other_font(caplog):
    assert fonts_for(["façade", "Łódź", "Быстрая", "</s>"]) == [DEFAULT_FAMILY]
    assert caplog.records == []


def test_a_missing_font_is_named_in_one_line_with_its_remedy(monkeypatch, caplog):
    monkeypatch.setattr(fonts, "_installed_fonts", list)
    with caplog.at_level(logging.WARNING):
        fonts_for(["中文", "한"])
    [record] = caplog.records
    assert record.getMessage() == "no installed font has 中 文 한; on Debian: apt-get install fonts-noto-cjk"


def test_an_installed_font_supplies_missing_characters(monkeypatch, caplog):
    monkeypatch.setattr(fonts, "DEFAULT_FAMILY", "cmr10")  # comes with matplotlib, and has no Cyrillic
    from matplotlib.font_manager import findfont

    monkeypatch.setattr(fonts, "_installed_fonts", lambda: [findfont("DejaVu Sans")])
    assert fonts_for(["лиса"]) == ["cmr10", "DejaVu Sans"]
    assert caplog.records == []


def test_an_unreadable_font_is_skipped(tmp_path, monkeypatch, caplog):
    """A folder stands in for a file without read permission, which an administrator could read."""
    from matplotlib.font_manager import findfont

    monkeypatch.setattr(fonts, "DEFAULT_FAMILY", "cmr10")
    monkeypatch.setattr(
        fonts, "_installed_fonts", lambda: [str(tmp_path), str(tmp_path / "gone"), findfont("DejaVu Sans")]
    )
    assert fonts_for(["лиса"]) == ["cmr10", "DejaVu Sans"]
    assert caplog.records == []
