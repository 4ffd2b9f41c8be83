# SPDX-License-Identifier: Apache-2.0
"""Any text round-trips, with and without this package; ids and sizes are as documented."""

import json
import logging
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from transformers import DataCollatorForSeq2Seq, PreTrainedTokenizerFast

from vanilla_transformer.data.tokenizer import TokenizerConfig, load_tokenizer, train_tokenizer

CORPUS = ["the cat sat on the mat", "die katze sass auf der matte", "the end </s> of <pad> it <s>"] * 20
TEXTS = [
    "the cat",
    " leading, trailing and  double   spaces  ",
    "literal </s> and <pad>, <s> and <unk>",
    "</s>",
    "<pad></s><s>",
    "emoji 🙂👩‍👩‍👧‍👦🇫🇷",
    "مرحبا بالعالم",
    "combining e\u0301 o\u0308\u0323, composed é",
    "line\u2028and\u2029paragraph, return\r, tab\t, newline\n, nul\0",
    "it 's , a test . do n't ?",  # clean_up_tokenization_spaces would join these
    "\u00a0\ufeff\u200b",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 漢字 한글",
    "",
]


def bpe(vocab_size: int = 300, texts: list[str] = CORPUS, **fields):
    return train_tokenizer(texts, TokenizerConfig(vocab_size=vocab_size, **fields))


def symbols(texts: list[str], **fields):
    return train_tokenizer(texts, TokenizerConfig(kind="symbols", **fields))


class TestBpe:
    @pytest.mark.parametrize("text", TEXTS)
    def test_any_text_round_trips(self, text: str):
        tokenizer = bpe()
        assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text

    def test_every_character_round_trips(self):
        """Each code point but the surrogates, which are no characters; in blocks, to be quick."""
        tokenizer = bpe()
        for start in range(0, 0x110000, 0x8000):
            text = "".join(chr(i) for i in range(start, start + 0x8000) if not 0xD800 <= i < 0xE000)
            assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text

    def test_round_trip_without_this_package(self, tmp_path: Path):
        bpe().save_pretrained(tmp_path / "tokenizer")
        (tmp_path / "texts.json").write_text(json.dumps(TEXTS), encoding="utf-8")
        script = (
            "import json, sys\n"
            "from transformers import AutoTokenizer\n"
            "tokenizer = AutoTokenizer.from_pretrained('tokenizer')\n"
            "texts = json.load(open('texts.json', encoding='utf-8'))\n"
            "pairs = tokenizer(texts, text_target=texts)\n"
            "back = [tokenizer.decode(ids, skip_special_tokens=True) for ids in pairs.input_ids + pairs.labels]\n"
            "assert 'vanilla_transformer' not in sys.modules\n"
            "print(json.dumps([back, pairs.input_ids, tokenizer.model_input_names, tokenizer.padding_side]))\n"
        )
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        run = subprocess.run(
            [sys.executable, "-c", script],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            encoding="utf-8",
            check=True,
        )
        back, input_ids, names, padding_side = json.loads(run.stdout)
        assert back == TEXTS * 2
        assert input_ids == bpe()(TEXTS).input_ids
        assert (names, padding_side) == (["input_ids", "attention_mask"], "right")

    def test_both_sides_end_with_eos_and_nothing_else_is_added(self):
        pair = bpe()("the cat", text_target="die katze")
        for ids in (pair.input_ids, pair.labels):
            assert ids[-1] == 2
            assert not set(ids[:-1]) & {0, 1, 2}

    def test_text_never_gives_special_tokens(self):
        assert bpe()("</s><s><pad> </s>").input_ids.count(2) == 1

    def test_ids_of_the_special_tokens(self):
        tokenizer = bpe()
        assert tokenizer.convert_ids_to_tokens([0, 1, 2]) == ["<pad>", "<s>", "</s>"]
        assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
        assert tokenizer.unk_token is None

    def test_vocab_size(self):
        assert len(bpe(vocab_size=277)) == 277

    def test_corpus_too_small_for_the_vocabulary_is_a_warning(self, caplog: pytest.LogCaptureFixture):
        with caplog.at_level(logging.WARNING):
            tokenizer = bpe(vocab_size=5000)
        assert 259 < len(tokenizer) < 5000
        assert f"vocabulary of {len(tokenizer)}, fewer than tokenizer.vocab_size=5000" in caplog.text

    def test_vocabulary_too_small_for_the_bytes(self):
        with pytest.raises(ValueError, match="vocab_size=258 must be at least 259"):
            bpe(vocab_size=258)

    def test_training_is_deterministic(self):
        assert bpe().backend_tokenizer.to_str() == bpe().backend_tokenizer.to_str()

    def test_model_max_length_is_unlimited(self, tmp_path: Path):
        tokenizer = bpe()
        tokenizer.save_pretrained(tmp_path)
        for each in (tokenizer, load_tokenizer(tmp_path)):
            assert each.model_max_length > 10**18

    def test_bpe_trains_in_seconds_on_an_unbroken_megabyte(self):
        """Uncapped, the trainer takes minutes for this line, and the suite would show it."""
        assert len(bpe(vocab_size=1000, texts=["ab" * 500_000, *CORPUS])) <= 1000

    def test_collator_pads_source_and_labels(self):
        tokenizer = bpe()
        pairs = tokenizer(["a", "b c d"], text_target=["x y z", "w"])
        rows = [{"input_ids": s, "labels": t} for s, t in zip(pairs.input_ids, pairs.labels, strict=True)]
        batch = DataCollatorForSeq2Seq(tokenizer)(rows)
        assert batch["input_ids"].shape == (2, max(map(len, pairs.input_ids)))
        assert batch["attention_mask"].sum(dim=1).tolist() == [len(ids) for ids in pairs.input_ids]
        assert (batch["labels"] != -100).sum(dim=1).tolist() == [len(ids) for ids in pairs.labels]


@pytest.mark.parametrize("kind", ["unigram", "char"])
class TestUnigramAndCharacters:
    """They promise what BPE does."""

    @pytest.mark.parametrize("saved", [False, True])
    def test_any_text_round_trips(self, kind: str, saved: bool, tmp_path: Path):
        tokenizer = bpe(kind=kind)
        if saved:
            tokenizer.save_pretrained(tmp_path)
            tokenizer = PreTrainedTokenizerFast.from_pretrained(tmp_path)  # as without this package
        for text in TEXTS:
            ids = tokenizer(text).input_ids
            assert tokenizer.decode(ids, skip_special_tokens=True) == text
            assert (ids.count(2), ids[-1]) == (1, 2)
            assert not {0, 1} & set(ids)

    def test_every_character_round_trips(self, kind: str):
        tokenizer = bpe(kind=kind)
        for start in range(0, 0x110000, 0x8000):
            text = "".join(chr(i) for i in range(start, start + 0x8000) if not 0xD800 <= i < 0xE000)
            assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text

    def test_ids_of_the_special_tokens(self, kind: str):
        tokenizer = bpe(kind=kind)
        assert tokenizer.convert_ids_to_tokens([0, 1, 2]) == ["<pad>", "<s>", "</s>"]
        assert tokenizer.unk_token is None

    def test_vocab_size(self, kind: str):
        assert len(bpe(vocab_size=264, kind=kind)) == 264
        with pytest.raises(ValueError, match="vocab_size=258 must be at least 259"):
            bpe(vocab_size=258, kind=kind)

    def test_a_tag_is_one_id_and_the_rest_of_a_text_as_before(self, kind: str):
        tokenizer = bpe(kind=kind)
        before = tokenizer("the cat").input_ids
        tokenizer.add_special_tokens({"extra_special_tokens": ["<2de>"]})
        assert tokenizer("<2de>the cat").input_ids == [len(tokenizer) - 1, *before]


def test_characters_are_tokens_by_frequency_and_the_rarest_are_bytes():
    tokenizer = bpe(vocab_size=261, texts=["aab", "aé", "bb"], kind="char")
    assert tokenizer.convert_ids_to_tokens([259, 260]) == ["a", "b"]
    assert tokenizer("aé").input_ids == [259, 3 + 0xC3, 3 + 0xA9, 2]
    assert tokenizer("<0x41>").input_ids[:-1] == [3 + ord(letter) for letter in "<0x41>"]


def test_unigram_takes_the_pieces_of_the_best_score():
    """Kudo 2018: of all ways to cut a word, the one with the highest sum of log-probabilities."""
    tokenizer = bpe(vocab_size=290, kind="unigram")
    scores = dict(map(tuple, json.loads(tokenizer.backend_tokenizer.to_str())["model"]["vocab"]))

    def best(word: str) -> float:
        cuts = [scores[word[:i]] + best(word[i:]) for i in range(1, len(word) + 1) if word[:i] in scores]
        return max(cuts) if word else 0.0

    for word in ("matte", "katze", "matmatte"):
        pieces = tokenizer.tokenize(word)
        assert "".join(pieces) == word
        assert sum(scores[piece] for piece in pieces) == pytest.approx(best(word))


class TestSymbols:
    TEXTS = ["b a c", "b  a\tb", "z"]

    def test_order_is_by_frequency_then_alphabet(self):
        tokenizer = symbols(self.TEXTS)
        counts = Counter(" ".join(self.TEXTS).split())
        expected = ["<pad>", "<s>", "</s>", "<unk>", *sorted(counts, key=lambda symbol: (-counts[symbol], symbol))]
        assert tokenizer.convert_ids_to_tokens(list(range(len(tokenizer)))) == expected

    @pytest.mark.parametrize("saved", [False, True])
    def test_round_trip_has_single_spaces(self, tmp_path: Path, saved: bool):
        tokenizer = symbols(self.TEXTS)
        if saved:
            tokenizer.save_pretrained(tmp_path)
            tokenizer = load_tokenizer(tmp_path)
        ids = tokenizer("  b   a\tz ").input_ids
        assert tokenizer.decode(ids, skip_special_tokens=True) == "b a z"
        assert ids[-1] == tokenizer.eos_token_id

    def test_unknown_symbol(self):
        tokenizer = symbols(self.TEXTS)
        assert tokenizer("b Q").input_ids[1] == tokenizer.unk_token_id == 3

    @pytest.mark.parametrize("text", ["</s>", "a <pad> b", "<s>", "a\t</s>\u2028</s> b", "<unk>", "a</s> </s>b"])
    @pytest.mark.parametrize("saved", [False, True])
    def test_names_of_special_tokens_are_unknown_symbols(self, tmp_path: Path, text: str, saved: bool):
        tokenizer = symbols(self.TEXTS)
        if saved:
            tokenizer.save_pretrained(tmp_path)
            tokenizer = PreTrainedTokenizerFast.from_pretrained(tmp_path)  # as without this package
        known = dict(zip("bacz", tokenizer.convert_tokens_to_ids(list("bacz")), strict=True))
        assert tokenizer(text).input_ids == [*(known.get(symbol, 3) for symbol in text.split()), 2]

    def test_eos_in_text_is_unknown_beside_every_white_space(self):
        """White space of the encoding is Unicode's."""
        tokenizer = symbols(self.TEXTS)
        for space in map(chr, range(0x3100)):
            ids = tokenizer(f"b{space}</s>{space}b").input_ids
            assert ids.count(2) == 1, repr(space)
            assert ids[-1] == 2

    def test_training_and_encoding_agree_on_white_space(self):
        """Python splits at U+001C, Unicode does not call it white space."""
        text = "a\x1cb c\u2028d"
        tokenizer = symbols([text])
        assert tokenizer.unk_token_id not in tokenizer(text).input_ids

    def test_too_many_symbols(self):
        with pytest.raises(ValueError, match="corpus has 4 symbols.*vocab_size=7"):
            symbols(self.TEXTS, vocab_size=7)

    def test_symbols_fill_the_vocabulary(self):
        assert len(symbols(self.TEXTS, vocab_size=8)) == 8

    @pytest.mark.parametrize("token", ["<pad>", "<s>", "</s>", "<unk>"])
    def test_symbol_that_is_a_special_token(self, token: str):
        with pytest.raises(ValueError, match=f"has the symbol '{token}', which is a special token"):
            symbols([f"a {token} b"])


class TestLoadTokenizer:
    def test_missing_folder(self, tmp_path: Path):
        with pytest.raises(FileNotFoundError, match="no-such-folder") as error:
            load_tokenizer(tmp_path / "no-such-folder")
        assert "\n" not in str(error.value)

    def test_folder_without_a_tokenizer(self, tmp_path: Path):
        with pytest.raises(FileNotFoundError, match=r"tokenizer\.json is missing"):
            load_tokenizer(tmp_path)

    def test_damaged_files(self, tmp_path: Path):
        bpe().save_pretrained(tmp_path)
        whole = (tmp_path / "tokenizer.json").read_text(encoding="utf-8")
        (tmp_path / "tokenizer.json").write_text(whole[: len(whole) // 2], encoding="utf-8")
        with pytest.raises(ValueError, match="is damaged") as error:
            load_tokenizer(tmp_path)
        assert "\n" not in str(error.value)
