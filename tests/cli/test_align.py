# SPDX-License-Identifier: Apache-2.0
import json
from pathlib import Path

import pytest

from tests.inference.aligning_model import aligning_model, reorderings
from vanilla_transformer.cli import main

ROWS = reorderings(12)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pairs")
    paths = {name: folder / name for name in ("source", "target", "reference")}
    for path, lines in zip(paths.values(), zip(*ROWS, strict=True), strict=True):
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return paths


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model, tokenizer = aligning_model()
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def align(folder: Path, files: dict[str, Path], *options: str, reference: bool = False) -> int:
    arguments = [f"--{name}={path}" for name, path in files.items() if reference or name != "reference"]
    return main(["align", str(folder), *arguments, *options])


def test_the_chosen_heads_align_and_are_scored(folder, files, capsysbinary):
    before = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
    assert align(folder, files, "--choose", reference=True) == 0
    after = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
    before.pop("_from_model_config")
    assert after == before | {"alignment_heads": [[1, 1]], "alignment_shift": 1}
    capsysbinary.readouterr()
    assert align(folder, files) == 0
    assert capsysbinary.readouterr().out.decode().splitlines() == [row[2] for row in ROWS]
    assert align(folder, files, reference=True) == 0
    assert b"alignment error rate 0.0% (precision 100.0%, recall 100.0%, 12 pairs)" in capsysbinary.readouterr().out


def test_translate_writes_an_alignment_for_each_line(folder, files, give_input, tmp_path, capsysbinary):
    assert align(folder, files, "--choose", reference=True) == 0
    lines, output = ["a b c", "", "d"], tmp_path / "out.align"
    capsysbinary.readouterr()
    outputs = []
    for options in ([], ["--alignments", str(output)]):
        give_input("".join(f"{line}\n" for line in lines).encode())
        assert main(["translate", str(folder), "--quiet", "--engine", "torch", *options]) == 0
        outputs.append(capsysbinary.readouterr().out.decode())
    assert outputs[0] == outputs[1]
    source, target = (tmp_path / name for name in ("lines", "translations"))
    source.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    target.write_text(outputs[1], encoding="utf-8")
    assert align(folder, {"source": source, "target": target}) == 0
    assert output.read_bytes() == capsysbinary.readouterr().out


def failure(capsys, *arguments: str) -> str:
    assert main([*arguments]) in (1, 2)
    message = capsys.readouterr().err.strip()
    assert "\n" not in message
    return message


def test_bad_input_is_one_line_each(folder, files, tmp_path, capsys):
    pairs = [f"--{name}={files[name]}" for name in ("source", "target")]
    reference = f"--reference={files['reference']}"
    assert "no alignment_heads" in failure(capsys, "align", str(folder), *pairs)
    assert "--choose needs --reference" in failure(capsys, "align", str(folder), *pairs, "--choose")
    assert "generation_config.json, which does not exist" in failure(
        capsys, "align", str(tmp_path / "none"), *pairs, reference, "--choose"
    )
    broken = tmp_path / "broken.align"
    broken.write_text("0-0\n" * 11 + "0=0\n", encoding="utf-8")
    assert "broken.align, line 12: '0=0' is no link" in failure(
        capsys, "align", str(folder), *pairs, f"--reference={broken}", "--choose"
    )
    empty = tmp_path / "empty"
    empty.write_bytes(b"")
    assert "nothing to align" in failure(capsys, "align", str(folder), f"--source={empty}", f"--target={empty}")


def test_alignments_that_cannot_be_written_stop_before_the_work(folder, give_input, tmp_path, capsys):
    give_input(b"a\n")
    message = failure(capsys, "translate", str(folder), "--alignments", str(tmp_path / "none" / "out"))
    assert "--alignments" in message
    assert "there is no folder" in message
    (tmp_path / "before").write_text("0-0\n", encoding="utf-8")
    message = failure(capsys, "translate", str(folder), "--alignments", str(tmp_path / "before"))
    assert "no alignment_heads" in message
    assert (tmp_path / "before").read_text(encoding="utf-8") == "0-0\n"
