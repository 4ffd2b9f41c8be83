# SPDX-License-Identifier: Apache-2.0
"""What the small Hub of these tests keeps: files, commits, refs."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


def digest(*parts: Any) -> str:
    return hashlib.sha1(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class File:
    """`oid` is git's; large files have a `sha256` and their content elsewhere."""

    oid: str
    size: int
    content: bytes | None = None
    sha256: str | None = None

    @classmethod
    def small(cls, content: bytes) -> "File":
        oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        return cls(oid, len(content), content)

    @classmethod
    def large(cls, sha256: str, size: int) -> "File":
        return cls(digest(sha256), size, sha256=sha256)

    def describe(self, path: str, xet_hash: str | None) -> dict[str, Any]:
        entry = {"type": "file", "path": path, "oid": self.oid, "size": self.size}
        if self.sha256 is not None:
            entry["lfs"] = {"oid": self.sha256, "sha256": self.sha256, "size": self.size, "pointerSize": 134}
        return entry | ({"xetHash": xet_hash} if xet_hash else {})


@dataclass(frozen=True)
class Commit:
    oid: str
    title: str
    files: dict[str, File]
    parent: "Commit | None" = None


@dataclass
class Repository:
    id: str
    private: bool = False
    gated: bool = False
    branches: dict[str, Commit] = field(default_factory=dict)
    tags: dict[str, Commit] = field(default_factory=dict)
    pull_requests: dict[str, Commit] = field(default_factory=dict)

    def find(self, revision: str) -> Commit | None:
        for refs in (self.branches, self.tags, self.pull_requests):
            if revision in refs:
                return refs[revision]
        return next((commit for commit in self.commits() if commit.oid == revision), None)

    def commits(self) -> Iterator[Commit]:
        for refs in (self.branches, self.tags, self.pull_requests):
            for head in refs.values():
                yield from history(head)

    def state(self) -> dict[str, str]:
        """Every ref and its commit, to be compared before and after."""
        refs = self.branches | self.tags | self.pull_requests
        return {name: commit.oid for name, commit in refs.items()}


def history(commit: Commit | None) -> Iterator[Commit]:
    while commit is not None:
        yield commit
        commit = commit.parent


def find_xet_hash(xet_folder: Path, sha256: str) -> str | None:
    """Where hf_xet has put a content, from the shards that it wrote.

    A shard is a header and entries of 48 bytes. That of a file is its hash, flags, and the number of its segments;
    they follow, as many verifications if bit 31 is set, and the SHA-256 if bit 30 is.
    """
    for shard in xet_folder.rglob("*.mdb"):
        data, at = shard.read_bytes(), 48
        while at + 48 <= len(data) and data[at : at + 32] != b"\xff" * 32:  # which ends the files
            flags, segments = (int.from_bytes(data[at + n : at + n + 4], "little") for n in (32, 36))
            end = at + 48 * (1 + segments * (1 + (flags >> 31 & 1)))
            if flags >> 30 & 1:
                if _hash(data[end : end + 32]) == sha256:
                    return _hash(data[at : at + 32])
                end += 48
            at = end
    return None


def _hash(data: bytes) -> str:
    """Four little-endian words."""
    return "".join(data[n : n + 8][::-1].hex() for n in range(0, 32, 8))
