# SPDX-License-Identifier: Apache-2.0
"""Errors of the Hub's client as one line that names the remedy."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import constants, get_token
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,  # pyright: ignore[reportPrivateImportUsage] -- the base class of its HTTP library's errors
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

LOG_IN = "log in with `hf auth login` or set HF_TOKEN"


@contextmanager
def readable_hub_errors(repo_id: str, revision: str | None = None, token: str | None = None) -> Iterator[None]:
    """Translate the client's errors of a block of calls to the Hub; other errors pass.

    Args:
        token: is not repeated in messages, nor is the token that the client finds by itself.

    Raises:
        FileNotFoundError: no such repository (or somebody else's private one), no such revision.
        PermissionError: no token, a wrong one, or one without the right.
        ConnectionError: the Hub is unreachable, offline by choice, overloaded or out of order, or refuses.
    """
    try:
        yield
    except (HTTPError, OSError, RuntimeError) as error:
        readable = _readable_error(error, repo_id, revision)
        if readable is None:
            raise
        secrets = [secret for secret in (token, get_token()) if secret]
        _redact_chain(error, secrets)
        raise type(readable)(" ".join(_redact(str(readable), secrets).split())) from error


def refuse_address(repo_id: str) -> None:
    """Raise ValueError for an address in place of a name; it is not repeated, since it may hold a token."""
    if "://" in repo_id:
        raise ValueError("the repository must be user/name, not an address")


def _readable_error(error: BaseException, repo_id: str, revision: str | None) -> OSError | None:
    """`None` for errors that do not come from the Hub."""
    if isinstance(error, HfHubHTTPError):
        return _readable_response(error, repo_id, revision)
    if isinstance(error, OfflineModeIsEnabled):
        return ConnectionError(f"cannot reach {repo_id}: HF_HUB_OFFLINE is set; unset it")
    if isinstance(error, (RuntimeError, LocalEntryNotFoundError)) and error.__cause__ is not None:
        return _readable_error(error.__cause__, repo_id, revision)  # the client wraps the error
    if isinstance(error, (HTTPError, LocalEntryNotFoundError)):
        reason = error or type(error).__name__
        return ConnectionError(f"cannot reach {repo_id} at {constants.ENDPOINT}: {reason}; check the network")
    if isinstance(error, (ConnectionError, TimeoutError)):  # hf_xet has no error classes of its own
        return ConnectionError(f"the upload or download for {repo_id} broke off: {error}; try again")
    return None


def _readable_response(error: HfHubHTTPError, repo_id: str, revision: str | None) -> OSError:
    hub, status = constants.ENDPOINT, error.response.status_code
    said = f" ({error.server_message})" if error.server_message else ""
    if isinstance(error, RevisionNotFoundError):
        return FileNotFoundError(f"{repo_id} has no branch, tag or commit {revision!r}")
    if isinstance(error, GatedRepoError):
        return PermissionError(f"{repo_id} is gated: ask for access at {hub}/{repo_id}, then {LOG_IN}")
    if isinstance(error, RepositoryNotFoundError):
        return FileNotFoundError(
            f"{hub} shows no model {repo_id}: there is none, or it is private; check the name, or {LOG_IN}"
        )
    if status == 401:
        return PermissionError(f"the Hub asks for a valid token for {repo_id}: {LOG_IN}")
    if status == 403:
        return PermissionError(f"the token in use may not do this to {repo_id}{said}; use one that may write to it")
    if status in (409, 412):
        return ConnectionError(f"{repo_id} was changed by somebody else in the meantime{said}; run the command again")
    if status == 429:
        return ConnectionError(f"the Hub has had too many requests{said}; try {repo_id} again in some minutes")
    if status >= 500:
        return ConnectionError(f"the Hub failed with status {status} at {repo_id}{said}; try again later")
    return ConnectionError(f"the Hub refused a request for {repo_id} with status {status}{said}")


def _redact_chain(error: BaseException | None, secrets: list[str]) -> None:
    """Redact all messages of a chain, which a traceback shows: the Hub's answer may repeat the request."""
    while error is not None:
        error.args = tuple(_redact(part, secrets) if isinstance(part, str) else part for part in error.args)
        error = error.__cause__ or error.__context__


def _redact(text: str, secrets: list[str]) -> str:
    for secret in secrets:
        text = text.replace(secret, "***")
    return re.sub(r"\bhf_\w{30,}", "hf_***", text)  # anybody's token; a shorter word is a name
