# SPDX-License-Identifier: Apache-2.0
"""Publishing a model folder on the Hub: checked before anything is sent, and sent as one commit."""

import json
import re
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import validate_repo_id

from vanilla_transformer.hub.hub_errors import readable_hub_errors, refuse_address
from vanilla_transformer.hub.published_folder import ANY_WEIGHTS, CARD, check_folder, list_files

# As model_card.md has it.
NAME_IN_CODE = re.compile(r'^name = ".*"  # put the id on the Hub here.*$', flags=re.MULTILINE)


def push_folder(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    message: str = "Upload model",
    token: str | None = None,
) -> str:
    """Publish a model folder. The repository is created if there is none, and so is the branch.

    All files arrive in one commit or none does; weights of an earlier push that are no longer part of the model go in
    the same commit. When nothing has changed there is no commit. A push that fails leaves at most what is new and
    empty: the repository, the branch. The code in the card opens the model by its id there.

    Args:
        repo_id: user/name, or organization/name.
        private: of a repository that is created, and demanded of one that is there.
        revision: a branch, or refs/pr/N for a pull request that is there; `None`: the main branch.
        message: of the commit, one line.
        token: `None`: HF_TOKEN or that of `hf auth login`.

    Returns:
        The URL of the commit.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: before anything is sent, with a line for each problem that `check_folder` or the Hub's check of
            the card finds; a name that is no user/name; private for a public repository; a revision that is a tag.
        OSError: as `readable_hub_errors` says.
    """
    folder = Path(folder)
    problems = check_folder(folder)
    if problems:
        lines = "".join(f"\n- {problem}" for problem in problems)
        raise ValueError(f"{folder} cannot be published:{lines}")
    check_name(repo_id)
    api = HfApi(token=token)
    with readable_hub_errors(repo_id, revision, token):
        _ask_about_card(folder)
        api.create_repo(repo_id, private=private or None, exist_ok=True)
        if private and not api.model_info(repo_id).private:
            raise ValueError(f"{repo_id} exists and is public: make it private on the Hub first, or push publicly")
        if revision is not None:
            _create_branch(api, repo_id, revision)
        return _commit(api, folder, repo_id, revision, message)


def check_name(repo_id: str) -> None:
    """Raises ValueError for what the Hub would not take as a name."""
    refuse_address(repo_id)
    if repo_id.count("/") != 1:
        raise ValueError(f"the repository must be user/name, not {repo_id!r}")
    validate_repo_id(repo_id)


def _ask_about_card(folder: Path) -> None:
    """The Hub's own check, which needs no repository and no token."""
    try:
        ModelCard.load(folder / CARD).validate()
    except HfHubHTTPError:
        raise
    except ValueError as error:
        raise ValueError(f"the Hub does not accept the metadata of {CARD}: {_messages(str(error))}") from error


def _messages(answer: str) -> str:
    try:
        return "; ".join(error["message"] for error in json.loads(answer)["errors"])
    except (ValueError, KeyError, TypeError):
        return answer


def _create_branch(api: HfApi, repo_id: str, revision: str) -> None:
    refs = api.list_repo_refs(repo_id)
    if revision in {tag.name for tag in refs.tags}:
        raise ValueError(f"{revision!r} is a tag of {repo_id}, which a push cannot move: give a branch")
    if revision not in {branch.name for branch in refs.branches} and not revision.startswith("refs/pr/"):
        api.create_branch(repo_id, branch=revision, exist_ok=True)


def _card_of(repo_id: str, path: Path) -> bytes:
    """The card, whose code now opens the model by its id; a card of another origin as it is."""
    card = path.read_text("utf-8")
    return NAME_IN_CODE.sub(lambda _: f"name = {json.dumps(repo_id)}", card).encode("utf-8")


def _commit(api: HfApi, folder: Path, repo_id: str, revision: str | None, message: str) -> str:
    """One commit on the head as it is now: whoever comes between makes it fail.

    `HfApi.upload_folder` would be shorter, but it may split a folder into several commits.
    """
    head = api.model_info(repo_id, revision=revision)
    files = {name: folder / name for name, _ in list_files(folder)}
    there = [file.rfilename for file in head.siblings or []]
    stale = [name for name in there if ANY_WEIGHTS.fullmatch(name) and name not in files]
    operations = [
        *(CommitOperationDelete(name) for name in stale),
        *(CommitOperationAdd(name, path) for name, path in files.items() if name != CARD),
        CommitOperationAdd(CARD, _card_of(repo_id, files[CARD])),
    ]
    commit = api.create_commit(repo_id, operations, commit_message=message, revision=revision, parent_commit=head.sha)
    return commit.commit_url
