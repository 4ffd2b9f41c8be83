# SPDX-License-Identifier: Apache-2.0
"""Publish a model folder on the Hugging Face Hub, in a single commit.

    vanilla-transformer push runs/multi30k/model user/name --dry-run
    vanilla-transformer push runs/multi30k/model user/name --private --message "More updates"

The token is that of `hf auth login`, or HF_TOKEN. A folder that is incomplete, holds pickles or has an invalid card is
refused before anything is sent.
"""

import argparse
import sys

EXTRA, NEEDS = "training", ("yaml",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", help="model folder")
    parser.add_argument("repository", metavar="user/name", help="created if it does not exist")
    parser.add_argument("--private", action="store_true", help="create a private repository")
    parser.add_argument("--revision", metavar="BRANCH", help="created if it does not exist (default: main)")
    parser.add_argument("--message", default="Upload model", help="commit message (default: %(default)s)")
    parser.add_argument("--dry-run", action="store_true", help="check the folder, list files and sizes, send nothing")


def run(arguments: argparse.Namespace) -> int:
    from pathlib import Path

    from vanilla_transformer.hub.publish import check_name, push_folder
    from vanilla_transformer.hub.published_folder import check_folder, list_files

    folder, repository = Path(arguments.folder), arguments.repository
    if problems := check_folder(folder):
        print(*(f"- {problem}" for problem in problems), sep="\n", file=sys.stderr)
        raise ValueError(f"{folder} cannot be published for the {len(problems)} reason(s) above; nothing was sent")
    check_name(repository)
    if not arguments.dry_run:
        options = {"private": arguments.private, "revision": arguments.revision, "message": arguments.message}
        print(f"published: {push_folder(folder, repository, **options)}")
        return 0
    sizes = dict(list_files(folder))
    for name, size in sizes.items():
        print(f"{size:>15,}  {name}")
    print(f"{sum(sizes.values()):>15,}  bytes in {len(sizes)} files")
    existing = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    for name in sorted(existing - sizes.keys()):
        print(f"{'not sent':>15}  {name}")
    return 0
