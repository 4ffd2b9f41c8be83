# SPDX-License-Identifier: Apache-2.0
import copy
import pickle
from pathlib import Path

import pytest
import yaml

from vanilla_transformer.training.configuration import load_run_config
from vanilla_transformer.training.finetuning import load_finetuning_config
from vanilla_transformer.training.yaml_sections import read_yaml

LEAST = "training: {output_dir: run, max_updates: 5}\n"


def load(folder: Path, text: str = LEAST, *overrides: str):
    path = folder / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return load_run_config(path, list(overrides))


def message_of(folder: Path, text: str, *overrides: str) -> str:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 -- the tests below look at the message
        load(folder, text, *overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_defaults_are_the_papers(tmp_path: Path):
    config = load(tmp_path)
    optimizer = config.optimizer
    assert (optimizer.beta1, optimizer.beta2, optimizer.eps, optimizer.warmup_steps) == (0.9, 0.98, 1e-9, 4000)
    assert (config.training.max_source_tokens, config.training.max_target_tokens) == (25000, 25000)
    assert (config.generation.num_beams, config.generation.max_tokens_beyond_source) == (4, 50)


def test_scientific_notation_that_yaml_reads_as_text(tmp_path: Path):
    config = load(tmp_path, LEAST + "optimizer: {eps: 1e-9}\nmodel: {layer_norm_eps: 1e-5}\n")
    assert config.optimizer.eps == 1e-9
    assert config.model["layer_norm_eps"] == 1e-5


def test_overrides_are_read_as_yaml(tmp_path: Path):
    config = load(
        tmp_path, LEAST, "training.max_minutes=2.5", "data.train.source=a", "data.train.target=b", "training.resume=no"
    )
    assert config.training.max_minutes == 2.5
    assert config.training.resume is False
    assert config.data.train is not None
    assert config.data.train.source == "a"


def test_a_file_extends_another_key_by_key(tmp_path: Path):
    (tmp_path / "base.yaml").write_text(LEAST + "optimizer: {warmup_steps: 7, beta1: 0.5}\n", encoding="utf-8")
    config = load(tmp_path, "extends: base.yaml\noptimizer: {warmup_steps: 9}\n")
    assert (config.optimizer.warmup_steps, config.optimizer.beta1) == (9, 0.5)


def test_a_model_of_another_type_takes_over_no_field_of_the_bases(tmp_path: Path):
    (tmp_path / "base.yaml").write_text(LEAST + "model: {d_ff: 7, dropout: 0.3}\n", encoding="utf-8")
    config = load(
        tmp_path, "extends: base.yaml\nmodel: {model_type: rnn_seq2seq, hidden_size: 9}\n", "training.attention=eager"
    )
    assert config.model == {"model_type": "rnn_seq2seq", "hidden_size": 9}


def test_each_type_of_model_has_its_own_keys(tmp_path: Path):
    rnn = "model: {model_type: rnn_seq2seq, cell: lstm, dropout: 1e-1}\n"
    assert load(tmp_path, LEAST + rnn, "training.attention=eager").model["dropout"] == 0.1
    assert "known keys are model_type, embedding_size" in message_of(tmp_path, LEAST + rnn, "model.num_heads=2")
    assert "model.model_type='cnn' must be one of" in message_of(tmp_path, LEAST, "model.model_type=cnn")
    assert message_of(tmp_path, LEAST + rnn, "model.cell=gro").startswith("model.cell='gro': expected 'tanh' or 'gru'")
    assert message_of(tmp_path, LEAST + rnn, "model.num_layers=0").startswith("model.num_layers=0 must lie between")


def test_flash_attention_is_refused_with_the_reason(tmp_path: Path):
    said = message_of(tmp_path, LEAST, "training.attention=flash_attention_2")
    assert "training.attention='flash_attention_2': transformers' flash attention" in said
    said = message_of(tmp_path, LEAST, "training.attention=fast")
    assert "training.attention='fast' must be one of eager, sdpa, flex_attention" in said
    assert load(tmp_path, LEAST, "training.attention=null").training.attention is None


def test_an_rnn_has_no_attention_kernels(tmp_path: Path):
    said = message_of(tmp_path, LEAST, "model.model_type=rnn_seq2seq", "training.attention=sdpa")
    assert "training.attention='sdpa' is for the Transformer" in said
    load(tmp_path, LEAST, "model.model_type=rnn_seq2seq", "training.attention=eager")


def test_a_resolved_config_reads_back_as_itself(tmp_path: Path):
    config = load(tmp_path, LEAST + "model: {d_model: 64}\ndata: {train: {path: x.tsv}}\n")
    assert load(tmp_path, yaml.safe_dump(config.to_dict())).to_dict() == config.to_dict()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("trainings: {}\n" + LEAST, ["unknown key trainings", "training"]),
        (LEAST + "optimizer: {lr: 1}\n", ["unknown key optimizer.lr", "warmup_steps"]),
        (LEAST + "model: {hidden: 1}\n", ["unknown key model.hidden", "d_model"]),
        (LEAST + "model: {vocab_size: 5}\n", ["unknown key model.vocab_size"]),
        (LEAST + "data: {train: {files: a}}\n", ["unknown key data.train.files", "source"]),
        ("model: {d_model: 8}\n", ["training is missing"]),
        ("training: {max_updates: 5}\n", ["training.output_dir is missing"]),
        ("- a\n- b\n", ["must hold sections"]),
        ("a: [\n", ["not valid YAML"]),
        ("extends: 5\n" + LEAST, ["extends=5"]),
        ("training: 5\n", ["training", "expected a section"]),
    ],
)
def test_invalid_files(tmp_path: Path, text: str, said: list[str]):
    message = message_of(tmp_path, text)
    for words in said:
        assert words in message


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("training.max_updates=many", "training.max_updates='many': expected int or null, got str"),
        ("training.max_updates=2.5", "training.max_updates=2.5: expected int or null"),
        ("training.resume=1", "training.resume=1: expected bool"),
        ("training.mixed_precision=int8", "training.mixed_precision='int8': expected 'no' or 'bf16'"),
        ("optimizer.eps=tiny", "optimizer.eps='tiny': expected float"),
        ("model.d_model=wide", "model.d_model='wide': expected int"),
        ("model.norm_position=middle", "model.norm_position='middle': expected 'post' or 'pre'"),
    ],
)
def test_wrong_types_name_the_place_and_what_is_expected(tmp_path: Path, override: str, said: str):
    assert said in message_of(tmp_path, LEAST, override)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("model.num_heads=7", "model.num_heads=7 does not divide d_model=512"),
        ("model.d_ff=-5", "model.d_ff=-5"),
        ("model.d_model=0", "model.d_model=0"),
        ("model.d_ff=99999999999", "model.d_ff=99999999999"),
        ("model.dropout=1.5", "model.dropout=1.5 must be at least 0 and less than 1"),
        ("training.max_updates=0", "training.max_updates=0 must be at least 1"),
        ("training.max_minutes=-1", "training.max_minutes=-1.0 must be greater than 0, and finite"),
        ("training.max_minutes=.inf", "training.max_minutes=inf must be greater than 0, and finite"),
        ("training.max_updates=null", "training has no end"),
        ("training.max_source_tokens=0", "training.max_source_tokens=0 must be at least 1"),
        ("training.max_skipped_in_a_row=0", "training.max_skipped_in_a_row=0 must be at least 1"),
        ("training.patience=0", "training.patience=0 must be at least 1"),
        ("training.patience=3", "training.patience=3 needs validations: give data.validation"),
        ("training.best_by=chrf", "training.best_by"),
        ("training.average_checkpoints=9", "training.average_checkpoints=9 must lie between 0"),
        ("optimizer.beta2=1", "optimizer.beta2=1.0"),
        ("optimizer.learning_rate_scale=nan", "optimizer.learning_rate_scale=nan"),
        ("generation.alpha=.nan", "generation.alpha=nan"),
        ("optimizer.max_grad_norm=0", "optimizer.max_grad_norm=0.0 must be greater than 0"),
    ],
)
def test_values_out_of_range(tmp_path: Path, override: str, said: str):
    assert said in message_of(tmp_path, LEAST, override)


def test_patience_needs_validations_before_the_end(tmp_path: Path):
    assert "training.patience=3 counts validations, and there are none before the end" in message_of(
        tmp_path, LEAST, "training.patience=3", "training.validate_every=null"
    )


def test_learned_positions_must_reach_as_far_as_the_data(tmp_path: Path):
    message = message_of(
        tmp_path, LEAST, "model.position_embedding=learned", "model.max_position_embeddings=200", "data.max_length=180"
    )
    assert "model.max_position_embeddings=200 is less than 230" in message


@pytest.mark.parametrize("name", ["validation", "test"])
def test_only_the_training_corpus_streams(tmp_path: Path, name: str):
    overrides = [f"data.{name}.path=x.tsv", f"data.{name}.streaming=true"]
    assert f"data.{name}.streaming=true" in message_of(tmp_path, LEAST, *overrides)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["data.train=[]"], "data.train=[] must have at least one corpus"),
        (["data.train=[{path: x.tsv}]"], "data.train[0].name is missing"),
        (["data.train=[{name: a, path: x.tsv, wieght: 2}]"], "unknown key data.train[0].wieght"),
        (["data.train=[{name: a, path: x.tsv, weight: much}]"], "data.train[0].weight='much': expected float or null"),
        (["data.train=[{name: a, path: x.tsv, weight: 0}]"], "weight=0.0 of corpus 'a' must be greater than 0"),
        (["data.train=[{name: a, path: x.tsv}, {name: a, path: y.tsv}]"], "data.train has two corpora with name='a'"),
        (["data.train=[{name: a, path: x, streaming: true}, {name: b, path: y}]"], "'a' is a stream and 'b' is not"),
        (["data.train=[{name: a, path: x, streaming: true}]"], "data.train[a].weight is missing: a stream is shown"),
        (["data.train=[{name: a, path: x, weight: 2}]", "data.temperature=5"], "data.temperature=5.0 and weight=2.0"),
        (["data.train=[{name: a, path: x, streaming: true}]", "data.temperature=5"], "needs the corpora's sizes"),
        (["data.train={path: x}", "data.temperature=5"], "mixes a list of corpora, and data.train is none"),
        (["data.train=[{name: a, path: x}]", "data.temperature=0"], "data.temperature=0.0 must be greater than 0"),
        (["data.train={path: x, weight: 2}"], "unknown key data.train.weight"),
        (["data.train=[{name: a, path: x, tag: ''}]"], "tag='' of corpus 'a' must have characters"),
        (["data.validation=[{name: a, path: x, weight: 2}]"], "unknown key data.validation[0].weight"),
        (["data.validation=[{name: a, path: x, streaming: true}]"], "data.validation[a].streaming=true"),
        (["data.test=[{name: a, path: x}, {name: a, path: x}]"], "data.test has two corpora with name='a'"),
        (["data.validation={path: x}", "training.best_on=a"], "training.best_on='a' must be the name of a corpus"),
        (["data.validation=[{name: b, path: x}]", "training.best_on=a"], "list data.validation, one of b"),
    ],
)
def test_lists_of_corpora_that_cannot_be_used(tmp_path: Path, overrides: list[str], said: str):
    assert said in message_of(tmp_path, LEAST, *overrides)


@pytest.mark.parametrize("override", ["data.name=a: b: c", "training.trackers=[", "data.train.source=@x"])
def test_an_override_of_invalid_yaml(tmp_path: Path, override: str):
    assert "is not a YAML value; quote it" in message_of(tmp_path, LEAST, override)


def test_a_streams_pairs_must_fit_a_batch(tmp_path: Path):
    overrides = ["data.train.path=x.tsv", "data.train.streaming=true", "data.max_length=30001"]
    assert "data.max_length=30001 is more than a batch holds" in message_of(tmp_path, LEAST, *overrides)


def test_a_decay_needs_an_end_that_somebody_knows(tmp_path: Path):
    overrides = ["data.train.path=x.tsv", "data.train.streaming=true", "optimizer.schedule=cosine"]
    epochs = ["training.max_updates=null", "training.max_epochs=3"]
    message = message_of(tmp_path, LEAST, *overrides, *epochs)
    assert "optimizer.schedule='cosine' ends with the run" in message
    assert "set training.max_updates or max_minutes" in message
    timed = load(tmp_path, LEAST, *overrides, *epochs, "training.max_minutes=3")
    assert timed.optimizer.schedule == "cosine"


@pytest.mark.parametrize("override", ["training.max_updates", "=5"])
def test_an_override_has_a_key_and_a_value(tmp_path: Path, override: str):
    assert "section.key=value" in message_of(tmp_path, LEAST, override)


def test_an_override_of_a_value_by_a_section(tmp_path: Path):
    assert "output_dir is a value, not a section" in message_of(tmp_path, LEAST, "training.output_dir.x=5")


def test_a_missing_file(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"configuration .*nowhere\.yaml does not exist"):
        load_run_config(tmp_path / "nowhere.yaml")


class TestWords:
    """Words that YAML reads as another type, where the field wants text."""

    WORDS = [
        "no",
        "off",
        "ON",
        "2024-01-01",
        "2024-01-01 10:00:00",
        "123",
        "010",
        "1_000",
        "12:30",
        "1.50",
        "~x",
        "0x1F",
    ]

    @pytest.mark.parametrize("in_a_file", [False, True])
    def test_a_literal_means_the_word(self, tmp_path: Path, in_a_file: bool):
        text = LEAST.replace("}", ", mixed_precision: no}") if in_a_file else LEAST
        overrides = [] if in_a_file else ["training.mixed_precision=no"]
        assert load(tmp_path, text, *overrides).training.mixed_precision == "no"

    @pytest.mark.parametrize("word", WORDS)
    @pytest.mark.parametrize("in_a_file", [False, True])
    def test_text_is_as_it_is_written(self, tmp_path: Path, word: str, in_a_file: bool):
        text = f"training: {{output_dir: {word}, max_updates: 5, trackers: [{word}]}}\ndata: {{name: {word}}}\n"
        overrides = [f"training.output_dir={word}", f"training.trackers=[{word}]", f"data.name= {word} "]
        config = load(tmp_path, text) if in_a_file else load(tmp_path, LEAST, *overrides)
        assert (config.training.output_dir, config.training.trackers, config.data.name) == (word, [word], word)

    @pytest.mark.parametrize("word", [*WORDS, "no: 5", "null"])
    def test_a_resolved_config_reads_back_as_itself(self, tmp_path: Path, word: str):
        quoted = f'"{word}"'
        config = load(tmp_path, LEAST, f"training.output_dir={quoted}", "model.d_model=64", "training.trackers=[no]")
        assert config.training.output_dir == word
        assert load(tmp_path, yaml.safe_dump(config.to_dict())).to_dict() == config.to_dict()

    def test_a_base_keeps_its_words(self, tmp_path: Path):
        (tmp_path / "base.yaml").write_text(
            "training: {output_dir: 010, mixed_precision: no}\ndata: {name: off}\n", encoding="utf-8"
        )
        config = load(tmp_path, "extends: base.yaml\ntraining: {max_updates: 010}\ndata: {license: on}\n")
        assert (config.training.output_dir, config.training.mixed_precision) == ("010", "no")
        assert (config.data.name, config.data.license) == ("off", "on")
        assert config.training.max_updates == yaml.safe_load("010")  # a number's field takes YAML's number

    def test_null_is_no_text_where_there_may_be_none(self, tmp_path: Path):
        for word in ("null", "~", ""):
            assert load(tmp_path, LEAST, f"data.name={word}").data.name is None
        assert "training.output_dir=None: expected str" in message_of(tmp_path, LEAST, "training.output_dir=")

    @pytest.mark.parametrize(("word", "value"), [("on", True), ("off", False), ("yes", True), ("no", False)])
    def test_a_bool_takes_yamls_words(self, tmp_path: Path, word: str, value: bool):
        assert load(tmp_path, LEAST, f"training.resume={word}").training.resume is value

    def test_another_word_of_yamls_is_not_the_allowed_one(self, tmp_path: Path):
        assert "training.mixed_precision=False: expected 'no'" in message_of(
            tmp_path, LEAST, "training.mixed_precision=off"
        )

    def test_a_key_is_a_word(self, tmp_path: Path):
        assert "unknown key data.on;" in message_of(tmp_path, LEAST + "data: {on: 5}\n")

    def test_the_arguments_of_transformers_have_words_too(self, tmp_path: Path):
        (tmp_path / "run.yaml").write_text(
            "model: 123\ndata: {train: {path: 010}}\ntraining: {max_steps: 010}\n", encoding="utf-8"
        )
        config = load_finetuning_config(tmp_path / "run.yaml", ["training.output_dir=2024-01-01", "training.seed=010"])
        assert (config.model, config.data.train.path) == ("123", "010")
        training = config.training
        assert (training.output_dir, training.seed, training.max_updates) == (
            "2024-01-01",
            *[yaml.safe_load("010")] * 2,
        )

    def test_a_word_stays_one_in_another_process_and_in_another_file(self):
        section = read_yaml(Path(__file__).parents[2] / "configs" / "paper" / "base.yaml")["training"]
        word = section["mixed_precision"]
        for copied in (pickle.loads(pickle.dumps(section)), copy.deepcopy(section)):
            assert (copied, copied["mixed_precision"].value) == (section, False)
        assert (word, yaml.safe_dump({"precision": word})) == ("no", "precision: no\n")


class TestGivenTwice:
    def test_a_key_of_a_file(self, tmp_path: Path):
        said = message_of(tmp_path, "training:\n  output_dir: a\n  max_updates: 5\n  max_updates: 6\n")
        assert "not valid YAML: the key 'max_updates' is given twice" in said
        assert "line 4" in said
        assert "the key 'training' is given twice" in message_of(tmp_path, LEAST + LEAST)

    def test_a_key_may_differ_from_a_merged_mapping(self, tmp_path: Path):
        text = "training: &it {output_dir: a, max_updates: 5}\n"
        (tmp_path / "base.yaml").write_text(text, encoding="utf-8")
        values = read_yaml(tmp_path / "base.yaml")
        (tmp_path / "base.yaml").write_text(text + "more: {<<: *it, max_updates: 6}\n", encoding="utf-8")
        assert read_yaml(tmp_path / "base.yaml")["more"] == values["training"] | {"max_updates": "6"}

    @pytest.mark.parametrize(
        "overrides",
        [
            ["training.max_updates=5", "training.max_updates=6"],
            ["training.max_updates=5", "training.max_updates=5"],
            ["data.train.path=a.csv", "data.train={path: b.csv}"],
            ["data.train={path: b.csv}", "data.train.path=a.csv"],
        ],
    )
    def test_an_override(self, tmp_path: Path, overrides: list[str]):
        first = overrides[0].partition("=")[0]
        said = message_of(tmp_path, LEAST, *overrides)
        assert f"override '{overrides[1]}': {first}=… is given, too; give each value once" in said

    def test_keys_with_a_common_prefix_are_distinct(self, tmp_path: Path):
        load(tmp_path, LEAST, "data.name=a", "data.train.source=x", "data.train.target=y")
        load(tmp_path, LEAST, "training.max_source_tokens=300", "training.max_updates=6")


def test_a_byte_order_mark_is_no_part_of_a_configuration(tmp_path: Path):
    (tmp_path / "base.yaml").write_text("\ufeff" + LEAST, encoding="utf-8")
    assert load(tmp_path, "\ufeffextends: base.yaml\ndata: {name: a}\n").training.max_updates == 5
