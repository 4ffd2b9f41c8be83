# SPDX-License-Identifier: Apache-2.0
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from vanilla_transformer.cli import main
from vanilla_transformer.data.tokenizer import load_tokenizer
from vanilla_transformer.inference.model_folder import load_model_folder
from vanilla_transformer.inference.translate import translate_lines
from vanilla_transformer.inference.translator import Translator

LINES = ["a b c", "", "h", "   ", "c\u2028d", "e\rf", "a b c d e f", ""]


def translate(folder: Path, *options: str) -> int:
    return main(["translate", str(folder), *options])


@pytest.fixture
def copied(model_folder: Path, tmp_path: Path) -> Path:
    """A model folder to damage."""
    return shutil.copytree(model_folder, tmp_path / "model")


def test_one_output_line_for_each_input_line_in_order(model_folder, give_input, capsysbinary):
    give_input("".join(f"{line}\n" for line in LINES).encode())
    assert translate(model_folder) == 0
    translated = capsysbinary.readouterr().out.decode().split("\n")
    model, tokenizer = load_model_folder(model_folder), load_tokenizer(model_folder)
    expected = translate_lines(model, tokenizer, LINES, max_batch_tokens=8192)
    assert translated == [*(best[0].text for best in expected), ""]
    assert not any(translated[i] for i in (1, 3, 7))


def test_empty_input_gives_empty_output(model_folder, give_input, capsysbinary):
    give_input(b"")
    assert translate(model_folder) == 0
    assert capsysbinary.readouterr().out == b""


def test_last_line_without_a_line_feed_is_translated(model_folder, give_input, capsysbinary):
    give_input(b"a b\nc d")
    assert translate(model_folder) == 0
    assert capsysbinary.readouterr().out.count(b"\n") == 2


def test_byte_order_mark_is_dropped(model_folder, give_input, capsysbinary):
    for data in (b"c a d\n", b"\xef\xbb\xbfc a d\n"):
        give_input(data)
        assert translate(model_folder, "--quiet", "--n-best", "1") == 0  # scores tell what the words may not
    without_mark, with_mark = capsysbinary.readouterr().out.splitlines()
    assert with_mark == without_mark


def test_interactive_pipe_is_answered_line_by_line(model_folder):
    command = [sys.executable, "-W", "ignore", "-m", "vanilla_transformer.cli", "translate", str(model_folder)]
    expected = Translator.from_pretrained(model_folder).translate(["a b", "c d e"])
    with subprocess.Popen(
        [*command, "--quiet"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8"
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for line, answer in zip(["a b", "c d e"], expected, strict=True):
            process.stdin.write(f"{line}\n")
            process.stdin.flush()
            assert process.stdout.readline() == f"{answer}\n"
        process.stdin.write("half a line, and no more")
        process.stdin.close()
        assert len(process.stdout.readlines()) == 1
    assert process.returncode == 0


def test_progress_goes_to_stderr(model_folder, give_input, capsysbinary):
    give_input(b"a b\n")
    translate(model_folder)
    loud = capsysbinary.readouterr()
    assert b"lines" in loud.err
    give_input(b"a b\n")
    translate(model_folder, "--quiet")
    quiet = capsysbinary.readouterr()
    assert (quiet.out, quiet.err) == (loud.out, b"")


def test_n_best_has_line_numbers_and_descending_scores(model_folder, give_input, capsysbinary):
    give_input(b"a b c\n\nh g\n")
    assert translate(model_folder, "--n-best", "3", "--beams", "4") == 0
    rows = [line.split("\t") for line in capsysbinary.readouterr().out.decode().splitlines()]
    assert [row[0] for row in rows] == ["1", "1", "1", "2", "2", "2", "3", "3", "3"]
    assert rows[3:6] == [["2", "0.0000", ""]] * 3
    for start in (0, 6):
        scores = [float(row[1]) for row in rows[start : start + 3]]
        assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize(
    ("options", "precision", "own"),
    [(["--alpha", "0"], "float32", {"alpha": 0.0}), (["--alpha", "2"], "float32", {"alpha": 2.0})]
    + [(["--coverage-penalty", "0.4"], "float32", {"coverage_penalty": 0.4})]
    + [(["--precision", precision], precision, {}) for precision in ("bfloat16", "int8")],
)
def test_penalties_and_precision_match_translator(model_folder, give_input, capsysbinary, options, precision, own):
    give_input("".join(f"{line}\n" for line in LINES).encode())
    assert translate(model_folder, "--quiet", *options, "--n-best", "1") == 0
    found = [line.split("\t")[1:] for line in capsysbinary.readouterr().out.decode().split("\n")[:-1]]
    expected = Translator.from_pretrained(model_folder, precision).n_best(LINES, 1, **own)
    assert found == [[f"{best.score or 0.0:.4f}", best.text] for [best] in expected]


@pytest.mark.parametrize("options", [["--alpha", "nan"], ["--coverage-penalty", "inf"], ["--precision", "int4"]])
def test_invalid_decoding_options_are_usage_errors(model_folder, capsys, options: list[str]):
    with pytest.raises(SystemExit) as caught:
        translate(model_folder, *options)
    assert caught.value.code == 2
    assert f"argument {options[0]}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--n-best", "5"], "--n-best 5 needs at least 5 beams: add --beams 5"),
        (["--n-best", "1", "--beams", "1"], "--n-best 1 needs at least 2 beams: add --beams 2"),
    ],
)
def test_n_best_needs_beams(model_folder, give_input, capsys, options: list[str], said: str):
    give_input(b"a\n")
    assert translate(model_folder, *options) == 2
    assert said in capsys.readouterr().err


def error_line(capsys) -> str:
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("vanilla-transformer translate: error: ")
    return message


def test_invalid_utf8_names_the_line(model_folder, give_input, capsys):
    give_input(b"a b\n\xff\n")
    assert translate(model_folder, "--quiet") == 1
    assert "standard input, line 2: byte 1 is not UTF-8" in error_line(capsys)


def test_too_long_line_is_refused_by_number(model_folder, give_input, capsys):
    give_input(b"a b\n" + b"a " * 500_000 + b"\n")
    assert translate(model_folder, "--quiet") == 1
    assert "line 2 has 500,001 tokens, more than the limit of 1,024" in error_line(capsys)


def test_max_tokens_can_be_raised(model_folder, give_input, capsysbinary):
    give_input(b"a " * 30 + b"\n")
    assert translate(model_folder, "--quiet", "--max-tokens", "30", "--beams", "1") == 1
    give_input(b"a " * 30 + b"\n")
    assert translate(model_folder, "--quiet", "--max-tokens", "31", "--beams", "1") == 0


def without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def truncated(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def empty(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"")


def other_shapes(folder: Path) -> None:
    config = folder / "config.json"
    config.write_text(config.read_text(encoding="utf-8").replace('"d_ff": 32', '"d_ff": 48'), encoding="utf-8")


def one_missing(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.encoder.layers.0.feed_forward.linear_1.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def broken_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"model": ', encoding="utf-8")


def wrong_config(folder: Path) -> None:
    config = folder / "config.json"
    config.write_text(
        config.read_text(encoding="utf-8").replace('"d_model": 16', '"d_model": "wide"'), encoding="utf-8"
    )


def broken_config(folder: Path) -> None:
    (folder / "config.json").write_text("{", encoding="utf-8")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (without_weights, "has no weights: expected model.safetensors"),
        (truncated, "are damaged (truncated download or copy?)"),
        (empty, "are damaged (truncated download or copy?)"),
        (other_shapes, "do not fit its config.json"),
        (one_missing, "lacks 1 of the model's weights, the first is model.encoder.layers.0.feed_forward.linear_1"),
        (no_config, "has no config.json"),
        (no_tokenizer, "has no tokenizer: tokenizer.json is missing"),
        (broken_tokenizer, "is damaged"),
        (broken_config, "config.json"),
        (wrong_config, "config.json"),
        (shutil.rmtree, "does not exist"),
    ],
)
def test_broken_model_folder(copied, give_input, capsys, damage, said: str):
    damage(copied)
    give_input(b"a\n")
    assert translate(copied) == 1
    message = error_line(capsys)
    assert str(copied) in message
    assert said in message


def test_json_has_the_tokens_of_every_translation(model_folder, give_input, capsysbinary):
    give_input("".join(f"{line}\n" for line in LINES).encode())
    assert translate(model_folder, "--quiet", "--json", "--n-best", "2") == 0
    rows = [json.loads(line) for line in capsysbinary.readouterr().out.decode().split("\n")[:-1]]
    expected = list(Translator.from_pretrained(model_folder).n_best(LINES, 2, log_probs=True))
    numbered = [(number, each) for number, best in enumerate(expected, start=1) for each in best]
    assert [row["line"] for row in rows] == [number for number, _ in numbered]
    for row, (_, each) in zip(rows, numbered, strict=True):
        assert (row["translation"], row["tokens"]) == (each.text, list(each.tokens))
        assert row["score"] == (None if each.score is None else pytest.approx(each.score, abs=1e-5))
        assert row["probabilities"] == pytest.approx([math.exp(value) for value in each.log_probs], abs=1e-5)


def test_several_models_are_an_ensemble(model_folder, give_input, capsysbinary):
    give_input(b"a b c\nh g\n")
    other = ["--weights", "2,1", "--ensemble-mean", "log_probabilities", "--quiet"]
    assert main(["translate", str(model_folder), str(model_folder), *other]) == 0
    together = capsysbinary.readouterr().out
    give_input(b"a b c\nh g\n")
    assert translate(model_folder, "--quiet") == 0
    assert capsysbinary.readouterr().out == together  # the mean of equals


@pytest.mark.parametrize("candidates", [["--samples", "6", "--seed", "2"], ["--n-best", "4"]])
@pytest.mark.parametrize("utility", ["chrf", "bleu"])
def test_mbr_prints_a_candidate_for_each_line(model_folder, give_input, capsysbinary, utility, candidates):
    for budget in ("8192", "8"):
        give_input("".join(f"{line}\n" for line in LINES).encode())
        assert translate(model_folder, "--quiet", "--mbr", utility, *candidates, "--batch-tokens", budget) == 0
    printed = capsysbinary.readouterr().out.decode().split("\n")[:-1]
    assert len(printed) == 2 * len(LINES)
    assert printed[: len(LINES)] == printed[len(LINES) :]
    assert not any(printed[i] for i in (1, 3, 7))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--samples", "4"], "--samples is of --mbr: add it"),
        (["--seed", "4"], "--seed is of --mbr: add it"),
        (["--mbr", "chrf"], "--mbr chrf needs candidates: give either --samples N or --n-best N"),
        (["--mbr", "chrf", "--samples", "4", "--n-best", "4"], "give either --samples N or --n-best N"),
        (["--mbr", "chrf", "--samples", "4", "--beams", "4"], "--beams has no part in --mbr of samples"),
        (["--mbr", "bleu", "--n-best", "4", "--seed", "1"], "--seed has no part in --mbr of beam search"),
    ],
)
def test_options_of_candidates_and_ensembles_go_together(model_folder, give_input, capsys, options, said: str):
    give_input(b"a\n")
    assert translate(model_folder, *options) == 2
    assert said in capsys.readouterr().err
