# SPDX-License-Identifier: Apache-2.0
"""One preparation as YAML: raw corpora, held-out text and filters."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from huggingface_hub.dataclasses import strict

from vanilla_transformer.data.corpus import CorpusConfig
from vanilla_transformer.training.bounds import at_least, probability
from vanilla_transformer.training.yaml_sections import build_section, read_yaml


@strict
@dataclass(kw_only=True)
class FilterConfig:
    """Which pairs are dropped; null or false leaves a filter out. Lengths are in characters, after normalisation.

    Args:
        unicode_form: the form that all text is brought into; null leaves it as it is. Control characters and byte order
            marks are always removed, and all white space becomes single spaces.
        min_length, max_length: of each side.
        max_length_ratio: of the longer side to the shorter.
        identical: drop pairs whose sides are the same text, apart from capitals.
        source_scripts, target_scripts: Unicode scripts of a side, such as [Latin] or [Han, Hiragana, Katakana].
        min_script_share: the least share of a side's letters that must be of its scripts.
        source_language, target_language: codes of py3langid, ISO 639, such as en.
        min_language_confidence: the least confidence, by py3langid among all its languages, that a side is in its own.
        numbers: drop pairs whose sides both have digits, but not the same, apart from their order and zeros.
        exact_duplicates: drop pairs that an earlier pair equals.
        near_duplicates: drop pairs whose character 4-grams have this Jaccard similarity with those of an earlier pair.
    """

    unicode_form: Literal["NFC", "NFD", "NFKC", "NFKD"] | None = "NFC"
    min_length: int = at_least(1, default=1)
    max_length: int | None = at_least(1, default=1000)
    max_length_ratio: float | None = at_least(1, default=3.0)
    identical: bool = True
    source_scripts: list[str] | None = None
    target_scripts: list[str] | None = None
    min_script_share: float = probability(default=0.5)
    source_language: str | None = None
    target_language: str | None = None
    min_language_confidence: float = probability(default=0.05)
    numbers: bool = True
    exact_duplicates: bool = True
    near_duplicates: float | None = at_least(0.8, default=0.8)  # below it, the bands of the signatures miss too many

    def __post_init__(self):
        if self.max_length is not None and self.max_length < self.min_length:
            raise ValueError(
                f"filters.max_length={self.max_length} must be at least min_length, which is {self.min_length}"
            )
        if self.near_duplicates is not None and self.near_duplicates > 1:
            raise ValueError(f"filters.near_duplicates={self.near_duplicates} must be at most 1")
        for side in ("source", "target"):
            _check_scripts(f"filters.{side}_scripts", getattr(self, f"{side}_scripts"))
            _check_language(f"filters.{side}_language", getattr(self, f"{side}_language"))


@strict
@dataclass(kw_only=True)
class PrepareConfig:
    """One preparation.

    Args:
        output_dir: the folder to write: NAME.source and NAME.target for each corpus, report.md, filters.png. The same
            command resumes in it.
        corpora: name → raw corpus. Of equal pairs the first corpus keeps one.
        held_out: name → corpus, of validation and test: a pair is dropped if one of its sides is a line of theirs,
            apart from capitals, spaces and punctuation.
        filters: which pairs are dropped.
        write_dropped: write NAME.dropped.jsonl, with line, reason and text of each dropped pair.
        samples: dropped pairs that the report shows for each reason.
        processes: that filter at once; null: as many as there are cores. They do not change the result.
    """

    output_dir: str
    corpora: dict[str, CorpusConfig]
    held_out: dict[str, CorpusConfig] = field(default_factory=dict)
    filters: FilterConfig = field(default_factory=FilterConfig)
    write_dropped: bool = False
    samples: int = at_least(0, default=5)
    processes: int | None = at_least(1, default=None)

    def __post_init__(self):
        if not self.corpora:
            raise ValueError("corpora={} must name at least one")
        for section, corpora in (("corpora", self.corpora), ("held_out", self.held_out)):
            for name, corpus in corpora.items():
                if not re.fullmatch(r"\w[\w.-]*", name):
                    raise ValueError(f"{section}: the name {name!r} must be of letters, digits, '.', '_' and '-'")
                if corpus.alignments is not None:
                    raise ValueError(f"{section}.{name}.alignments={corpus.alignments} is for training; leave it out")
                if section == "corpora" and isinstance(corpus.target, list):
                    raise ValueError(f"corpora.{name}.target={corpus.target}: several references are for a test set")


def load_prepare_config(path: str | Path, overrides: list[str] | None = None) -> PrepareConfig:
    """Read a YAML file, and apply `section.key=value` overrides.

    Raises:
        FileNotFoundError: no such file.
        ValueError: one line that names the key, its value and what is allowed.
    """
    return build_section(PrepareConfig, read_yaml(Path(path), overrides), where="")


def _check_scripts(where: str, scripts: list[str] | None) -> None:
    if scripts is None:
        return
    import regex

    if not scripts:
        raise ValueError(f"{where}=[] must name at least one script")
    for script in scripts:
        try:
            regex.compile(rf"\p{{Script={script}}}")
        except regex.error as error:
            raise ValueError(
                f"{where}={scripts}: {script!r} is not a Unicode script, such as Latin, Cyrillic, Arabic or Han"
            ) from error


def _check_language(where: str, language: str | None) -> None:
    if language is None:
        return
    from vanilla_transformer.preparation.filters import language_identifier

    known = language_identifier().labels
    if language not in known:
        raise ValueError(f"{where}={language!r} is not a language of py3langid: {', '.join(sorted(known))}")
