# SPDX-License-Identifier: Apache-2.0
import pytest
from datasets import Dataset
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from vanilla_transformer.data.tokenizer import TokenizerConfig, load_tokenizer
from vanilla_transformer.training import run_tokenizer
from vanilla_transformer.training.checkpoint import list_checkpoints
from vanilla_transformer.training.run_tokenizer import _train_once, _training_lines


def test_the_tokenizer_of_the_run_is_used_again(tiny_run):
    tiny_run.train("training.max_updates=2")
    file = tiny_run.output_dir / "tokenizer" / "tokenizer.json"
    before = file.stat().st_mtime_ns
    tiny_run.train("training.max_updates=3")
    assert file.stat().st_mtime_ns == before


def spoil(path) -> None:
    """Two letters of the vocabulary exchanged: a tokenizer that opens, and gives other tokens."""
    text = path.read_text("utf-8")
    one, other = '"a": ', '"b": '
    path.write_text(text.replace(one, "\0").replace(other, one).replace("\0", other), encoding="utf-8")


def test_a_damaged_tokenizer_is_taken_from_the_newest_checkpoint_that_is_whole(tiny_run, caplog):
    before = tiny_run.train("training.max_updates=5").tokenizer.get_vocab()
    file = tiny_run.output_dir / "tokenizer" / "tokenizer.json"
    spoil(file)
    checkpoints = list_checkpoints(tiny_run.output_dir / "checkpoints")
    spoil(checkpoints[-1] / "tokenizer.json")
    assert load_tokenizer(file.parent).get_vocab() != before
    assert tiny_run.train("training.max_updates=6").tokenizer.get_vocab() == before
    assert load_tokenizer(file.parent).get_vocab() == before
    assert f"tokenizer {file.parent} is damaged and taken from {checkpoints[0]}: tokenizer.json" in caplog.text


def test_a_tokenizer_that_is_damaged_everywhere_is_not_trained_with(tiny_run):
    tiny_run.train("training.max_updates=4")
    for folder in (tiny_run.output_dir / "tokenizer", *list_checkpoints(tiny_run.output_dir / "checkpoints")):
        spoil(folder / "tokenizer.json")
    with pytest.raises(ValueError, match="tokenizer is damaged .tokenizer.json.*and so is every checkpoint; choose"):
        tiny_run.train("training.max_updates=5")


def test_a_tokenizer_can_be_brought_along(tiny_run, model_folder):
    run = tiny_run.train(f"tokenizer.path={model_folder}")
    assert run.tokenizer.get_vocab()["<pad>"] == 0


def test_a_tokenizer_of_a_failed_attempt_is_not_used_again(tiny_run):
    good = {side: (tiny_run.folder / f"train.{side}").read_text(encoding="utf-8") for side in ("source", "target")}
    for side in good:
        (tiny_run.folder / f"train.{side}").write_text("x " * 300 + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match="no pair is left"):
        tiny_run.train()
    for side, text in good.items():
        (tiny_run.folder / f"train.{side}").write_text(text, encoding="utf-8")
    assert "x" not in tiny_run.train().tokenizer.get_vocab()


def test_a_tokenizer_that_does_not_end_its_texts(tiny_run, tmp_path):
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "<unk>": 1, "<pad>": 2, "<s>": 3, "</s>": 4}, unk_token="<unk>"))
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(tmp_path / "endless")
    with pytest.raises(ValueError, match=r"tokenizer\.path=.*endless: it does not end a text with </s>"):
        tiny_run.train(f"tokenizer.path={tmp_path / 'endless'}")
    del names["bos_token"]
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(tmp_path / "startless")
    with pytest.raises(ValueError, match="it has no bos_token"):
        tiny_run.train(f"tokenizer.path={tmp_path / 'startless'}")


class TestTrainingLines:
    def corpus(self, streaming: bool):
        pairs = Dataset.from_dict({side: [f"{side} {i}" for i in range(9000)] for side in ("source", "target")})
        return pairs.to_iterable_dataset() if streaming else pairs

    @pytest.mark.parametrize("streaming", [False, True])
    def test_all_lines_of_a_corpus_within_the_limit(self, streaming: bool):
        lines = list(_training_lines(self.corpus(streaming), TokenizerConfig(max_training_lines=18_000)))
        assert sorted(lines) == sorted(f"{side} {i}" for i in range(9000) for side in ("source", "target"))

    @pytest.mark.parametrize("streaming", [False, True])
    def test_a_part_of_a_longer_corpus_is_the_same_every_time(self, streaming: bool):
        config = TokenizerConfig(max_training_lines=4000)
        lines = list(_training_lines(self.corpus(streaming), config))
        assert lines == list(_training_lines(self.corpus(streaming), config))
        assert len(set(lines)) == 4000
        sources = {line.split()[1] for line in lines if line.startswith("source")}
        assert sources == {line.split()[1] for line in lines if line.startswith("target")}
        assert sources != {str(number) for number in range(2000)}

    def test_symbols_are_collected_from_all_lines(self):
        config = TokenizerConfig(kind="symbols", max_training_lines=4000)
        assert len(list(_training_lines(self.corpus(streaming=False), config))) == 18_000

    def test_fewer_lines_than_a_pair_has(self):
        with pytest.raises(ValueError, match="max_training_lines=1 must be at least 2"):
            TokenizerConfig(max_training_lines=1)


@pytest.mark.parametrize("limit", [10_000_000, 4])
def test_bpe_is_trained_once_for_a_corpus(monkeypatch, limit: int):
    text = Dataset.from_dict({"source": [f"the cat {limit}"] * 9, "target": ["le chat"] * 9})
    config = TokenizerConfig(vocab_size=262, max_training_lines=limit)
    trained = _train_once(text, config).get_vocab()
    monkeypatch.setattr(run_tokenizer, "train_tokenizer", None)
    assert _train_once(text, config).get_vocab() == trained
