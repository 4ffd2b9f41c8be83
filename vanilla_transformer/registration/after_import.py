# SPDX-License-Identifier: Apache-2.0
"""An import hook: functions that run once somebody has imported a module of transformers.

transformers has no plugins. A class is registered by a call of its auto classes, whose import takes seconds, and
`vanilla-transformer --help` must not wait for them. So the classes are registered when the program itself imports them.
"""

import sys
import threading
from collections.abc import Callable
from importlib.machinery import ModuleSpec, PathFinder

_WATCHED = ("transformers", __name__.partition(".")[0])
_actions: dict[str, Callable[[], None]] = {}  # module → the action that waits for its import


class _Nested(threading.local):
    imports = 0  # of watched modules that this thread executes


_nested = _Nested()


def after_import(module: str) -> Callable[[Callable[[], None]], None]:
    """A decorator: the function runs once, after the import of `module`, or at once if it is imported already."""

    def decorate(action: Callable[[], None]) -> None:
        _actions[module] = action
        if _nested.imports == 0:
            _run_due_actions()

    return decorate


def _run_due_actions() -> None:
    while due := _actions.keys() & sys.modules.keys():
        _actions.pop(due.pop())()


class _Loader:
    """A module's own loader, and the due actions after the outermost import.

    Not earlier: our models import parts of transformers that import the auto classes, so an auto class may be complete
    while a model of ours is half executed.
    """

    def __init__(self, loader):
        self._loader = loader

    def __getattr__(self, name: str):
        return getattr(self._loader, name)

    def exec_module(self, module) -> None:
        module.__loader__ = module.__spec__.loader = self._loader
        _nested.imports += 1
        try:
            self._loader.exec_module(module)
            if _nested.imports == 1:
                _run_due_actions()
        finally:
            _nested.imports -= 1


class _Finder:
    @staticmethod
    def find_spec(name: str, path=None, target=None) -> ModuleSpec | None:
        """Where Python finds a watched module."""
        if name.partition(".")[0] not in _WATCHED:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)  # pyright: ignore[reportAttributeAccessIssue] -- stands for any loader
        return spec


sys.meta_path.insert(0, _Finder)
