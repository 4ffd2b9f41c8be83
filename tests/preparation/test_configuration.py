# SPDX-License-Identifier: Apache-2.0
"""Every key of a preparation refuses bad input in one line; the shipped file loads."""

import pytest

from vanilla_transformer.console.shipped_configs import find_config
from vanilla_transformer.preparation.configuration import FilterConfig, load_prepare_config

CORPUS = "corpora.mine.path=raw.tsv"


def test_the_shipped_configuration_states_the_defaults():
    config = load_prepare_config(find_config("prepare"), [CORPUS])
    languages = {"source_language": "en", "target_language": "de"}
    scripts = {"source_scripts": ["Latin"], "target_scripts": ["Latin"]}
    assert config.filters == FilterConfig(**languages, **scripts)
    assert (config.write_dropped, config.samples, config.processes) == (False, 5, None)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("corpora={}", r"corpora=\{\} must name at least one"),
        ("corpora=raw.tsv", r"corpora='raw.tsv': expected dict"),
        ("corpora={a/b: {path: raw.tsv}}", r"corpora: the name 'a/b' must be of letters, digits"),
        ("corpora={mine: {source: raw.en}}", r"a corpus is given by both source and target, or by path"),
        ("corpora={mine: {source: raw.en, target: [a, b]}}", r"corpora.mine.target=\['a', 'b'\]: several references"),
        ("corpora.mine.nothing=1", r"unknown key corpora.mine.nothing; known keys are source"),
        ("held_out={test: {split: test}}", r"a corpus is given by both source and target"),
        ("held_out=test.en", r"held_out='test.en': expected dict"),
        ("output_dir=null", r"output_dir=None: expected str"),
        ("write_dropped=some", r"write_dropped='some': expected bool"),
        ("samples=-1", r"samples=-1 must be at least 0"),
        ("processes=0", r"processes=0 must be at least 1"),
        ("filters.nothing=1", r"unknown key filters.nothing; known keys are unicode_form, min_length"),
        (
            "filters.unicode_form=NFX",
            r"filters.unicode_form='NFX': expected 'NFC' or 'NFD' or 'NFKC' or 'NFKD' or null",
        ),
        ("filters.min_length=0", r"filters.min_length=0 must be at least 1"),
        ("filters.min_length=2000", r"filters.max_length=1000 must be at least min_length, which is 2000"),
        ("filters.max_length=0", r"filters.max_length=0 must be at least 1"),
        ("filters.max_length_ratio=0.5", r"filters.max_length_ratio=0.5 must be at least 1"),
        ("filters.identical=1", r"filters.identical=1: expected bool"),
        ("filters.source_scripts=[Latein]", r"filters.source_scripts=\['Latein'\]: 'Latein' is not a Unicode script"),
        ("filters.target_scripts=[]", r"filters.target_scripts=\[\] must name at least one script"),
        ("filters.target_scripts=Latin", r"filters.target_scripts='Latin': expected list"),
        ("filters.min_script_share=1.5", r"filters.min_script_share=1.5 must be at least 0 and less than 1"),
        ("filters.source_language=english", r"filters.source_language='english' is not a language of py3langid: ace, "),
        ("filters.target_language=xx", r"filters.target_language='xx' is not a language of py3langid"),
        ("filters.min_language_confidence=-0.1", r"filters.min_language_confidence=-0.1 must be at least 0 and less"),
        ("filters.numbers=maybe", r"filters.numbers='maybe': expected bool"),
        ("filters.exact_duplicates=2", r"filters.exact_duplicates=2: expected bool"),
        ("filters.near_duplicates=0.5", r"filters.near_duplicates=0.5 must be at least 0.8"),
        ("filters.near_duplicates=1.5", r"filters.near_duplicates=1.5 must be at most 1"),
        ("nothing=1", r"unknown key nothing; known keys are output_dir, corpora"),
    ],
)
def test_bad_input_is_one_line(override: str, message: str):
    overrides = [override] if override.startswith("corpora") else [CORPUS, override]
    with pytest.raises(ValueError, match=message) as error:
        load_prepare_config(find_config("prepare"), overrides)
    assert "\n" not in str(error.value)


def test_a_corpus_is_needed():
    with pytest.raises(ValueError, match="corpora is missing"):
        load_prepare_config(find_config("prepare"))
