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


class _Finder:
    @staticmethod
    def find_spec(name: str, path=None, target=None) -> ModuleSpec | None:
        """Where Python finds a watched module, whose loader also runs the due actions after the outermost import.

        Not earlier: our models import parts of transformers that import the auto classes, so an auto class may be
        complete while a model of ours is half executed.
        """
        if name.partition(".")[0] not in _WATCHED:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is None or spec.loader is None:
            return spec
        loader = spec.loader

        def exec_module(module) -> None:
            del loader.exec_module  # the loader is as Python made it again
            _nested.imports += 1
            try:
                loader.exec_module(module)
                if _nested.imports == 1:
                    _run_due_actions()
            finally:
                _nested.imports -= 1

        loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, _Finder)
