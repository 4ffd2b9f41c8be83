# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pytest

from vanilla_transformer.benchmark.configuration import load_benchmark_config

FILE = Path(__file__).parents[2] / "configs" / "benchmark_decode.yaml"


def test_the_file_loads_and_overrides_win():
    config = load_benchmark_config(FILE, ["sizes=[small]", "timing.repeats=2", "ctranslate2=false"])
    assert (config.sizes, config.timing.repeats, config.ctranslate2) == (["small"], 2, False)
    assert config.model_config("base").d_ff == 2048
    assert config.real.model is None


def test_former_names_of_sections_are_accepted(tmp_path):
    text = FILE.read_text(encoding="utf-8").replace("thresholds:", "bars:").replace("roofline:", "limits:")
    (tmp_path / "former.yaml").write_text(text, encoding="utf-8")
    assert load_benchmark_config(tmp_path / "former.yaml") == load_benchmark_config(FILE)
    for file in (FILE, tmp_path / "former.yaml"):
        for override in ("bars.real_marian=7", "thresholds.real_marian=7"):
            thresholds = load_benchmark_config(file, [override]).thresholds
            assert (thresholds.real_marian, thresholds.float32_marian_mean) == (7.0, 2.5)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sizes=[]", r"sizes=\[\] must name some of the models: small, base"),
        ("sizes=[tiny]", r"sizes=\['tiny'\] must name some of the models: small, base"),
        ("batch_sizes=[0]", r"batch_sizes=\[0\] must be a list of numbers, each at least 1"),
        ("target_tokens=0", "target_tokens=0 must be at least 1"),
        ("target_tokens=few", "target_tokens='few': expected int"),
        ("precisions=[int8]", r"precisions=\['int8'\] must be float32 and"),
        ("precisions=[float32, int4]", "must be float32 and any of bfloat16, int8"),
        ("timing.repeats=0", "timing.repeats=0 must be at least 1"),
        ("timing.pause=-1", "timing.pause=-1.0 must be at least 0"),
        ("roofline.product=0", "roofline.product=0 must be at least 1"),
        ("thresholds.marian=2", "unknown key thresholds.marian"),
        ("limits.product=0", "roofline.product=0 must be at least 1"),
        ("bars.marian=2", "unknown key thresholds.marian"),
        ("models.small.width=3", "models.small: unknown key model.width"),
        ("models.small.norm_position=pre", "models.small: norm_position='pre': MarianMT can have only 'post'"),
        ("models.small.vocab_size=null", "models.small=.* must be a section with vocab_size"),
        ("real.model=runs/mine/model", "real.model, real.source and real.reference go together; given: real.model"),
        ("real.batch_sizes=[]", r"real.batch_sizes=\[\] must be a list of numbers, each at least 1"),
        ("real.beams=0", "real.beams=0 must be at least 1"),
    ],
)
def test_an_impossible_value_is_named(override, message):
    with pytest.raises(ValueError, match=message):
        load_benchmark_config(FILE, [override])
