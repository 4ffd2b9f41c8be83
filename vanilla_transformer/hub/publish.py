# SPDX-License-Identifier: Apache-2.0
"""Publishing a model folder on the Hub: checked before anything is sent, and sent as one commit."""

import json
import re
from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard
from huggingface_hub.utils import validate_repo_id

from vanilla_transformer.hub.exported_folders import describe_exports, is_exported
from vanilla_transformer.hub.hub_errors import readable_hub_errors, refuse_address
from vanilla_transformer.hub.published_folder import ANY_WEIGHTS, CARD, check_folder, list_files

NAME_IN_CODE = re.compile(r'^name = ".*"  # put the id on the Hub here.*$', flags=re.MULTILINE)  # see model_card.md
NAME_IN_SHELL = re.compile(r"^(vanilla-transformer translate ).*( < source.txt.*)$", flags=re.MULTILINE)


def push_folder(
    folder: str | Path,
    repo_id: str,
    *,
    exports: Mapping[str, Path] | None = None,
    private: bool = False,
    revision: str | None = None,
    message: str = "Upload model",
    token: str | None = None,
) -> str:
    """Publish a model folder as one commit; creates the repository and the branch if there are none.

    The commit also deletes weights and exports of an earlier push that are no longer part of the model. Without changes
    there is no commit. A push that fails leaves at most a new repository or branch without files. The published card
    opens the model by its id, and its exports.

    Args:
        exports: runtime → a folder that `vanilla-transformer export` wrote of this model; it becomes the subfolder
            with the runtime's name.
        repo_id: user/name, or organization/name.
        private: create a private repository; an existing one must be private.
        revision: a branch, or refs/pr/N of an existing pull request; `None`: the main branch.
        message: of the commit, one line.
        token: `None`: HF_TOKEN or that of `hf auth login`.

    Returns:
        The URL of the commit.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: before anything is sent, with a line for each problem that `check_folder` or the Hub's check of
            the card finds; a name that is not user/name; private for a public repository; a revision that is a tag.
        OSError: as `readable_hub_errors`.
    """
    folder = Path(folder)
    if problems := check_folder(folder):
        raise ValueError("\n- ".join([f"{folder} cannot be published:", *problems]))
    check_name(repo_id)
    api = HfApi(token=token)
    with readable_hub_errors(repo_id, revision, token):
        _check_card_on_hub(folder)
        api.create_repo(repo_id, private=private or None, exist_ok=True)
        if private and not api.model_info(repo_id).private:
            raise ValueError(f"{repo_id} exists and is public: make it private on the Hub first, or push publicly")
        if revision is not None:
            _create_branch(api, repo_id, revision)
        return _commit(api, folder, exports or {}, repo_id, revision, message)


def files_to_push(folder: Path, exports: Mapping[str, Path]) -> dict[str, Path]:
    """The files of a push, sorted by their paths in the repository; arguments as for `push_folder`."""
    files = {name: folder / name for name, _ in list_files(folder)}
    for runtime, exported in exports.items():
        files |= {
            f"{runtime}/{path.relative_to(exported).as_posix()}": path for path in exported.rglob("*") if path.is_file()
        }
    return dict(sorted(files.items()))


def check_name(repo_id: str) -> None:
    """Raise ValueError for a name that the Hub refuses."""
    refuse_address(repo_id)
    if repo_id.count("/") != 1:
        raise ValueError(f"the repository must be user/name, not {repo_id!r}")
    validate_repo_id(repo_id)


def _check_card_on_hub(folder: Path) -> None:
    """The Hub's own check of the metadata, which needs no repository and no token."""
    try:
        ModelCard.load(folder / CARD).validate()
    except ValueError as error:
        try:
            reason = "; ".join(problem["message"] for problem in json.loads(str(error))["errors"])
        except (ValueError, KeyError, TypeError):
            reason = str(error)
        raise ValueError(f"the Hub does not accept the metadata of {CARD}: {reason}") from error


def _create_branch(api: HfApi, repo_id: str, revision: str) -> None:
    refs = api.list_repo_refs(repo_id)
    if revision in {tag.name for tag in refs.tags}:
        raise ValueError(f"{revision!r} is a tag of {repo_id}, which a push cannot move: give a branch")
    if revision not in {branch.name for branch in refs.branches} and not revision.startswith("refs/pr/"):
        api.create_branch(repo_id, branch=revision, exist_ok=True)


def _commit(
    api: HfApi, folder: Path, exports: Mapping[str, Path], repo_id: str, revision: str | None, message: str
) -> str:
    """One commit on the current head; it fails if somebody else commits in between.

    `HfApi.upload_folder` would be shorter, but may split a folder into several commits.
    """
    head = api.model_info(repo_id, revision=revision)
    files = files_to_push(folder, exports)
    card = files.pop(CARD).read_text("utf-8")
    card = NAME_IN_CODE.sub(lambda _: f"name = {json.dumps(repo_id)}", card)  # foreign cards do not have this line
    card = NAME_IN_SHELL.sub(lambda match: f"{match[1]}{repo_id}{match[2]}", card)
    card = describe_exports(card, exports, repo_id)
    published = [file.rfilename for file in head.siblings or []]
    stale = [name for name in published if (ANY_WEIGHTS.fullmatch(name) or is_exported(name)) and name not in files]
    operations = [
        *map(CommitOperationDelete, stale),
        *(CommitOperationAdd(name, path) for name, path in files.items()),
        CommitOperationAdd(CARD, card.encode("utf-8")),
    ]
    commit = api.create_commit(repo_id, operations, commit_message=message, revision=revision, parent_commit=head.sha)
    return commit.commit_url
