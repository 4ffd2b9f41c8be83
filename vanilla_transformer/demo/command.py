# SPDX-License-Identifier: Apache-2.0
"""The command line of scripts/demo.py."""

import argparse
import importlib
import sys
from collections.abc import Sequence

NEEDED = ("gradio", "matplotlib")


def main(argv: Sequence[str] | None = None) -> int:
    """Serve the page until interrupted, or write it as a Space.

    Returns:
        The exit status: 0, or 1 after an error that the user can mend (one line on stderr).
    """
    parser = argparse.ArgumentParser(description="A page to play with trained models, on 127.0.0.1.")
    parser.add_argument("models", nargs="+", metavar="MODEL", help="model folder or Hub id; several: side by side")
    parser.add_argument(
        "--write-space", metavar="FOLDER", help="do not serve: write the page as a Hub Space into this new folder"
    )
    arguments = parser.parse_args(argv)
    try:
        _check_extra()
        _run(arguments)
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        print(f"demo: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


def _check_extra() -> None:
    for name in NEEDED:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:
                raise
            raise ValueError(f"the page needs {name}: pip install 'vanilla-transformer[demo]'") from error


def _run(arguments: argparse.Namespace) -> None:
    from transformers.utils.logging import disable_progress_bar

    from vanilla_transformer.demo.page import build_page, launch
    from vanilla_transformer.demo.shown_model import open_models
    from vanilla_transformer.demo.space import write_space

    disable_progress_bar()  # of reading weights
    models = open_models(arguments.models)
    if arguments.write_space:
        folder = write_space(arguments.write_space, models)
        print(f"{folder}: try it by `cd {folder} && python app.py`; push it to a Space of the Hub as it is")
        return
    page = build_page(models)
    _, address, _ = launch(page, server_name="127.0.0.1", prevent_thread_lock=True)
    print(f"Open {address} in a browser; Ctrl-C ends it.", flush=True)
    page.block_thread()
