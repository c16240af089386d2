"""A stand-in for the Hugging Face Hub with repositories in memory.

It has the endpoints that `huggingface_hub` calls to upload and download a folder. Tokens are
recorded but not checked.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Hub:
    """Attributes:
    repositories: from the name of a repository to its files (from file name to content).
    created: bodies of the requests that created a repository.
    downloads: names of the files sent, in order.
    """

    def __init__(self):
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.created: list[dict] = []
        self.downloads: list[str] = []
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub = hub
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self):
        self._server.shutdown()
        self._server.server_close()


def commit_of(files: dict[str, bytes]) -> str:
    return hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, format, *args):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = self.path.split("?")[0]
        if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self._file(*found.groups())
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?", path):
            repository, kind, revision = found.groups()
            if (files := self._files(repository, revision or "main")) is None:
                return None
            names = sorted(files)
            if kind == "tree":
                listed = [
                    {
                        "type": "file",
                        "path": name,
                        "size": len(files[name]),
                        "oid": hashlib.sha1(files[name]).hexdigest(),
                    }
                    for name in names
                ]
                return self._json(listed)
            siblings = [{"rfilename": name} for name in names]
            about = {"id": repository, "modelId": repository, "sha": commit_of(files)}
            return self._json({**about, "siblings": siblings, "private": False, "tags": []})
        return self._error(404, "EntryNotFound", f"no endpoint {path}")

    def do_POST(self):
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length) if length else self._chunks()
        path = self.path.split("?")[0]
        if not self.headers.get("Authorization"):
            return self._error(401, "", "no token")
        if path == "/api/repos/create":
            wanted = json.loads(body)
            name = f"{wanted.get('organization')}/{wanted['name']}"
            self.hub.created.append(wanted)
            if name in self.hub.repositories:
                return self._json({"error": "exists", "url": f"{self.hub.url}/{name}"}, 409)
            self.hub.repositories[name] = {}
            return self._json({"url": f"{self.hub.url}/{name}", "name": name})
        if path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|commit)/main", path):
            repository, kind = found.groups()
            if (files := self._files(repository, "main")) is None:
                return None
            if kind == "preupload":
                asked = json.loads(body)["files"]
                modes = [
                    {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                    for f in asked
                ]
                return self._json({"files": modes})
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    value = line["value"]
                    files[value["path"]] = base64.b64decode(value["content"])
            commit = commit_of(files)
            url = f"{self.hub.url}/{repository}/commit/{commit}"
            return self._json({"commitOid": commit, "commitUrl": url, "success": True})
        return self._error(404, "EntryNotFound", f"no endpoint {path}")

    def _chunks(self) -> bytes:
        parts = []
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
        return b"".join(parts)

    def _files(self, repository: str, revision: str) -> dict[str, bytes] | None:
        files = self.hub.repositories.get(repository)
        if files is None:
            self._error(401, "RepoNotFound", "Repository not found")
        elif revision not in ("main", commit_of(files)):
            files = None
            self._error(404, "RevisionNotFound", "Revision not found")
        return files

    def _file(self, repository: str, revision: str, name: str):
        if (files := self._files(repository, revision)) is None:
            return None
        headers = {"X-Repo-Commit": commit_of(files)}
        if name not in files:
            return self._error(404, "EntryNotFound", "Entry not found", headers)
        content = files[name]
        if self.command == "GET":
            self.hub.downloads.append(name)
        headers |= {"ETag": f'"{hashlib.sha256(content).hexdigest()}"'}
        return self._send(200, content, headers)

    def _json(self, values, status: int = 200):
        return self._send(status, json.dumps(values).encode(), {"Content-Type": "application/json"})

    def _error(self, status: int, code: str, message: str, headers: dict | None = None):
        headers = {**(headers or {}), "X-Error-Code": code, "X-Error-Message": message}
        return self._send(status, json.dumps({"error": message}).encode(), headers)

    def _send(self, status: int, content: bytes, headers: dict[str, str]):
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
