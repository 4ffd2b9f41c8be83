# SPDX-License-Identifier: Apache-2.0
"""A folder for MarianMT in several versions of transformers, each beside the same torch, without this package.

    python -m tests.exporting.versions FOLDER LINES

FOLDER is a model folder of ours, LINES a file of sources. For each version it prints how many targets are those of our
model, and the largest difference of logits. The older versions are installed into build/versions, which takes a
network.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

INSTALLED = "installed"
VERSIONS = ("4.40.2", "4.57.3", "5.0.0", INSTALLED)
MAX_NEW_TOKENS, BATCH = 50, 50


def answers(model: Any, tokenizer: Any, lines: list[str]) -> dict[str, Any]:
    """Greedy and beam targets without padding, and logits of the greedy ones' first 5 positions."""
    import torch

    found: dict[str, Any] = {"greedy": [], "beam": [], "logits": []}
    for start in range(0, len(lines), BATCH):
        batch = tokenizer(lines[start : start + BATCH], return_tensors="pt", padding=True)
        for name, options in (("greedy", {"num_beams": 1}), ("beam", {"num_beams": 4, "length_penalty": 0.6})):
            targets = model.generate(**batch, max_new_tokens=MAX_NEW_TOKENS, early_stopping=name == "beam", **options)
            found[name] += [_until_end(target, tokenizer.eos_token_id) for target in targets.tolist()]
        with torch.no_grad():
            prompts = torch.tensor(
                [target[:1] + target[1:5] + [2] * (5 - len(target)) for target in found["greedy"][start:]]
            )
            found["logits"] += model(**batch, decoder_input_ids=prompts).logits.tolist()
    return found


def _until_end(target: list[int], end: int) -> list[int]:
    """A target without what fills its row, which is padding or EOS by the version."""
    return target[: target.index(end)] if end in target else target


def answer_in(version: str, folder: Path, lines: list[str], root: Path) -> dict[str, Any]:
    """`answers` of a MarianMT folder in another process with this version of transformers, installed beneath `root`."""
    from tests.versions.installing import installed, run_in

    with tempfile.TemporaryDirectory() as temporary:
        output = Path(temporary, "answers.json")
        target = None if version == INSTALLED else installed(version, root)
        run_in(target, Path(__file__), [str(folder), str(output)], Path(temporary), input=json.dumps(lines))
        return json.loads(output.read_text(encoding="utf-8"))


def compare(model_folder: Path, lines: list[str], root: Path) -> dict[str, dict[str, Any]]:
    """Version → `greedy` and `beam`, targets that are those of our model, and `logits`, the largest difference."""
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    import vanilla_transformer  # noqa: F401 -- registers the models
    from vanilla_transformer.exporting.marian import write_marian

    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(model_folder), AutoTokenizer.from_pretrained(model_folder)
    ours, compared = answers(model.eval(), tokenizer, lines), {}
    with tempfile.TemporaryDirectory() as folder:
        write_marian(model, tokenizer, Path(folder))
        for version in VERSIONS:
            theirs = answer_in(version, Path(folder), lines, root)
            same = {name: sum(map(list.__eq__, ours[name], theirs[name])) for name in ("greedy", "beam")}
            differences = [
                abs(x - y) for a, b in zip(flat(ours), flat(theirs), strict=True) for x, y in zip(a, b, strict=True)
            ]
            compared[version] = same | {"logits": max(differences), "version": theirs["version"]}
    return compared


def flat(found: dict[str, Any]) -> list[list[float]]:
    """The logits of every position."""
    return [position for sentence in found["logits"] for position in sentence]


def _answer() -> None:
    import transformers
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    folder, output = sys.argv[1:]
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    found = answers(model.eval(), tokenizer, json.load(sys.stdin)) | {"version": transformers.__version__}
    assert type(model).__name__ == "MarianMTModel"
    assert "vanilla_transformer" not in sys.modules
    with open(output, "w", encoding="utf-8") as file:
        json.dump(found, file)


def _print_comparison() -> None:
    folder, lines_file = map(Path, sys.argv[1:])
    lines = lines_file.read_text(encoding="utf-8").splitlines()
    for row in compare(folder, lines, Path("build", "versions")).values():
        same = f"greedy {row['greedy']}, beam {row['beam']} of {len(lines)} targets the same"
        print(f"transformers {row['version']}: {same}; logits differ by at most {row['logits']:.1e}")


if __name__ == "__main__":
    if __package__:  # as a module, within the repository
        _print_comparison()
    else:
        _answer()
