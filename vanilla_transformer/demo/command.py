# SPDX-License-Identifier: Apache-2.0
"""The command line of scripts/demo.py."""

import argparse
from collections.abc import Sequence

from vanilla_transformer.console.arguments import ArgumentParser
from vanilla_transformer.console.extras import check_installed
from vanilla_transformer.console.outputs import check_output_folder
from vanilla_transformer.console.running import run_program
from vanilla_transformer.console.streams import prepare_streams

NEEDED = ("gradio", "matplotlib")


def main(argv: Sequence[str] | None = None) -> int:
    """Serve the page until interrupted, or write it as a Space.

    Returns:
        The exit status: 0, or 1 after an error that the user can mend (one line on stderr).
    """
    prepare_streams()
    parser = ArgumentParser(description="A page to play with trained models, on 127.0.0.1.")
    parser.add_argument("models", nargs="+", metavar="MODEL", help="model folder or Hub id; several: side by side")
    parser.add_argument(
        "--write-space", metavar="FOLDER", help="do not serve: write the page as a Hub Space into this new folder"
    )
    arguments = parser.parse_args(argv)
    return run_program(lambda: _run(arguments), "demo", extra="demo")


def _run(arguments: argparse.Namespace) -> None:
    check_installed(NEEDED)
    if arguments.write_space:
        check_output_folder(arguments.write_space, "--write-space")

    from transformers.utils.logging import disable_progress_bar

    from vanilla_transformer.demo.page import build_page, launch
    from vanilla_transformer.demo.shown_model import open_models
    from vanilla_transformer.demo.space import write_space

    disable_progress_bar()  # loading weights shows one
    models = open_models(arguments.models)
    if arguments.write_space:
        folder = write_space(arguments.write_space, models)
        print(f"{folder}: try it by `cd {folder} && python app.py`; push it to a Space of the Hub as it is")
        return
    page = build_page(models)
    _, address, _ = launch(page, server_name="127.0.0.1", prevent_thread_lock=True)
    print(f"Open {address} in a browser; Ctrl-C ends it.", flush=True)
    page.block_thread()
