# SPDX-License-Identifier: Apache-2.0
"""Downloading a model of the Hub into a folder."""

import glob
import shutil
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.utils import validate_repo_id

from vanilla_transformer.hub.exported_folders import is_exported
from vanilla_transformer.hub.hub_errors import readable_hub_errors, refuse_address
from vanilla_transformer.hub.published_folder import CONFIG
from vanilla_transformer.inference.weight_files import INDEX, WEIGHTS, is_pickle_name


def pull(repo_id: str, folder: str | Path, *, revision: str | None = None, token: str | None = None) -> Path:
    """Download a model into a new folder, without its pickles and exports; none of its code is executed.

    The folder appears when it is complete. An interrupted pull leaves its files in `.unfinished-NAME-COMMIT` beside
    it, where the next pull resumes.

    Args:
        repo_id: user/name.
        folder: must be empty if it exists.
        revision: branch, tag or commit; `None`: the main branch.
        token: `None`: HF_TOKEN or that of `hf auth login`, if there is one.

    Returns:
        The folder.

    Raises:
        ValueError: the folder is in use; the repository has no model, or only pickled weights.
        OSError: as `readable_hub_errors`.
    """
    folder = Path(folder).resolve()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} exists and is not empty; choose another folder")
    refuse_address(repo_id)
    validate_repo_id(repo_id)
    with readable_hub_errors(repo_id, revision, token):
        # Without network, snapshot_download would return an incomplete folder as it is; model_info raises.
        head = HfApi(token=token).model_info(repo_id, revision=revision)
        assert head.sha is not None, "the Hub always tells the commit"
        names = {file.rfilename for file in head.siblings or [] if not is_exported(file.rfilename)} - {".gitattributes"}
        pickles = {name for name in names if is_pickle_name(name)}
        wanted = sorted(names - pickles)
        if CONFIG not in names:
            raise ValueError(f"{repo_id} is no model: it has no {CONFIG}")
        if not {WEIGHTS, INDEX} & names:
            only = f"; it has {', '.join(sorted(pickles))}, which would have to be unpickled" if pickles else ""
            raise ValueError(f"{repo_id} has no {WEIGHTS} (nor {INDEX}){only}")
        unfinished = folder.with_name(f".unfinished-{folder.name}-{head.sha[:12]}")
        patterns = [glob.escape(name) for name in wanted]
        snapshot_download(repo_id, revision=head.sha, local_dir=unfinished, allow_patterns=patterns, token=token)
        for name in wanted:
            if not (unfinished / name).is_file():
                raise ConnectionError(f"{name} did not arrive")
    shutil.rmtree(unfinished / ".cache")  # the client's notes
    if folder.exists():
        folder.rmdir()
    return unfinished.rename(folder)
