# SPDX-License-Identifier: Apache-2.0
"""The site of `make docs`: it builds strictly, asks no other host for anything, and names options that exist."""

import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from tests.test_readme import REPOSITORY
from vanilla_transformer.cli import _parser
from vanilla_transformer.configuration_rnn_seq2seq import RNNSeq2SeqConfig
from vanilla_transformer.configuration_vanilla_transformer import VanillaTransformerConfig
from vanilla_transformer.data.corpus import CorpusConfig
from vanilla_transformer.training.configuration import RunConfig

CONFIGS = (VanillaTransformerConfig, RNNSeq2SeqConfig)
COMING_FROM = (REPOSITORY / "docs" / "coming-from.md").read_text(encoding="utf-8")
# The URLs that a browser fetches to show a page; the targets of links are not among them.
FETCHED = re.compile(r"""<(?:script|img|iframe|source)\b[^>]*\bsrc=["']?([^"'\s>]+)|url\(["']?([^"')]+)""")
STYLE = re.compile(r"""<link\b[^>]*\brel=["']?(?:stylesheet|icon|preload|preconnect|dns-prefetch)\b[^>]*>""")


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", "-", "--site-dir", str(folder)]
    configuration = (REPOSITORY / "docs" / "mkdocs.yml").read_text(encoding="utf-8")
    built = subprocess.run(
        command, input=configuration, cwd=REPOSITORY, capture_output=True, encoding="utf-8", check=False
    )
    assert built.returncode == 0, built.stderr[-3000:]
    return folder


def test_every_document_is_a_page(site: Path):
    pages = {path.relative_to(site).with_suffix(".md") for path in site.rglob("*.html")}
    documents = {path.relative_to(REPOSITORY / "docs") for path in (REPOSITORY / "docs").rglob("*.md")}
    assert documents < pages
    assert pages - documents == {Path(name) for name in ("index.md", "contributing.md", "changelog.md", "404.md")}


def test_an_open_page_asks_no_other_host(site: Path):
    for path in [*site.rglob("*.html"), *site.rglob("*.css")]:
        text = path.read_text(encoding="utf-8")
        fetched = [first or second for first, second in FETCHED.findall(text)] + STYLE.findall(text)
        assert [target for target in fetched if re.search(r"(?<!:)//", target)] == [], path


def test_classes_of_the_tour_lead_to_the_api(site: Path):
    tour = (site / "tour.html").read_text(encoding="utf-8")
    target = "api/models.html#vanilla_transformer.modeling_vanilla_transformer.EncoderLayer"
    assert f'href="{target}"' in tour
    assert 'id="vanilla_transformer.modeling_vanilla_transformer.EncoderLayer"' in (
        site / "api" / "models.html"
    ).read_text(encoding="utf-8")


def test_search_knows_the_api(site: Path):
    index = (site / "search" / "search_index.json").read_text(encoding="utf-8")
    assert "vanilla_transformer.generation.beam_search" in index


def ours() -> list[str]:
    """The code in the right columns of the tables."""
    rows = [line.split("|") for line in COMING_FROM.splitlines() if line.startswith("|")]
    return [code for row in rows for code in re.findall(r"`([^`]+)`", row[2])]


def test_keys_of_other_toolkits_lead_to_keys_that_exist():
    known = {section.name: {field.name for field in fields(section.type)} for section in fields(RunConfig)
             if section.name != "model" and isinstance(section.type, type)}  # fmt: skip
    known["model"] = {"model_type", *(field.name for config in CONFIGS for field in fields(config))}
    corpus = {field.name for field in fields(CorpusConfig)}
    found = [match for code in ours() for match in re.findall(r"\b([a-z]+)\.(\w+)(?:\.(\w+))?", code)]
    assert len(found) > 80
    for section, key, inner in found:
        if section in known:
            assert key in known[section], f"{section}.{key}"
            assert not inner or inner in corpus, f"{section}.{key}.{inner}"


def test_options_of_other_toolkits_lead_to_options_that_exist():
    known = set()
    for command in ("translate", "average"):
        known |= set(re.findall(r"--[\w-]+", help_of(command)))
    assert {option for code in ours() for option in re.findall(r"(?<!\w)--[\w-]+", code)} <= known


def help_of(command: str) -> str:
    parser = _parser()
    (subparsers,) = (action for action in parser._actions if action.choices and command in action.choices)
    assert isinstance(subparsers.choices, dict)
    return subparsers.choices[command].format_help()


def test_configs_of_other_toolkits_lead_to_configs_that_exist():
    names = [name for code in ours() for name in re.findall(r"\btrain ([a-z]\S*)", code)]
    assert len(names) > 4
    for name in names:
        assert (REPOSITORY / "configs" / f"{name}.yaml").is_file(), name


@pytest.mark.parametrize("page", ["README.md", "docs/results.md"])
def test_no_placeholder_is_left(page: str):
    assert re.findall(r"\b[A-Z]+_TABLE\b|\b[QD]_[A-Z0-9]+\b", (REPOSITORY / page).read_text(encoding="utf-8")) == []
