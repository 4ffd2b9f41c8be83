# SPDX-License-Identifier: Apache-2.0
import pytest

from tests.benchmark.train_examples import FILE, tiny_benchmark
from vanilla_transformer.benchmark.train_configuration import load_train_benchmark


def test_the_file_loads_and_overrides_win():
    config = load_train_benchmark(FILE, ["sizes=[base]", "lengths=[24]", "models.base.batch_tokens.24=480"])
    assert (config.sizes, config.lengths, config.batch_tokens("base", 24)) == (["base"], [24], 480)
    assert config.model_config("base", "transformer").d_ff == 2048
    assert config.model_config("base", "rnn").model_type == "rnn_seq2seq"


def test_the_file_for_a_gpu_takes_the_papers_batches():
    config = load_train_benchmark(FILE.with_name("benchmark_train_gpu.yaml"))
    assert {config.batch_tokens(size, length) for size in config.sizes for length in config.lengths} == {25000}
    assert config.model_config("big", "transformer").d_model == 1024
    assert config.compiled == [False, True]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sizes=[huge]", "sizes='huge' must be one of tiny"),
        ("memory_size=huge", "memory_size='huge' must be one of tiny"),
        ("corpus.size=huge", "corpus.size='huge' must be one of tiny"),
        ("systems=[ours, theirs]", "systems='theirs' must be one of ours, our RNN, MarianMT, nn.Transformer, x-tr"),
        ("precisions=[float16]", "precisions=.*'float16'"),
        ("lengths=[7]", "models.tiny.batch_tokens.7=None must be at least 7"),
        ("threads=[0]", r"threads=\[0\] must be a list of numbers, each at least 1"),
        ("corpus.updates=1", "corpus.updates=1 must be at least 2"),
        ("corpus.source=my.en", "corpus.source and corpus.target go together"),
        ("thresholds.marian.small=fast", "thresholds.marian"),
    ],
)
def test_an_impossible_value_is_named(override, message):
    with pytest.raises(ValueError, match=message):
        tiny_benchmark(override)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("timing.repeats=0", "timing.repeats=0 must be at least 1"),
        ("models.small.batch_tokens.512=4", "models.small.batch_tokens.512=4 must be at least 512"),
        ("models.small.batch_tokens=null", "models.small.batch_tokens.24=None must be at least 24"),
        (
            "models.small.transformer.width=3",
            "models.small.transformer must be a model's section: unknown key model.width",
        ),
        ("models.small.vocab_size=many", "models.small=.* must have vocab_size"),
        ("models.small.rnn=null", "models.small.rnn must be a model's section"),
    ],
)
def test_an_impossible_value_within_a_section_is_named(override, message):
    with pytest.raises(ValueError, match=message):
        load_train_benchmark(FILE, [override])
