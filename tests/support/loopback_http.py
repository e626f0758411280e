# SPDX-License-Identifier: MIT
"""HTTP as the Hub and its storage of large files speak it, and that storage.

As with the real Hub, the storage is another origin (here a second port): links to it are signed and work without a
token, and an upload must have the announced size and sha256.
"""

import contextlib
import hashlib
import json
import re
import secrets
import traceback
from http.server import BaseHTTPRequestHandler
from urllib.parse import parse_qs, unquote, urlencode


class HubError(Exception):
    """An answer other than success; from `code` the client knows which exception to raise."""

    def __init__(self, status, message, code=None, headers=None, **body):
        self.status, self.body = status, {"error": message, **body}
        said = message.encode("ascii", "replace").decode()
        self.headers = {"X-Error-Message": said, **({"X-Error-Code": code} if code else {}), **(headers or {})}


class Handler(BaseHTTPRequestHandler):
    """What the Hub and its storage have in common."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_):
        pass

    def handle(self):
        with contextlib.suppress(ConnectionError):
            super().handle()

    def serve(self):
        self.hub = self.server.hub
        self.status = 0
        path, _, query = self.path.partition("?")
        self.query = {key: values[0] for key, values in parse_qs(query).items()}
        try:
            self.body = self.read_body()
            self.answer(path)
        except HubError as error:
            self.send_json(error.body, error.status, error.headers)
        except ConnectionError:
            self.close_connection = True
        except Exception:
            self.hub.failures.append(f"{self.command} {self.path}\n{traceback.format_exc()}")
            self.close_connection = True
        finally:
            self.hub.log.append((self.command, self.path, self.status))

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = serve  # noqa: N815

    def do_CONNECT(self):
        self.server.hub.log.append(("CONNECT", self.path, 403))
        self.send_error(403)

    def allowed(self, size):
        """How many of so many bytes may pass; if not all, the connection must be cut."""
        with self.hub.lock:
            for entry in self.hub.breaks:
                if entry[0] in unquote(self.path) and size > entry[1]:
                    self.hub.breaks.remove(entry)
                    return entry[1]
        return size

    def read_body(self):
        if "Transfer-Encoding" in self.headers:
            self.close_connection = True
            raise HubError(411, "A Content-Length is required")
        size = int(self.headers.get("Content-Length", 0))
        content = self.rfile.read(self.allowed(size))
        if len(content) < size:
            raise ConnectionAbortedError
        return content

    def send_head(self, status, size, headers):
        self.send_response(status)
        for key, value in {"X-Request-Id": secrets.token_hex(8), "Content-Length": size, **headers}.items():
            self.send_header(key, str(value))
        self.end_headers()
        self.status = status

    def send_json(self, value, status=200, headers=None):
        content = json.dumps(value).encode()
        self.send_head(status, len(content), {"Content-Type": "application/json; charset=utf-8", **(headers or {})})
        if self.command != "HEAD":
            self.wfile.write(content)

    def send_file(self, path, headers):
        """The file, or the part of it that a Range header asks for."""
        size = path.stat().st_size
        first, last, status = 0, size - 1, 200
        if wanted := re.fullmatch(r"bytes=(?!-$)(\d*)-(\d*)", self.headers.get("Range", "")):
            status = 206
            if wanted[1]:
                first, last = int(wanted[1]), min(int(wanted[2] or last), last)
            else:
                first = max(0, size - int(wanted[2]))
            if first > last:
                raise HubError(416, "Range not satisfiable", headers={"Content-Range": f"bytes */{size}"})
            headers = {"Content-Range": f"bytes {first}-{last}/{size}", **headers}
        length = last - first + 1
        self.send_head(status, length, {"Accept-Ranges": "bytes", **headers})
        if self.command == "HEAD":
            return
        with path.open("rb") as file:
            file.seek(first)
            content = file.read(self.allowed(length))
        self.wfile.write(content)
        if len(content) < length:
            self.status = 0
            raise ConnectionAbortedError


class StorageHandler(Handler):
    """Contents of large files, behind signed links: who has the link needs no token, and must not send one."""

    def answer(self, path):
        link, _, signature = self.path.partition("&signature=")
        if signature != signature_of(self.hub, link):
            raise HubError(403, "SignatureDoesNotMatch")
        if "Authorization" in self.headers:
            raise HubError(400, "Only one auth mechanism allowed")
        if self.command in ("GET", "HEAD"):
            sha256, name = self.query["sha256"], self.query["filename"].split("/")[-1]
            headers = {"ETag": f'"{sha256}"', "Content-Disposition": f'attachment; filename="{name}"'}
            self.send_file(self.hub.blobs / sha256, headers)
        elif "part" in self.query:
            self.send_json({}, headers={"ETag": f'"{self.hub.store(self.body)}"'})
        else:
            accept_upload(self.hub, unquote(path[1:]), self.body, self.query["upload"], int(self.query["size"]))
            self.send_json({})


def signature_of(hub, link):
    return hashlib.sha256((hub.secret + link).encode()).hexdigest()


def signed_link(hub, repo, **query):
    """A link to the storage, with the Hub's word that its bearer may use it."""
    link = f"/{repo}?{urlencode(query)}"
    return f"{hub.storage_url}{link}&signature={signature_of(hub, link)}"


def accept_upload(hub, repo, content, sha256, size):
    """Keep the content of an LFS file, unless it is not what was announced."""
    actual = hashlib.sha256(content).hexdigest()
    if (actual, len(content)) != (sha256, size):
        raise HubError(400, f"BadDigest: {len(content)} bytes of sha256 {actual} instead of {size} of {sha256}")
    hub.store(content)
    hub.repositories[repo].uploaded[sha256] = size
