# SPDX-License-Identifier: MIT
"""The API of LoopbackHub: who may see what, models, commits, and where files are."""

import base64
import contextlib
import hashlib
import json
import math
import re
from fnmatch import fnmatch
from urllib.parse import parse_qs, quote, unquote, urlencode, urlsplit

import yaml

from support.loopback_http import Handler, HubError, accept_upload, signed_link

USER, VISITOR, ORGANIZATION = "tester", "visitor", "hf-internimage-tests"
NAMESPACES = {USER: (USER, ORGANIZATION), VISITOR: (VISITOR,), None: ()}
FRONT_MATTER = re.compile(r"\s*---\r?\n(.*?)^---\s*$", re.DOTALL | re.MULTILINE)
ROUTES = []


def route(methods, pattern):
    """Marks the answer to a path; its groups arrive unquoted."""
    pattern = pattern.replace("{repo}", "(?P<repo>[^/]+/[^/]+)").replace("{revision}", "(?P<revision>[^/]+)")

    def decorator(function):
        ROUTES.append((methods.split(), re.compile(pattern), function))
        return function

    return decorator


def card_data(content):
    """The metadata at the top of a README.md; ValueError if there is something that cannot be metadata."""
    match = FRONT_MATTER.match(content)
    try:
        data = yaml.safe_load(match[1]) if match else {}
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error
    if not isinstance(data or {}, dict):
        raise ValueError("metadata must be an object")
    for key in ("license", "pipeline_tag", "library_name"):
        if data and not isinstance(data.get(key, ""), str):
            raise ValueError(f'"{key}" must be a string')
    return data or {}


class HubHandler(Handler):
    """The Hub's own addresses."""

    def answer(self, path):
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in self.hub.users:
            # sent back, as a proxy may do
            raise HubError(401, f"Invalid credentials in Authorization header: Bearer {token}")
        self.token, self.user = token, self.hub.users.get(token)
        for methods, pattern, function in ROUTES:
            if self.command in methods and (match := pattern.fullmatch(path)):
                arguments = {key: value and unquote(value) for key, value in match.groupdict().items()}
                with contextlib.nullcontext() if self.command in ("GET", "HEAD") else self.hub.lock:
                    return function(self, **arguments)
        raise HubError(404, "Sorry, we can't find the page you are looking for.")

    def owns(self, name):
        return name.split("/")[0] in NAMESPACES[self.user]

    def need_user(self):
        if not self.user:
            raise HubError(401, "Invalid username or password.")

    def repository(self, name, write=False, content=False):
        """The repository, if the sender of the request may see it, write to it, or read its files."""
        found = self.hub.repositories.get(name)
        if not found or (found.private and not self.owns(name)):
            # the same for both, so that nobody learns which private repositories exist
            if self.user:
                raise HubError(404, "Repository not found", "RepoNotFound")
            raise HubError(401, "Invalid username or password.", "RepoNotFound")
        if write and not self.owns(name):
            self.need_user()
            raise HubError(403, f"You don't have the rights to write to this repository with {self.token}.")
        if content and found.gated and not self.owns(name):
            raise HubError(403 if self.user else 401, f"Access to model {name} is restricted.", "GatedRepo")
        return found

    def json(self):
        return json.loads(self.body or b"{}")

    def send_page(self, entries):
        """A part of a list, with a link to the next part."""
        entries = list(entries)
        first, last = int(self.query.get("cursor", 0)), int(self.query.get("cursor", 0)) + self.hub.page_size
        headers = {}
        if last < len(entries):
            query = urlencode({**self.query, "cursor": last})
            headers["Link"] = f'<{self.hub.url}{urlsplit(self.path).path}?{query}>; rel="next"'
        self.send_json(entries[first:last], headers=headers)

    @route("GET", "/api/whoami-v2")
    def whoami(self):
        self.need_user()
        orgs = [{"type": "org", "name": name, "roleInOrg": "write"} for name in NAMESPACES[self.user][1:]]
        auth = {"type": "access_token", "accessToken": {"displayName": "tests", "role": "write"}}
        self.send_json({"type": "user", "name": self.user, "fullname": self.user, "orgs": orgs, "auth": auth})

    @route("POST", "/api/validate-yaml")
    def validate_yaml(self):
        try:
            data = card_data(self.json()["content"])
        except ValueError as error:
            raise HubError(400, "Invalid metadata", errors=[{"message": str(error)}]) from error
        warning = [] if data else [{"message": "empty or missing yaml metadata in repo card"}]
        self.send_json({"errors": [], "warnings": warning})

    @route("POST", "/api/repos/create")
    def create(self):
        self.need_user()
        request = self.json()
        if request.get("type", "model") != "model":
            raise HubError(400, "This Hub has models only.")
        name = f"{request.get('organization') or self.user}/{request['name']}"
        if not self.owns(name):
            raise HubError(403, f"You don't have the rights to create a model under {name.split('/')[0]}")
        answer = {"url": f"{self.hub.url}/{name}", "name": name}
        if name in self.hub.repositories:
            raise HubError(409, "You already created this model repo", **answer)
        self.hub.create(name).private = wants_private(request)
        self.send_json(answer)

    @route("DELETE", "/api/repos/delete")
    def delete(self):
        request = self.json()
        name = f"{request.get('organization') or self.user}/{request['name']}"
        self.repository(name, write=True)
        del self.hub.repositories[name]
        self.send_json({})

    @route("PUT", "/api/models/{repo}/settings")
    def settings(self, repo):
        repository, request = self.repository(repo, write=True), self.json()
        repository.private = wants_private(request, repository.private)
        repository.gated = request.get("gated", repository.gated)
        self.send_json({})

    @route("GET", "/api/models")
    def models(self):
        author, search = self.query.get("author"), self.query.get("search", "").lower()
        self.send_page(
            self.description(repository, repository.commit("main"))
            for name, repository in sorted(self.hub.repositories.items())
            if (self.owns(name) or not repository.private)
            and author in (None, name.split("/")[0])
            and search in name.lower()
        )

    @route("GET", "/api/models/{repo}(?:/revision/{revision})?")
    def info(self, repo, revision):
        repository = self.repository(repo)
        commit = repository.commit(revision or "main")
        siblings = []
        for path, file in sorted(commit.files.items()):
            siblings.append({"rfilename": path})
            if "blobs" in self.query:
                lfs = {"lfs": {**file.lfs, "sha256": file.sha256}} if file.lfs else {}
                siblings[-1] |= {"size": file.size, "blobId": file.oid, **lfs}
        self.send_json({**self.description(repository, commit), "siblings": siblings})

    def description(self, repository, commit):
        """What the Hub knows of a model, partly from its card and its configuration."""
        card, config = self.parsed(commit, "README.md", card_data), self.parsed(commit, "config.json", json.loads)
        library = card.get("library_name") or ("transformers" if "model_type" in config else None)
        tags = [card["tags"]] if isinstance(card.get("tags"), str) else card.get("tags") or []
        tags = [library, card.get("pipeline_tag"), "custom_code" if "auto_map" in config else None, *tags]
        return {
            "id": repository.name,
            "modelId": repository.name,
            "author": repository.name.split("/")[0],
            "sha": commit.oid,
            "createdAt": list(repository.history("main"))[-1].date,
            "lastModified": commit.date,
            "private": repository.private,
            "gated": repository.gated and "auto",
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "library_name": library,
            "pipeline_tag": card.get("pipeline_tag"),
            "tags": [tag for tag in tags if tag],
            "cardData": card,
            "config": {key: config[key] for key in ("architectures", "auto_map", "model_type") if key in config},
        }

    def parsed(self, commit, path, parse):
        """A file as a dictionary, empty if there is none or if it is broken."""
        with contextlib.suppress(ValueError):
            return parse(self.hub.content(commit.files[path]).decode()) if path in commit.files else {}
        return {}

    @route("GET", "/api/models/{repo}/auth-check(?P<write>/write)?")
    def auth_check(self, repo, write):
        self.repository(repo, write=bool(write), content=True)
        self.send_json({})

    @route("GET", "/api/models/{repo}/tree/{revision}(?:/(?P<folder>.+))?")
    def tree(self, repo, revision, folder):
        entries, prefix = {}, f"{folder}/" if folder else ""
        for path, file in self.repository(repo).commit(revision).files.items():
            if path.startswith(prefix):
                parts = path.removeprefix(prefix).split("/")
                for count in range(1, len(parts) + 1 if self.query.get("recursive") == "true" else 2):
                    name = prefix + "/".join(parts[:count])
                    entries[name] = tree_entry(name, file if name == path else None)
        if folder and not entries:
            raise HubError(404, f'"{folder}" does not exist on "{revision}"', "EntryNotFound")
        self.send_page(entries[name] for name in sorted(entries))

    @route("POST", "/api/models/{repo}/paths-info/{revision}")
    def paths_info(self, repo, revision):
        files = self.repository(repo).commit(revision).files
        paths = [path.rstrip("/") for path in parse_qs(self.body.decode()).get("paths", [])]
        paths = [path for path in paths if any(f"{name}/".startswith(f"{path}/") for name in files)]
        self.send_json([tree_entry(path, files.get(path)) for path in paths])

    @route("GET", "/api/models/{repo}/commits/{revision}")
    def commits(self, repo, revision):
        self.send_page(
            {"id": commit.oid, "title": commit.title, "message": commit.message, "date": commit.date}
            | {"authors": [{"user": USER}]}
            for commit in self.repository(repo).history(revision)
        )

    @route("GET", "/api/models/{repo}/refs")
    def refs(self, repo):
        repository = self.repository(repo)
        lists = {
            key: [{"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": oid} for name, oid in refs.items()]
            for key, kind, refs in (("branches", "heads", repository.branches), ("tags", "tags", repository.tags))
        }
        self.send_json({**lists, "converts": [], "pullRequests": []})

    @route("POST DELETE", "/api/models/{repo}/branch/{revision}")
    def branch(self, repo, revision):
        repository = self.repository(repo, write=True)
        self.change_ref(repository, repository.branches, revision, self.json().get("startingPoint", "main"))

    @route("POST DELETE", "/api/models/{repo}/tag/{revision}")
    def tag(self, repo, revision):
        repository = self.repository(repo, write=True)
        self.change_ref(repository, repository.tags, self.json().get("tag", revision), revision)

    def change_ref(self, repository, refs, name, target):
        if self.command == "POST":
            oid = repository.commit(target).oid
            if name in refs:
                raise HubError(409, f"Reference already exists: {name}")
            refs[name] = oid
        elif name == "main":
            raise HubError(403, "The main branch cannot be deleted.")
        elif not refs.pop(name, None):
            raise HubError(404, f"Invalid rev id: {name}", "RevisionNotFound")
        self.send_json({})

    @route("POST", "/api/models/{repo}/preupload/{revision}")
    def preupload(self, repo, revision):
        files, request = self.repository(repo, write=True).commit(revision).files, self.json()
        ignored = [line.rstrip("/") for line in request.get("gitIgnore", "").split()]
        answer = []
        for entry in request["files"]:
            path, sample = entry["path"], base64.b64decode(entry["sample"])
            answer.append(
                {
                    "path": path,
                    "uploadMode": "lfs" if self.hub.is_large(files, path, entry["size"], sample) else "regular",
                    "shouldIgnore": any(fnmatch(part, line) for part in path.split("/") for line in ignored),
                    "oid": files[path].etag if path in files else None,
                }
            )
        self.send_json({"files": answer})

    @route("POST", r"/{repo}\.git/info/lfs/objects/batch")
    def lfs_batch(self, repo):
        """How to upload each large file; no actions for those that are there."""
        uploaded = self.repository(repo, write=True).uploaded
        transfer, objects = "basic", []
        for entry in self.json()["objects"]:
            sha256, size = entry["oid"], entry["size"]
            objects.append({"oid": sha256, "size": size})
            if uploaded.get(sha256) == size:
                continue
            upload = {"href": signed_link(self.hub, repo, upload=sha256, size=size)}
            if size > self.hub.part_size:
                transfer, parts = "multipart", range(1, math.ceil(size / self.hub.part_size) + 1)
                links = {str(n): signed_link(self.hub, repo, upload=sha256, size=size, part=n) for n in parts}
                upload["header"] = {"chunk_size": str(self.hub.part_size), **links}
                upload["href"] = f"{self.hub.url}/api/complete_multipart?{urlencode({'repo': repo, 'size': size})}"
            verify = {"href": f"{self.hub.url}/{repo}.git/info/lfs/objects/verify"}
            objects[-1]["actions"] = {"upload": upload, "verify": verify}
        self.send_json({"transfer": transfer, "objects": objects})

    @route("POST", "/api/complete_multipart")
    def complete_multipart(self):
        request = self.json()
        content = b"".join((self.hub.blobs / part["etag"].strip('"')).read_bytes() for part in request["parts"])
        accept_upload(self.hub, self.query["repo"], content, request["oid"], int(self.query["size"]))
        self.send_json({})

    @route("POST", r"/{repo}\.git/info/lfs/objects/verify")
    def lfs_verify(self, repo):
        request = self.json()
        if self.repository(repo, write=True).uploaded.get(request["oid"]) != request["size"]:
            raise HubError(404, f"There are no {request['size']} bytes of sha256 {request['oid']}")
        self.send_json({})

    @route("POST", "/api/models/{repo}/commit/{revision}")
    def commit(self, repo, revision):
        repository = self.repository(repo, write=True)
        if "create_pr" in self.query:
            raise HubError(403, "This Hub has no pull requests.")
        parent = repository.commit(revision)
        if revision not in repository.branches:
            raise HubError(400, f"{revision} is not a branch")
        header, *operations = (json.loads(line) for line in self.body.splitlines())
        header = header["value"]
        if header.get("parentCommit", parent.oid) != parent.oid:
            raise HubError(412, "A commit has happened since. Please refresh and try again.")
        files = dict(parent.files)
        for operation in operations:
            self.apply(repository, files, operation["key"], **operation["value"])
        oid = repository.add_commit(revision, header["summary"], header.get("description", ""), files)
        url = f"{self.hub.url}/{repo}/commit/{oid}"
        self.send_json({"success": True, "commitOid": oid, "commitUrl": url, "hookOutput": ""})

    def apply(self, repository, files, key, path, content="", oid="", size=None, **_):
        """One operation of a commit, on the files of its parent."""
        if key == "file":
            files[path] = self.hub.small_file(base64.b64decode(content))
        elif key == "lfsFile":
            known = repository.uploaded.get(oid)
            if known is None or size not in (None, known):
                raise HubError(400, f'LFS pointer of "{path}" points to a file that does not exist: {oid}')
            files[path] = self.hub.large_file(oid, known)
        elif key in ("deletedFile", "deletedFolder"):
            gone = {name for name in files if name == path or name.startswith(path.rstrip("/") + "/")}
            if not gone or (key == "deletedFile" and gone != {path}):
                raise HubError(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
            for name in gone:
                del files[name]
        else:
            raise HubError(400, f"Unknown operation {key}")

    @route("GET HEAD", "/{repo}/resolve/{revision}/(?P<path>.+)")
    def resolve(self, repo, revision, path):
        """Where a file is: small ones on this origin, large ones in the storage. This answer names etag and size."""
        commit, file = self.file(repo, revision, path)
        linked = {"X-Repo-Commit": commit.oid, "X-Linked-Etag": f'"{file.etag}"', "X-Linked-Size": file.size}
        if file.lfs:
            link = signed_link(self.hub, repo, sha256=file.sha256, filename=path)
            self.send_head(302, 0, {"Location": link, **linked})
        else:
            link = f"/api/resolve-cache/models/{repo}/{commit.oid}/{quote(path)}"
            self.send_head(307, 0, {"Location": link, **linked})

    @route("GET HEAD", "/api/resolve-cache/models/{repo}/{revision}/(?P<path>.+)")
    def resolve_cache(self, repo, revision, path):
        commit, file = self.file(repo, revision, path)
        headers = {"X-Repo-Commit": commit.oid, "ETag": f'"{file.etag}"', "Content-Type": "text/plain; charset=utf-8"}
        self.send_file(self.hub.blobs / file.sha256, headers)

    def file(self, repo, revision, path):
        commit = self.repository(repo, content=True).commit(revision)
        if path not in commit.files:
            raise HubError(404, "Entry not found", "EntryNotFound", {"X-Repo-Commit": commit.oid})
        return commit, commit.files[path]


def wants_private(request, default=False):
    """As clients say it since huggingface_hub 2, and before."""
    return request.get("private", request["visibility"] == "private" if "visibility" in request else default)


def tree_entry(path, file):
    """A file of a listing, or a folder if there is none."""
    if not file:
        return {"type": "directory", "path": path, "size": 0, "oid": hashlib.sha1(path.encode()).hexdigest()}
    lfs = {"lfs": file.lfs} if file.lfs else {}
    return {"type": "file", "path": path, "size": file.size, "oid": file.oid, **lfs}
