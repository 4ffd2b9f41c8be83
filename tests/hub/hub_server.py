# SPDX-License-Identifier: Apache-2.0
"""A small Hub on 127.0.0.1: as much of the protocol as the real client (huggingface_hub, hf_xet) needs.

It keeps everything in memory. Large files lie on a second port, another origin, as on the real Hub, which never sees
the user's token. It reflects what the client accepts, not all that the real Hub does.
"""

import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.hub.hub_repository import Commit, Repository, find_xet_hash
from tests.hub.hub_routes import ROUTES, Refused, Reply


@dataclass(frozen=True)
class Logged:
    method: str
    path: str
    storage: bool  # the second origin
    authorization: str | None
    status: int | None  # None: the connection was dropped


@dataclass
class Fault:
    """What happens to the next `times` requests whose "METHOD /path" matches.

    `status` answers with it; `meanwhile` is called before the request is carried out; otherwise the connection is
    dropped: in the middle of the request, or, with `after_work`, instead of the reply to what has been carried out.
    """

    pattern: str
    status: int | None = None
    message: str = "injected"
    meanwhile: Callable[[], object] | None = None
    after_work: bool = False
    times: int = 1

    @property
    def drops(self) -> bool:
        return self.status is None and self.meanwhile is None


class HubServer:
    """Started with `with HubServer(xet_folder) as hub`; `hub.tokens` maps tokens to (user, may write)."""

    def __init__(self, xet_folder: Path):
        self.xet_folder = xet_folder
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}  # LFS: sha256 → content
        self.tokens: dict[str, tuple[str, bool]] = {}
        self.log: list[Logged] = []
        self.faults: list[Fault] = []
        self.lock = threading.RLock()
        self._servers = [self._listen(storage) for storage in (False, True)]
        self.url, self.storage_url = (f"http://127.0.0.1:{server.server_port}" for server in self._servers)

    def _listen(self, storage: bool) -> ThreadingHTTPServer:
        handler = type("Handler", (Request,), {"hub": self, "storage": storage})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        server.daemon_threads = True
        return server

    def __enter__(self) -> "HubServer":
        for server in self._servers:
            threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def fail(self, pattern: str, **how) -> None:
        self.faults.append(Fault(pattern, **how))

    def fault_for(self, request: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.times and re.search(fault.pattern, request):
                    fault.times -= 1
                    return fault
        return None

    def requests(self, pattern: str = "") -> list[Logged]:
        return [entry for entry in self.log if re.search(pattern, f"{entry.method} {entry.path}")]

    def xet_hash(self, sha256: str | None) -> str | None:
        return find_xet_hash(self.xet_folder, sha256) if sha256 else None


class Request(BaseHTTPRequestHandler):
    """The connection of a client, and what the functions of hub_routes.py ask of a request on it."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each answer waits 40 ms between its head and its body
    hub: HubServer
    storage: bool

    def log_message(self, format: str, *args) -> None:
        pass  # `hub.log` has it

    def handle_any(self) -> None:
        fault = self.hub.fault_for(f"{self.command} {self.path}")
        length = int(self.headers.get("Content-Length") or 0)
        if fault is not None and fault.drops and not fault.after_work:
            self.rfile.read(length // 2)
            self._drop()
            return
        self.body = self.rfile.read(length)
        if fault is not None and fault.meanwhile is not None:
            fault.meanwhile()
        if fault is not None and fault.status is not None:
            reply = self._refusal(Refused(fault.status, fault.message))
        else:
            reply = self._reply()
        if fault is not None and fault.after_work:
            self._drop()
            return
        self._log(reply.status)
        self.send_response(reply.status)
        for name, value in ({"Content-Length": str(len(reply.body))} | reply.headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(reply.body)

    do_GET = do_HEAD = do_POST = do_PUT = handle_any

    def _drop(self) -> None:
        self._log(None)
        self.close_connection = True

    def _log(self, status: int | None) -> None:
        entry = Logged(self.command, self.path, self.storage, self.headers.get("Authorization"), status)
        with self.hub.lock:
            self.hub.log.append(entry)

    def _reply(self) -> Reply:
        path = urlsplit(self.path).path
        for method, pattern, function in ROUTES:
            match = pattern.fullmatch(path)
            if match and (method == self.command or (method, self.command) == ("GET", "HEAD")):
                try:
                    with self.hub.lock:
                        reply = function(self, **{name: unquote(text) for name, text in match.groupdict().items()})
                except Refused as refusal:
                    return self._refusal(refusal)
                return reply if isinstance(reply, Reply) else Reply(json.dumps(reply).encode())
        return self._refusal(Refused(404, f"no route for {self.command} {path}"))

    def _refusal(self, refusal: Refused) -> Reply:
        return Reply(json.dumps({"error": refusal.message}).encode(), refusal.status, refusal.headers)

    def json(self) -> dict[str, Any]:
        return json.loads(self.body)

    def query(self) -> dict[str, list[str]]:
        return parse_qs(urlsplit(self.path).query)

    def user(self, writing: bool = False) -> str | None:
        """Who asks; `None` for nobody."""
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if not token:
            if writing:
                raise Refused(401, "Invalid username or password.")
            return None
        if token not in self.hub.tokens:
            raise Refused(401, "Invalid credentials in Authorization header")
        name, may_write = self.hub.tokens[token]
        if writing and not may_write:
            raise Refused(403, f"Forbidden: this token of {name} may only read")
        return name

    def repository(self, id: str, writing: bool = False) -> Repository:
        user = self.user()
        owner = user is not None and user == id.split("/")[0]
        found = self.hub.repositories.get(id)
        if found is None or (found.private and not owner):  # a private one looks like none
            raise Refused(404 if user else 401, "Repository not found", "RepoNotFound")
        if writing:
            self.user(writing=True)
            if not owner:
                raise Refused(403, f"Forbidden: you have no right to write to {id}")
        return found

    def commit(self, repository: Repository, revision: str) -> Commit:
        found = repository.find(revision)
        if found is None:
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return found
