# SPDX-License-Identifier: Apache-2.0
"""Publish a model folder on the Hugging Face Hub, in a single commit.

    vanilla-transformer push runs/multi30k/model user/name --dry-run
    vanilla-transformer push runs/multi30k/model user/name --private --message "More updates"
    vanilla-transformer push runs/multi30k/model user/name --with marian,onnx

The token is that of `hf auth login`, or HF_TOKEN. A folder that is incomplete, holds pickles or has an invalid card is
refused before anything is sent. `--with` adds what `export` writes for other runtimes, each in a subfolder.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from vanilla_transformer.cli.export import NEEDED
from vanilla_transformer.console.extras import check_installed

EXTRA, NEEDS = "export", ("yaml",)
RUNTIMES = [name for name in NEEDED if name != "web"]  # a page is served as a whole, and not opened from the Hub


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", help="model folder")
    parser.add_argument("repository", metavar="user/name", help="created if it does not exist")
    parser.add_argument(
        "--with",
        dest="runtimes",
        type=_runtimes,
        default=[],
        metavar="RUNTIME,…",
        help=f"also exports, in subfolders: {', '.join(RUNTIMES)}",
    )
    parser.add_argument("--private", action="store_true", help="create a private repository")
    parser.add_argument("--revision", metavar="BRANCH", help="created if it does not exist (default: main)")
    parser.add_argument("--message", default="Upload model", help="commit message (default: %(default)s)")
    parser.add_argument("--dry-run", action="store_true", help="check the folder, list files and sizes, send nothing")


def _runtimes(text: str) -> list[str]:
    """An argparse type: names of runtimes, separated by commas."""
    names = list(dict.fromkeys(text.split(",")))
    for name in names:
        if name not in RUNTIMES:
            raise argparse.ArgumentTypeError(f"{name!r} must be one of {', '.join(RUNTIMES)}")
    return names


def run(arguments: argparse.Namespace) -> int:
    from vanilla_transformer.hub.publish import check_name, files_to_push, push_folder
    from vanilla_transformer.hub.published_folder import check_folder

    folder, repository = Path(arguments.folder), arguments.repository
    for runtime in arguments.runtimes:
        check_installed(NEEDED[runtime])
    if problems := check_folder(folder):
        print(*(f"- {problem}" for problem in problems), sep="\n", file=sys.stderr)
        raise ValueError(f"{folder} cannot be published for the {len(problems)} reason(s) above; nothing was sent")
    check_name(repository)
    with TemporaryDirectory() as temporary:
        exports = _export(folder, Path(temporary), arguments.runtimes)
        if not arguments.dry_run:
            options = {"private": arguments.private, "revision": arguments.revision, "message": arguments.message}
            print(f"published: {push_folder(folder, repository, exports=exports, **options)}")
            return 0
        sizes = {name: path.stat().st_size for name, path in files_to_push(folder, exports).items()}
    for name, size in sizes.items():
        print(f"{size:>15,}  {name}")
    print(f"{sum(sizes.values()):>15,}  bytes in {len(sizes)} files")
    existing = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    for name in sorted(existing - sizes.keys()):
        print(f"{'not sent':>15}  {name}")
    return 0


def _export(source: Path, folder: Path, runtimes: Sequence[str]) -> dict[str, Path]:
    """Runtime → the folder that is written for it within `folder`."""
    if not runtimes:
        return {}
    from transformers.utils.logging import disable_progress_bar

    from vanilla_transformer.data.tokenizer import load_tokenizer
    from vanilla_transformer.exporting.export_model import export_model
    from vanilla_transformer.exporting.exported_card import write_exported_card
    from vanilla_transformer.inference.model_folder import load_model_folder

    disable_progress_bar()  # of reading and writing weights
    model, tokenizer = load_model_folder(source), load_tokenizer(source)
    exports = {runtime: folder / runtime for runtime in runtimes}
    for runtime, exported in exports.items():
        exported.mkdir()
        export_model(model, tokenizer, exported, runtime)
        write_exported_card(source, exported, runtime, "float32")
    return exports
