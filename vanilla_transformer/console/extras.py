# SPDX-License-Identifier: Apache-2.0
"""The extra of this package that installs a missing module, from the metadata of the installed package."""

import re
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, requires
from importlib.util import find_spec

PACKAGE = "vanilla-transformer"
MODULE_OF = {"pyyaml": "yaml", "xstatic-jquery": "xstatic"}  # packages that are not called as they are imported


def check_installed(modules: Sequence[str]) -> None:
    """Raise ModuleNotFoundError for the first module that is not installed; `run_program` names its extra."""
    for module in modules:
        if find_spec(module) is None:
            raise ModuleNotFoundError(f"No module named {module!r}", name=module)


def explain_missing(error: ModuleNotFoundError, program: str, extra: str | None) -> str | None:
    """The command that installs the module; `None` if no extra installs it, or it is installed.

    Args:
        extra: the program's own, which is preferred to a smaller one that installs the module.
    """
    module = (error.name or "").partition(".")[0]
    try:
        requirements = requires(PACKAGE) or []
    except PackageNotFoundError:  # files that are not installed
        return None
    extras: dict[str, list[str]] = {}  # the modules that each installs
    for requirement in requirements:
        if found := re.match(r"""([\w-]+).*\bextra == ['"]([\w-]+)""", requirement):
            extras.setdefault(found[2], []).append(MODULE_OF.get(found[1], found[1]))
    sufficient = [name for name, modules in extras.items() if module in modules]
    if not sufficient or find_spec(module) is not None:
        return None
    advised = extra if extra in sufficient else min(sufficient, key=lambda name: len(extras[name]))
    return f"{program} needs {module}: pip install '{PACKAGE}[{advised}]'"
