# SPDX-License-Identifier: Apache-2.0
"""Every config under configs/ loads, and those of configs/paper are the rows of Table 3."""

from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import yaml
from transformers import AutoModelForSeq2SeqLM, PreTrainedModel

from vanilla_transformer import VanillaTransformerConfig, VanillaTransformerForConditionalGeneration
from vanilla_transformer.benchmark.configuration import load_benchmark_config
from vanilla_transformer.benchmark.train_configuration import load_train_benchmark
from vanilla_transformer.comparison.compare import load_compare_config
from vanilla_transformer.comparison.fairness import check_parameters
from vanilla_transformer.comparison.quality import load_runs
from vanilla_transformer.comparison.tasks import VOCAB_SIZE
from vanilla_transformer.training.configuration import load_run_config, model_config_of
from vanilla_transformer.tuning.configuration import load_sweep_config
from vanilla_transformer.tuning.space import tuned_runs

CONFIGS = Path(__file__).parents[1] / "configs"
PAPER = CONFIGS / "paper"
VOCABULARY = 37000  # section 5.1
LONGEST = 1024  # rows of a learned position table


class Row(NamedTuple):
    """A row of Table 3, with the values that it takes over from "base", and the parameters of our model."""

    parameters: int
    num_layers: int = 6
    d_model: int = 512
    d_ff: int = 2048
    num_heads: int = 8
    d_k: int = 64
    d_v: int = 64
    dropout: float = 0.1
    label_smoothing: float = 0.1
    position_embedding: str = "sinusoidal"
    max_updates: int = 100_000


TABLE_3 = {
    "base": Row(63_045_632),
    "a_1_head": Row(63_045_632, num_heads=1, d_k=512, d_v=512),
    "a_4_heads": Row(63_045_632, num_heads=4, d_k=128, d_v=128),
    "a_16_heads": Row(63_045_632, num_heads=16, d_k=32, d_v=32),
    "a_32_heads": Row(63_045_632, num_heads=32, d_k=16, d_v=16),
    "b_d_k_16": Row(55_967_744, d_k=16),
    "b_d_k_32": Row(58_327_040, d_k=32),
    "c_2_layers": Row(33_644_544, num_layers=2),
    "c_4_layers": Row(48_345_088, num_layers=4),
    "c_8_layers": Row(77_746_176, num_layers=8),
    "c_d_model_256": Row(26_816_512, d_model=256, d_k=32, d_v=32),
    "c_d_model_1024": Row(163_815_424, d_model=1024, d_k=128, d_v=128),
    "c_d_ff_1024": Row(50_450_432, d_ff=1024),
    "c_d_ff_4096": Row(88_236_032, d_ff=4096),
    "d_dropout_0": Row(63_045_632, dropout=0.0),
    "d_dropout_0.2": Row(63_045_632, dropout=0.2),
    "d_label_smoothing_0": Row(63_045_632, label_smoothing=0.0),
    "d_label_smoothing_0.2": Row(63_045_632, label_smoothing=0.2),
    # Base and a table of 1024 positions in each of the two stacks.
    "e_learned_positions": Row(63_045_632 + 2 * 1024 * 512, position_embedding="learned"),
    "big": Row(214_171_648, d_model=1024, d_ff=4096, num_heads=16, dropout=0.3, max_updates=300_000),
}


def parameters_by_the_paper(row: Row) -> int:
    """Section 3: no biases but those of the feed-forward networks, one embedding matrix, no final LayerNorm."""
    attention = row.d_model * row.num_heads * (2 * row.d_k + 2 * row.d_v)  # W^Q and W^K, W^V and W^O
    feed_forward = 2 * row.d_model * row.d_ff + row.d_ff + row.d_model
    layer_norm = 2 * row.d_model
    encoder_layer = attention + feed_forward + 2 * layer_norm
    decoder_layer = 2 * attention + feed_forward + 3 * layer_norm
    positions = 2 * LONGEST * row.d_model if row.position_embedding == "learned" else 0
    return VOCABULARY * row.d_model + row.num_layers * (encoder_layer + decoder_layer) + positions


COMPARISONS = sorted(CONFIGS.glob("compare*.yaml"))
BENCHMARKS = sorted(CONFIGS.glob("benchmark*.yaml"))
SWEEPS = sorted(CONFIGS.glob("sweep*.yaml"))
OF_OTHERS = [
    CONFIGS / "finetune.yaml",
    CONFIGS / "prepare.yaml",
    *(CONFIGS / "accelerate").glob("*.yaml"),
]  # whose tests load them
RUNS = [path for path in sorted(CONFIGS.rglob("*.yaml")) if path not in COMPARISONS + BENCHMARKS + SWEEPS + OF_OTHERS]


def meta_model(model: dict, vocab_size: int) -> PreTrainedModel:
    """A model of a config's section, without memory for its weights."""
    with torch.device("meta"):
        return AutoModelForSeq2SeqLM.from_config(model_config_of(model, vocab_size=vocab_size))


@pytest.mark.parametrize("path", RUNS, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_every_config_of_a_run_loads(path: Path):
    config = load_run_config(path, overrides=[])
    assert model_config_of(config.model, vocab_size=VOCABULARY).vocab_size == VOCABULARY


@pytest.mark.parametrize("path", RUNS, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_every_model_has_the_attention_that_its_config_asks_for(path: Path):
    config = load_run_config(path, overrides=[])
    meta_model(config.model, 100).set_attn_implementation(config.training.attention)  # raises


@pytest.mark.parametrize("path", COMPARISONS, ids=lambda path: path.name)
def test_every_comparison_is_of_equal_runs(path: Path, tmp_path: Path):
    config = load_compare_config(path)
    for name, task in (config.quality or {}).items():
        if task.metric == "BLEU":
            task.data = {"test": {"source": "the.user's", "target": "the.user's"}}
        runs = load_runs(name, task, task.budgets[0], tmp_path)  # raises where they differ in more than the model
        sizes = {model: meta_model(run.model, 72).num_parameters() for model, run in runs.items()}
        if task.metric == "word error rate":  # 72: the vocabulary of letters and phonemes
            check_parameters(name, sizes)
    if config.speed is not None:
        sizes = {name: meta_model(model, config.speed.vocab_size).num_parameters()
                 for name, model in config.speed.models.items()}  # fmt: skip
        check_parameters("speed", sizes)
    if config.long_range is not None:
        sizes = {name: meta_model(each.model, VOCAB_SIZE).num_parameters()
                 for name, each in config.long_range.models.items()}  # fmt: skip
        check_parameters("long_range", sizes)


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.name)
def test_every_sweep_has_values_that_its_runs_accept(path: Path):
    corpus = {"source": "the.user's", "target": "the.user's"}
    config = load_sweep_config(path)
    if path.name == "sweep.yaml":
        config.data = {"train": corpus, "validation": corpus}
    assert all(run.space for run in tuned_runs(config).values())  # raises


@pytest.mark.parametrize("path", BENCHMARKS, ids=lambda path: path.name)
def test_every_benchmark_loads(path: Path):
    load = load_train_benchmark if path.name.startswith("benchmark_train") else load_benchmark_config
    load(path)  # raises, for models that no peer can be too


@pytest.mark.parametrize(
    ("rnn", "transformer", "vocab_size"),
    [("rnn_best", "paper/base", 37000), ("multi30k", "multi30k", 6000), ("quickstart", "quickstart", 72)],
)
def test_the_rnn_has_as_many_parameters_as_the_transformer_beside_it(rnn, transformer, vocab_size):
    paths = CONFIGS / "rnn" / f"{rnn}.yaml", CONFIGS / f"{transformer}.yaml"
    one, other = (meta_model(load_run_config(path).model, vocab_size).num_parameters() for path in paths)
    assert one == pytest.approx(other, rel=0.01)


def test_historical_models_are_as_in_their_papers():
    models = {year: load_run_config(CONFIGS / "rnn" / f"{year}.yaml").model
              for year in ("sutskever2014", "bahdanau2015", "luong2015")}  # fmt: skip
    # 4 LSTM layers of 1,000 on each side of embeddings of 1,000: 2 x 4 layers x 4 gates x (1,000 x 2,000 + 2 biases)
    recurrence = 2 * 4 * 4 * (1000 * 2000 + 2 * 1000)
    assert meta_model(models["sutskever2014"], 100).num_parameters() == recurrence + 3 * 100 * 1000
    feeding = 4 * 1000 * 1000  # the attentional vector into the first layer of the decoder
    attention = 1000 * 1000 + 2 * 1000 * 1000  # W_a, W_c
    assert meta_model(models["luong2015"], 100).num_parameters() == recurrence + feeding + attention + 3 * 100 * 1000
    encoder = 2 * 3 * (1000 * (620 + 1000) + 2 * 1000)
    decoder = 3 * (1000 * (620 + 2000 + 1000) + 2 * 1000)
    attention = 1000 * 1000 + 1000 * 2000 + 1000  # W_a, U_a, v_a
    bridge, readout = 2000 * 1000 + 1000, (2000 + 1000) * 620
    expected = encoder + decoder + attention + bridge + readout + 3 * 100 * 620
    assert meta_model(models["bahdanau2015"], 100).num_parameters() == expected


def test_there_is_a_config_for_each_row_of_table_3():
    assert {path.name for path in PAPER.iterdir()} == {f"{name}.yaml" for name in TABLE_3}


def test_no_two_rows_train_into_the_same_folder():
    folders = [load_run_config(path, overrides=[]).training.output_dir for path in PAPER.glob("*.yaml")]
    assert len(folders) == len(set(folders))


@pytest.mark.parametrize("name", TABLE_3)
def test_row_is_as_in_the_paper(name: str):
    row = TABLE_3[name]
    run = load_run_config(PAPER / f"{name}.yaml", overrides=[])
    model = VanillaTransformerConfig(vocab_size=run.tokenizer.vocab_size, **run.model)
    assert model.vocab_size == VOCABULARY
    assert model.num_decoder_layers == model.num_layers
    assert run.training.max_updates == row.max_updates
    columns = [field for field in Row._fields if field not in ("parameters", "max_updates")]
    assert {field: getattr(model, field) for field in columns} == {field: getattr(row, field) for field in columns}


@pytest.mark.parametrize("name", [name for name in TABLE_3 if name != "base"])
def test_row_changes_what_it_states(name: str):
    base, row = (yaml.safe_load((PAPER / f"{file}.yaml").read_text(encoding="utf-8")) for file in ("base", name))
    assert row.pop("extends") == "base.yaml"
    for section, values in row.items():
        for key, value in values.items():
            assert base[section].get(key) != value, f"{section}.{key} is as in base"


@pytest.mark.parametrize("name", TABLE_3)
def test_parameters_of_the_row(name: str):
    row = TABLE_3[name]
    run = load_run_config(PAPER / f"{name}.yaml", overrides=[])
    with torch.device("meta"):
        model = VanillaTransformerForConditionalGeneration(VanillaTransformerConfig(vocab_size=VOCABULARY, **run.model))
    assert sum(parameter.numel() for parameter in model.parameters()) == row.parameters  # a tied one counts once


@pytest.mark.parametrize("name", TABLE_3)
def test_table_agrees_with_the_formula(name: str):
    assert TABLE_3[name].parameters == parameters_by_the_paper(TABLE_3[name])
