# SPDX-License-Identifier: Apache-2.0
"""The requests that the small Hub of these tests answers, in the client's own protocol."""

import base64
import hashlib
import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import yaml

from tests.hub.hub_repository import Commit, File, Repository, digest, history

if TYPE_CHECKING:
    from tests.hub.hub_server import HubServer, Request

LARGE = 10_000_000  # bytes; from here on a file goes through LFS or Xet, like .safetensors of any size
ROUTES: list[tuple[str, re.Pattern, Callable]] = []


class Refused(Exception):
    def __init__(self, status: int, message: str, code: str | None = None, **headers: str):
        self.status, self.message = status, message
        self.headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {}), **headers}


@dataclass(frozen=True)
class Reply:
    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


def route(method: str, path: str) -> Callable:
    """Registers a function `(request, **groups)` for paths of the form /a/{id}/{name}."""
    pattern = re.sub(r"{id}", r"(?P<id>[^/]+/[^/]+)", path)
    pattern = re.sub(r"{(\w+)\*}", r"(?P<\1>.+)", pattern)
    pattern = re.sub(r"{(\w+)}", r"(?P<\1>[^/]+)", pattern)

    def register(function: Callable) -> Callable:
        ROUTES.append((method, re.compile(pattern), function))
        return function

    return register


@route("GET", "/api/whoami-v2")
def whoami(request: "Request") -> dict:
    user = request.user()
    if user is None:
        raise Refused(401, "Invalid username or password.")
    return {"type": "user", "name": user, "orgs": [], "auth": {"accessToken": {"role": "write"}}}


@route("POST", "/api/validate-yaml")
def validate_yaml(request: "Request") -> Any:
    block = re.match(r"---\n(.*?)\n---", request.json()["content"], re.DOTALL)
    data = yaml.safe_load(block[1]) if block else None
    errors = []
    if isinstance(data, dict) and not isinstance(data.get("license", "mit"), str):
        errors.append({"message": '"license" must be a string'})
    return Reply(json.dumps({"errors": errors, "warnings": []}).encode(), 400 if errors else 200)


@route("POST", "/api/repos/create")
def create_repository(request: "Request") -> Any:
    user, body = request.user(writing=True), request.json()
    owner = body.get("organization") or user
    if owner != user:
        raise Refused(403, f"You don't have the rights to create a model under the namespace {owner}")
    id = f"{owner}/{body['name']}"
    described = {"url": f"{request.hub.url}/{id}", "name": id, "id": digest(id)}
    if id in request.hub.repositories:
        return Reply(json.dumps(described | {"error": "You already created this model repo"}).encode(), 409)
    first = {".gitattributes": File.small(b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n")}
    commit = Commit(digest(id), "initial commit", first)
    private = body.get("visibility") == "private"
    request.hub.repositories[id] = Repository(id, private=private, branches={"main": commit})
    return described


@route("GET", "/api/models/{id}")
@route("GET", "/api/models/{id}/revision/{revision}")
def model_info(request: "Request", id: str, revision: str = "main") -> dict:
    repository = request.repository(id)
    commit = request.commit(repository, revision)
    siblings = [{"rfilename": path} for path in commit.files]
    return {"id": id, "sha": commit.oid, "private": repository.private, "siblings": siblings, "tags": []}


@route("GET", "/api/models/{id}/tree/{revision}")
@route("GET", "/api/models/{id}/tree/{revision}/{path*}")
def tree(request: "Request", id: str, revision: str, path: str | None = None) -> list:
    commit = request.commit(request.repository(id), revision)
    under = {name: file for name, file in commit.files.items() if path is None or name.startswith(f"{path}/")}
    if path is not None and not under:
        raise Refused(404, f"{path} does not exist", "EntryNotFound")
    return [file.describe(name, request.hub.xet_hash(file.sha256)) for name, file in under.items()]


@route("GET", "/api/models/{id}/refs")
def refs(request: "Request", id: str) -> dict:
    repository = request.repository(id)

    def listed(refs: dict[str, Commit], prefix: str) -> list[dict]:
        return [{"name": name, "ref": prefix + name, "targetCommit": commit.oid} for name, commit in refs.items()]

    return {
        "branches": listed(repository.branches, "refs/heads/"),
        "tags": listed(repository.tags, "refs/tags/"),
        "pullRequests": listed(repository.pull_requests, ""),
        "converts": [],
    }


@route("GET", "/api/models/{id}/commits/{revision}")
def commits(request: "Request", id: str, revision: str) -> list:
    head = request.commit(request.repository(id), revision)
    date = "2026-01-01T00:00:00.000Z"
    return [
        {"id": commit.oid, "title": commit.title, "message": "", "date": date, "authors": []}
        for commit in history(head)
    ]


@route("POST", "/api/models/{id}/branch/{name}")
def create_branch(request: "Request", id: str, name: str) -> dict:
    repository = request.repository(id, writing=True)
    if name in repository.branches:
        raise Refused(409, f"Reference refs/heads/{name} already exists")
    repository.branches[name] = request.commit(repository, request.json().get("startingPoint", "main"))
    return {}


@route("POST", "/api/models/{id}/tag/{revision}")
def create_tag(request: "Request", id: str, revision: str) -> dict:
    repository, tag = request.repository(id, writing=True), request.json()["tag"]
    if tag in repository.tags:
        raise Refused(409, f"Reference refs/tags/{tag} already exists")
    repository.tags[tag] = request.commit(repository, revision)
    return {}


@route("POST", "/api/models/{id}/preupload/{revision}")
def preupload(request: "Request", id: str, revision: str) -> dict:
    files = request.commit(request.repository(id), revision).files

    def plan(path: str, size: int, sample: str) -> dict:
        large = size >= LARGE or path.endswith(".safetensors") or b"\0" in base64.b64decode(sample)
        there = files.get(path)
        oid = {"oid": there.sha256 or there.oid} if there else {}
        return {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, **oid}

    return {"files": [plan(**file) for file in request.json()["files"]]}


@route("POST", "/{id}.git/info/lfs/objects/batch")
def lfs_batch(request: "Request", id: str) -> dict:
    request.repository(id, writing=True)

    def plan(oid: str, size: int) -> dict:
        if oid in request.hub.objects:
            return {"oid": oid, "size": size}
        upload = {"href": f"{request.hub.storage_url}/{oid}"}
        verify = {"href": f"{request.hub.url}/{id}.git/info/lfs/verify"}
        return {"oid": oid, "size": size, "actions": {"upload": upload, "verify": verify}}

    return {"transfer": "basic", "objects": [plan(**item) for item in request.json()["objects"]]}


@route("POST", "/{id}.git/info/lfs/verify")
def lfs_verify(request: "Request", id: str) -> dict:
    request.repository(id, writing=True)
    content = request.hub.objects.get(request.json()["oid"])
    if content is None or len(content) != request.json()["size"]:
        raise Refused(404, "the object did not arrive")
    return {}


@route("PUT", "/{oid}")
def put_object(request: "Request", oid: str) -> dict:
    if not request.storage or hashlib.sha256(request.body).hexdigest() != oid:
        raise Refused(400, "not the content that was announced")
    request.hub.objects[oid] = request.body
    return {}


@route("GET", "/{oid}")
def get_object(request: "Request", oid: str) -> Reply:
    if not request.storage or oid not in request.hub.objects:
        raise Refused(404, "no such object")
    return _part(request, request.hub.objects[oid], {"ETag": f'"{oid}"'})


@route("GET", "/api/models/{id}/xet-{kind}-token/{revision}")
def xet_token(request: "Request", id: str, kind: str, revision: str) -> Any:
    request.repository(id, writing=kind == "write")
    url, expires, token = f"local://{request.hub.xet_folder}", int(time.time()) + 3600, "for-xet-alone"
    headers = {"X-Xet-Cas-Url": url, "X-Xet-Token-Expiration": str(expires), "X-Xet-Access-Token": token}
    return Reply(json.dumps({"casUrl": url, "exp": expires, "accessToken": token}).encode(), headers=headers)


@route("POST", "/api/models/{id}/commit/{revision}")
def commit(request: "Request", id: str, revision: str) -> dict:
    """All of it, or nothing: the head moves when every line has been understood."""
    create_pr = "create_pr" in request.query()
    repository = request.repository(id, writing=not create_pr)
    request.user(writing=True)
    head = request.commit(repository, revision)
    header, *lines = [json.loads(line) for line in request.body.splitlines()]
    assert header["key"] == "header", header
    if header["value"].get("parentCommit", head.oid) != head.oid:
        raise Refused(412, "A commit has happened since. Please refresh and try again.")
    files = dict(head.files)
    for line in lines:
        _apply(request.hub, files, line["key"], line["value"])
    title = header["value"]["summary"]
    described = {name: file.oid for name, file in sorted(files.items())}
    new = Commit(digest(described, head.oid, title, create_pr), title, files, head)
    reply = {"success": True, "commitOid": new.oid, "commitUrl": f"{request.hub.url}/{id}/commit/{new.oid}"}
    if create_pr:
        number = len(repository.pull_requests) + 1
        repository.pull_requests[f"refs/pr/{number}"] = new
        return reply | {"pullRequestUrl": f"{request.hub.url}/{id}/discussions/{number}"}
    refs = repository.pull_requests if revision.startswith("refs/pr/") else repository.branches
    if revision not in refs:
        raise Refused(400, f"{revision} is no branch")
    refs[revision] = new
    return reply


def _apply(hub: "HubServer", files: dict[str, File], key: str, value: dict[str, Any]) -> None:
    if key == "file":
        files[value["path"]] = File.small(base64.b64decode(value["content"]))
    elif key == "lfsFile":
        if value["oid"] not in hub.objects and hub.xet_hash(value["oid"]) is None:
            raise Refused(400, f"the content of {value['path']} has not been uploaded")
        files[value["path"]] = File.large(value["oid"], value["size"])
    elif key == "deletedFile":
        if files.pop(value["path"], None) is None:
            raise Refused(404, "A file with this name doesn't exist", "EntryNotFound")
    else:
        raise Refused(400, f"unknown operation {key}")


@route("GET", "/{id}/resolve/{revision}/{path*}")
def resolve(request: "Request", id: str, revision: str, path: str) -> Reply:
    repository = request.repository(id)
    if repository.gated and request.user() != id.split("/")[0]:
        raise Refused(403, f"Access to model {id} is restricted", "GatedRepo")
    found = request.commit(repository, revision)
    headers = {"X-Repo-Commit": found.oid}
    file = found.files.get(path)
    if file is None:
        raise Refused(404, f"{path} does not exist", "EntryNotFound", **headers)
    if file.sha256 is None:
        assert file.content is not None
        return _part(request, file.content, headers | {"ETag": f'"{file.oid}"'})
    headers |= {"X-Linked-Etag": f'"{file.sha256}"', "X-Linked-Size": str(file.size)}
    xet_hash = request.hub.xet_hash(file.sha256)
    if xet_hash is not None:
        refresh = f"{request.hub.url}/api/models/{id}/xet-read-token/{found.oid}"
        headers |= {"X-Xet-Hash": xet_hash, "X-Xet-Refresh-Route": refresh}
    return Reply(status=302, headers=headers | {"Location": f"{request.hub.storage_url}/{file.sha256}"})


def _part(request: "Request", content: bytes, headers: dict[str, str]) -> Reply:
    """The content, or the part that a Range header asks for."""
    headers = headers | {"Accept-Ranges": "bytes"}
    asked = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range") or "")
    if asked is None:
        return Reply(content, headers=headers)
    start, end = int(asked[1]), min(int(asked[2] or len(content) - 1), len(content) - 1)
    part = content[start : end + 1]
    return Reply(part, 206, headers | {"Content-Range": f"bytes {start}-{end}/{len(content)}"})
