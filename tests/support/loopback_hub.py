# SPDX-License-Identifier: MIT
"""A Hub of model repositories on 127.0.0.1, so that tests send `huggingface_hub` over HTTP without leaving the machine.

It answers what the client of huggingface_hub 2 asks about models; Xet, pull requests and Git itself are left out.
Commits, branches and tags are kept in memory, contents by their sha256 in a folder. loopback_api has the answers.
"""

import hashlib
import itertools
import json
import secrets
import threading
from dataclasses import dataclass, field
from datetime import datetime, timezone
from fnmatch import fnmatch
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest

from support.loopback_api import USER, VISITOR, HubHandler
from support.loopback_http import HubError, StorageHandler

# The real Hub's first commit names some more.
LFS_PATTERNS = ("*.bin", "*.ckpt", "*.npz", "*.onnx", "*.pt", "*.pth", "*.safetensors", "*.zip", "*tfevents*")
GITATTRIBUTES = "".join(f"{pattern} filter=lfs diff=lfs merge=lfs -text\n" for pattern in LFS_PATTERNS).encode()
LFS_FROM = 10_000_000  # bytes


@dataclass(frozen=True)
class File:
    """A file of a commit. `sha256` finds its content, `oid` is the Git hash of the blob or of the LFS pointer."""

    sha256: str
    size: int
    oid: str
    lfs: dict | None = None

    @property
    def etag(self):
        return self.sha256 if self.lfs else self.oid


@dataclass
class Commit:
    oid: str
    parent: str | None
    title: str
    message: str
    date: str
    files: dict


@dataclass
class Repository:
    name: str
    private: bool = False
    gated: bool = False
    commits: dict = field(default_factory=dict)
    branches: dict = field(default_factory=dict)
    tags: dict = field(default_factory=dict)
    uploaded: dict = field(default_factory=dict)  # sha256 of the LFS files that arrived: size

    def commit(self, revision):
        """The commit of a branch, a tag or a full commit hash."""
        oid = self.branches.get(revision) or self.tags.get(revision) or revision
        if oid not in self.commits:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return self.commits[oid]

    def history(self, revision):
        """Commits, the newest first."""
        commit = self.commit(revision)
        while commit:
            yield commit
            commit = self.commits.get(commit.parent)

    def add_commit(self, branch, title, message, files):
        parent = self.branches.get(branch)
        date = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        tree = sorted((path, file.oid) for path, file in files.items())
        oid = hashlib.sha1(json.dumps([len(self.commits), parent, title, message, date, tree]).encode()).hexdigest()
        self.commits[oid] = Commit(oid, parent, title, message, date, files)
        self.branches[branch] = oid
        return oid


def git_hash(content):
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class LoopbackHub:
    """A context manager inside which the Hub runs.

    `url` is its address, `token` the token of the user "tester" in the organization "hf-internimage-tests", and
    `visitor_token` that of a user who owns nothing. `log` holds (method, path with query, status) of every request,
    with status 0 for those that were cut; what a client wanted from anywhere else is there as CONNECT.
    """

    def __init__(self, folder):
        self.blobs = Path(folder) / "blobs"
        self.users = {f"hf_{USER}": USER, f"hf_{VISITOR}": VISITOR}
        self.token, self.visitor_token = self.users
        self.page_size = 1000  # entries of a list
        self.part_size = 5_000_000_000  # LFS files of more bytes are sent in parts
        self.log = []
        self.repositories = {}
        self.breaks = []
        self.failures = []  # tracebacks: errors of this Hub, not of its clients
        self.lock = threading.RLock()
        self.secret = secrets.token_hex()

    def __enter__(self):
        self.blobs.mkdir(parents=True, exist_ok=True)
        self.servers = [ThreadingHTTPServer(("127.0.0.1", 0), handler) for handler in (HubHandler, StorageHandler)]
        for server in self.servers:
            server.hub = self
            threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        # another name as well: huggingface_hub 1 takes two ports of one host for one place
        self.url, self.storage_url = (
            f"http://{host}:{server.server_port}"
            for host, server in zip(("127.0.0.1", "localhost"), self.servers, strict=True)
        )
        return self

    def __exit__(self, *_):
        self.stop()
        if self.failures:
            raise AssertionError("the loopback Hub failed:\n" + "\n".join(self.failures))

    def stop(self):
        """From now on connections are refused."""
        while self.servers:
            server = self.servers.pop()
            server.shutdown()
            server.server_close()

    def environment(self, home):
        """Environment variables for a client that knows only this Hub and keeps everything in the folder `home`."""
        proxies = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")
        return {
            "HF_ENDPOINT": self.url,
            "HF_TOKEN": self.token,
            "HF_HOME": str(home),
            "HF_HUB_CACHE": str(Path(home) / "hub"),
            "HF_MODULES_CACHE": str(Path(home) / "modules"),
            "HF_HUB_OFFLINE": "0",
            "TRANSFORMERS_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_UPDATE_CHECK": "1",
            # other hosts end here, in the log
            **dict.fromkeys(proxies, self.url),
            **dict.fromkeys(("NO_PROXY", "no_proxy"), "127.0.0.1,localhost"),
        }

    def create(self, repo_id):
        """A repository as the Hub makes it, with a first commit."""
        repository = self.repositories[repo_id] = Repository(repo_id)
        repository.add_commit("main", "initial commit", "", {".gitattributes": self.small_file(GITATTRIBUTES)})
        return repository

    def add(self, repo_id, files, message="Add files"):
        """Commit {path: content} as if somebody had, in a repository that is made if need be; the commit's hash."""
        repository = self.repositories.get(repo_id) or self.create(repo_id)
        result = dict(repository.commit("main").files)
        for path, content in files.items():
            if self.is_large(result, path, len(content), content):
                sha256 = self.store(content)
                repository.uploaded[sha256] = len(content)
                result[path] = self.large_file(sha256, len(content))
            else:
                result[path] = self.small_file(content)
        return repository.add_commit("main", message, "", result)

    def private(self, repo_id, value=True):
        """Only members of its namespace see a private repository."""
        self.repositories[repo_id].private = value

    def gate(self, repo_id, value=True):
        """Everybody sees a gated repository, only members of its namespace get its files."""
        self.repositories[repo_id].gated = value

    def break_after(self, path_part, count_bytes, times=1):
        """Cut the next body (download or upload) of more bytes than that whose path or query contains `path_part`.

        For large files the query has `filename=` in downloads, and `upload=` with the sha256 in uploads.
        """
        self.breaks += itertools.repeat((path_part, count_bytes), times)

    def files(self, repo_id, revision="main"):
        """{path: content} of a commit."""
        files = self.repositories[repo_id].commit(revision).files
        return {path: self.content(file) for path, file in files.items()}

    def content(self, file):
        return (self.blobs / file.sha256).read_bytes()

    def store(self, content):
        sha256 = hashlib.sha256(content).hexdigest()
        if not (self.blobs / sha256).exists():
            (self.blobs / sha256).write_bytes(content)
        return sha256

    def small_file(self, content):
        return File(self.store(content), len(content), git_hash(content))

    def large_file(self, sha256, size):
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()
        return File(sha256, size, git_hash(pointer), {"oid": sha256, "size": size, "pointerSize": len(pointer)})

    def is_large(self, files, path, size, sample):
        """Whether a file belongs into LFS: by its name, its size, or because it is no text."""
        attributes = self.content(files[".gitattributes"]).decode() if ".gitattributes" in files else ""
        patterns = [line.split()[0] for line in attributes.splitlines() if "filter=lfs" in line]
        named = any(fnmatch(name, pattern) for name in (path, path.split("/")[-1]) for pattern in patterns)
        return named or size > LFS_FROM or b"\0" in sample


@pytest.fixture
def loopback_hub(tmp_path):
    with LoopbackHub(tmp_path / "loopback_hub") as hub:
        yield hub
