# SPDX-License-Identifier: Apache-2.0
"""Publish a model folder on the Hugging Face Hub, in one commit.

    vanilla-transformer push runs/multi30k/model user/name --dry-run
    vanilla-transformer push runs/multi30k/model user/name --private --message "More updates"

The token is that of `hf auth login`, or HF_TOKEN. A folder that is incomplete, holds pickles or has an invalid card is
refused before anything is sent.
"""

import argparse
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

EXTRA, NEEDS = "training", ("yaml",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", help="model folder")
    parser.add_argument("repository", metavar="user/name", help="created if there is none")
    parser.add_argument("--private", action="store_true", help="in a private repository")
    parser.add_argument("--revision", metavar="BRANCH", help="created if there is none (default: main)")
    parser.add_argument("--message", default="Upload model", help="of the commit (%(default)s)")
    parser.add_argument("--dry-run", action="store_true", help="check the folder, list files and sizes, send nothing")


def run(arguments: argparse.Namespace) -> int:
    from pathlib import Path

    from vanilla_transformer.hub.publish import check_name, push_folder
    from vanilla_transformer.hub.published_folder import check_folder

    folder = Path(arguments.folder)
    problems = check_folder(folder)
    if problems:
        print("".join(f"- {problem}\n" for problem in problems), end="", file=sys.stderr)
        raise ValueError(f"{folder} cannot be published for the {len(problems)} reason(s) above; nothing was sent")
    check_name(arguments.repository)
    if arguments.dry_run:
        _print_files(folder)
        return 0
    url = push_folder(
        folder,
        arguments.repository,
        private=arguments.private,
        revision=arguments.revision,
        message=arguments.message,
    )
    print(f"published: {url}")
    return 0


def _print_files(folder: "Path") -> None:
    from vanilla_transformer.hub.published_folder import list_files

    sent = dict(list_files(folder))
    for name, size in sent.items():
        print(f"{size:>15,}  {name}")
    print(f"{sum(sent.values()):>15,}  bytes in {len(sent)} files")
    here = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    for name in sorted(here - sent.keys()):
        print(f"{'not sent':>15}  {name}")
