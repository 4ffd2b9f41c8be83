# SPDX-License-Identifier: Apache-2.0
"""Cards of exported folders: description, and the code that opens each."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

EXAMPLE = "One line of the source."
LINES_IN_CODE = re.compile(r"^lines = (\[.*\])$", flags=re.MULTILINE)  # see model_card.md
HEADING, NEXT_HEADING = "## Other runtimes", "\n## Training data\n"


class Runtime(NamedTuple):
    """A value of `export --to`, which is also the subfolder of a repository where `push --with` puts its folder."""

    title: str
    library_name: str  # the Hub's
    description: str  # sentences
    imports: str
    # Opens the folder `name` and translates `lines`. SUBFOLDER: further arguments; TARGET: a folder.
    code: str
    opens_subfolders: bool = True  # of a repository on the Hub, by `subfolder`


AUTO_CLASSES = """\
tokenizer = AutoTokenizer.from_pretrained(name{SUBFOLDER})
model = MODEL.from_pretrained(name{SUBFOLDER})
outputs = model.generate(**tokenizer(lines, return_tensors="pt", padding=True))
{TARGET_TOKENIZER}print(tokenizer.batch_decode(outputs, skip_special_tokens=True))
"""
RUNTIMES = {
    "marian": Runtime(
        "MarianMT",
        "transformers",
        "A model of transformers itself, for 4.40 and every later version, without remote code.",
        "from transformers import AutoModelForSeq2SeqLM, AutoTokenizer",
        AUTO_CLASSES.replace("MODEL", "AutoModelForSeq2SeqLM"),
        opens_subfolders=False,  # transformers 4 asks to trust the `custom_generate` of the repository above
    ),
    "ctranslate2": Runtime(
        "CTranslate2",
        "ctranslate2",
        "Beam, length penalty and longest target come from the call.",
        "import ctranslate2\nfrom tokenizers import Tokenizer",
        """\
tokenizer = Tokenizer.from_file(f"{name}/tokenizer.json")
target = Tokenizer.from_file(f"{name}/{TARGET}tokenizer.json")
translator = ctranslate2.Translator(name)
results = translator.translate_batch([tokenizer.encode(line).tokens for line in lines], beam_size=4)
print([target.decode([target.token_to_id(token) for token in result.hypotheses[0]]) for result in results])
""",
        opens_subfolders=False,
    ),
    "onnx": Runtime(
        "ONNX",
        "optimum",
        "Encoder, first step and later steps, in the layout of optimum (`pip install optimum-onnx`).",
        "from optimum.onnxruntime import ORTModelForSeq2SeqLM\nfrom transformers import AutoTokenizer",
        AUTO_CLASSES.replace("MODEL", "ORTModelForSeq2SeqLM"),
    ),
}


RECURRENT_ONNX = Runtime(
    "ONNX",
    "onnx",
    "The encoder and a step of the decoder, for onnxruntime alone: `pip install 'vanilla-transformer[export]'`.",
    "from pathlib import Path\n\nfrom vanilla_transformer.exporting.onnx_translator import OnnxTranslator",
    "print(OnnxTranslator(Path(name)).translate(lines))\n",
    opens_subfolders=False,
)


def runtime_of(name: str, folder: Path) -> Runtime:
    """The runtime of an exported folder; optimum, which decodes a Transformer's graphs, has no RNN."""
    is_recurrent = name == "onnx" and not (folder / "decoder_with_past_model.onnx").is_file()
    return RECURRENT_ONNX if is_recurrent else RUNTIMES[name]


def is_exported(name: str) -> bool:
    """Whether a file of a repository lies in the subfolder of a runtime."""
    return name.partition("/")[0] in RUNTIMES and "/" in name


def example_lines(card: str) -> str:
    """The lines that the code of a model card translates, as a list in Python."""
    found = LINES_IN_CODE.search(card)
    return found[1] if found else json.dumps([EXAMPLE])


def opening_code(runtime: str, folder: Path, lines: str, repo_id: str | None = None) -> str:
    """Python that opens an exported folder and prints translations.

    Args:
        runtime: a key of `RUNTIMES`.
        folder: the exported one.
        lines: a list in Python.
        repo_id: the folder is the runtime's subfolder of this repository; `None`: it is the current folder.
    """
    chosen = runtime_of(runtime, folder)
    imports, name, subfolder = chosen.imports, 'name = "."  # this folder; elsewhere, its path', ""
    if repo_id is not None:
        name = f"name = {json.dumps(repo_id)}"
        if chosen.opens_subfolders:
            subfolder = f', subfolder="{runtime}"'
        else:
            imports = "\n".join(["from huggingface_hub import snapshot_download", imports])
            name = f'name = snapshot_download({json.dumps(repo_id)}, allow_patterns="{runtime}/*") + "/{runtime}"'
    target = "target_tokenizer/" if (folder / "target_tokenizer").is_dir() else ""
    place = f"{runtime}/target_tokenizer" if subfolder else "target_tokenizer"
    opened = f'tokenizer = AutoTokenizer.from_pretrained(name, subfolder="{place}")\n' if target else ""
    code = chosen.code.replace("{SUBFOLDER}", subfolder).replace("{TARGET}", target)
    code = code.replace("{TARGET_TOKENIZER}", opened)
    return f"{imports}\n\n{name}\nlines = {lines}\n{code}"


def describe_exports(card: str, exports: Mapping[str, Path], repo_id: str) -> str:
    """A model card with a section on the exported folders in its repository, in place of a former such section."""
    card = re.sub(rf"^{HEADING}\n.*?(?=^## |\Z)", "", card, flags=re.MULTILINE | re.DOTALL)
    parts = [
        f"### {runtime_of(name, folder).title}: `{name}/`\n\n{runtime_of(name, folder).description}\n\n"
        f"```python\n{opening_code(name, folder, example_lines(card), repo_id)}```\n"
        for name, folder in exports.items()
    ]
    if not parts:
        return card
    before, heading, after = card.partition(NEXT_HEADING)
    intro = f"{HEADING}\n\nSubfolders hold the same model for other runtimes, without code of its own.\n"
    return "\n".join([before.rstrip() + "\n", intro, *parts]) + heading + after
