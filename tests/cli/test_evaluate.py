# SPDX-License-Identifier: Apache-2.0
import json
from pathlib import Path

import pytest
import sacrebleu

from vanilla_transformer.cli import main
from vanilla_transformer.inference.translator import Translator

REFERENCES = ["a b c d e", "The cat sat on the mat .", "c d"]


def write(path: Path, lines: list[str]) -> str:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return str(path)


def test_hypotheses_score_as_in_sacrebleu(tmp_path, capsys):
    hypotheses = ["a b c d f", "the cat sat on a mat .", "c d"]
    files = [write(tmp_path / "hyp", hypotheses), write(tmp_path / "ref", REFERENCES)]
    assert main(["evaluate", "--hypothesis", files[0], "--reference", files[1], "--lowercase", "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)
    for case, lowercase in (("cased", False), ("lowercased", True)):
        expected = sacrebleu.corpus_bleu(hypotheses, [REFERENCES], lowercase=lowercase)
        assert scores[case]["bleu"] == pytest.approx(expected.score)
    assert scores["cased"]["bleu_signature"] == "nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:2.6.0"


def test_multiple_references_score_as_in_sacrebleu(tmp_path, capsys):
    hypotheses, others = ["a b c d f", "the cat sat on a mat .", "c d"], ["a b c d f g", "a cat sat on a mat .", "c e"]
    files = [write(tmp_path / name, lines) for name, lines in zip("hab", (hypotheses, REFERENCES, others), strict=True)]
    command = ["evaluate", "--hypothesis", files[0], "--reference", files[1], "--reference", files[2], "--json"]
    assert main(command) == 0
    score = json.loads(capsys.readouterr().out)["cased"]
    assert score["bleu"] == pytest.approx(sacrebleu.corpus_bleu(hypotheses, [REFERENCES, others]).score)
    assert score["chrf"] == pytest.approx(sacrebleu.corpus_chrf(hypotheses, [REFERENCES, others]).score)
    assert score["bleu_signature"].startswith("nrefs:2|")
    assert score["chrf_signature"].startswith("nrefs:2|")
    assert score["bleu"] > sacrebleu.corpus_bleu(hypotheses, [others]).score  # both references count
    assert score["bleu"] > sacrebleu.corpus_bleu(hypotheses, [REFERENCES]).score


def test_every_reference_must_be_aligned(tmp_path, capsys):
    files = [write(tmp_path / name, lines) for name, lines in (("h", ["a"]), ("r", ["a"]), ("long", ["a", "b"]))]
    assert main(["evaluate", "--hypothesis", files[0], "--reference", files[1], "--reference", files[2]]) == 1
    assert "h has 1 lines, " in capsys.readouterr().err


def test_model_translations_are_written_and_scored(model_folder, tmp_path, capsys):
    source, reference = write(tmp_path / "s", ["a b c", "", "h"]), write(tmp_path / "t", ["c b a", "", "h"])
    output = tmp_path / "out"
    arguments = ["evaluate", str(model_folder), "--source", source, "--reference", reference]
    assert main([*arguments, "--output", str(output)]) == 0
    printed = capsys.readouterr().out
    translations = output.read_text(encoding="utf-8").split("\n")
    assert len(translations) == 4
    assert translations[1] == ""
    assert main(["evaluate", "--hypothesis", str(output), "--reference", reference]) == 0
    assert capsys.readouterr().out == printed


def test_decoding_options_reach_the_model(model_folder, tmp_path):
    lines = ["a b c", "h g", "d"]
    source, output = write(tmp_path / "s", lines), tmp_path / "out"
    arguments = ["evaluate", str(model_folder), "--source", source, "--reference", source, "--output", str(output)]
    assert main([*arguments, "--precision", "int8", "--alpha", "-1", "--beams", "3", "--coverage-penalty", "2"]) == 0
    options = {"alpha": -1.0, "num_beams": 3, "coverage_penalty": 2.0}
    expected = Translator.from_pretrained(model_folder, "int8").translate(lines, **options)
    assert output.read_text(encoding="utf-8").splitlines() == expected


@pytest.mark.parametrize(
    "arguments",
    [
        ["--source", "s"],
        ["model"],
        [],
        ["model", "--source", "s", "--hypothesis", "h"],
        ["model", "--hypothesis", "h"],
        ["--source", "s", "--hypothesis", "h"],
    ],
)
def test_model_and_source_or_hypothesis_is_required(arguments: list[str], capsys):
    assert main(["evaluate", *arguments, "--reference", "r"]) == 2
    assert "give either MODEL and --source, or --hypothesis" in capsys.readouterr().err


@pytest.mark.parametrize("option", [["--beams", "4"], ["--shortlist", "lex"], ["--weights", "1,2"]])
def test_options_for_models_are_refused_with_finished_translations(option: list[str], capsys):
    assert main(["evaluate", "--hypothesis", "h", "--reference", "r", *option]) == 2
    assert f"{option[0]} is for a model: leave it out with --hypothesis" in capsys.readouterr().err


@pytest.mark.parametrize(("lines", "said"), [(["a"], "hyp has 1 lines, "), ([], "are empty: nothing to score")])
def test_misaligned_and_empty_files(tmp_path, capsys, lines: list[str], said: str):
    references = REFERENCES if lines else []
    files = [write(tmp_path / "hyp", lines), write(tmp_path / "ref", references)]
    assert main(["evaluate", "--hypothesis", files[0], "--reference", files[1]]) == 1
    assert said in capsys.readouterr().err


def test_missing_file(tmp_path, capsys):
    hypothesis = write(tmp_path / "hyp", ["a"])
    assert main(["evaluate", "--hypothesis", hypothesis, "--reference", str(tmp_path / "nowhere")]) == 1
    assert "nowhere does not exist" in capsys.readouterr().err
