# SPDX-License-Identifier: Apache-2.0
"""Download a model from the Hugging Face Hub into a folder, without pickles.

vanilla-transformer pull user/name models/name
vanilla-transformer pull user/name models/name --revision v1
"""

import argparse

from vanilla_transformer.console.outputs import check_output_folder

EXTRA, NEEDS = "training", ("yaml",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("repository", metavar="user/name")
    parser.add_argument("folder", help="folder to write")
    parser.add_argument("--revision", help="branch, tag or commit (default: main)")


def run(arguments: argparse.Namespace) -> int:
    from vanilla_transformer.hub.pull import pull

    check_output_folder(arguments.folder, "folder")
    print(f"model folder: {pull(arguments.repository, arguments.folder, revision=arguments.revision)}")
    return 0
