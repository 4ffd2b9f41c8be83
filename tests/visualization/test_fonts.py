# SPDX-License-Identifier: Apache-2.0
import logging

from vanilla_transformer.visualization import fonts
from vanilla_transformer.visualization.fonts import OWN, fonts_for


def test_latin_and_cyrillic_need_no_other_font(caplog):
    assert fonts_for(["façade", "Łódź", "Быстрая", "</s>"]) == [OWN]
    assert caplog.records == []


def test_a_missing_font_is_named_in_one_line_with_its_remedy(monkeypatch, caplog):
    monkeypatch.setattr(fonts, "_installed", list)
    with caplog.at_level(logging.WARNING):
        fonts_for(["中文", "한"])
    [record] = caplog.records
    assert record.getMessage() == "no installed font has 中 文 한; on Debian: apt-get install fonts-noto-cjk"


def test_an_installed_font_is_taken_for_what_is_lacking(monkeypatch, caplog):
    monkeypatch.setattr(fonts, "OWN", "cmr10")  # comes with matplotlib, and has no Cyrillic
    from matplotlib.font_manager import findfont

    monkeypatch.setattr(fonts, "_installed", lambda: [findfont("DejaVu Sans")])
    assert fonts_for(["лиса"]) == ["cmr10", "DejaVu Sans"]
    assert caplog.records == []


def test_a_font_that_cannot_be_read_is_passed_over(tmp_path, monkeypatch, caplog):
    """A folder stands for a file that only another user may read: it fails for an administrator, too."""
    from matplotlib.font_manager import findfont

    monkeypatch.setattr(fonts, "OWN", "cmr10")
    monkeypatch.setattr(fonts, "_installed", lambda: [str(tmp_path), str(tmp_path / "gone"), findfont("DejaVu Sans")])
    assert fonts_for(["лиса"]) == ["cmr10", "DejaVu Sans"]
    assert caplog.records == []
