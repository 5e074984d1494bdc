"""A Hub of data sets on this machine, speaking what `datasets` and `huggingface_hub` ask for."""

import hashlib
import json
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

MEMBER, STRANGER = "hf_memberofthetests", "hf_strangertothetests"


@dataclass
class Repo:
    """Files by commit; `state` is "open", "gated", "private" or "echoing"; `lost` commits are not sent."""

    commits: dict[str, dict[str, bytes]]
    branches: dict[str, str]
    state: str = "open"
    lost: tuple[str, ...] = ()

    def commit(self, revision):
        return revision if revision in self.commits else self.branches.get(revision)


@dataclass
class LoopbackHub:
    """Serves `repos`, the gated and private ones to MEMBER alone; use it in a `with`."""

    repos: dict[str, Repo]

    def __enter__(self):
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: LoopbackHub
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = urlsplit(self.path).path.removeprefix("/api").removeprefix("/datasets/")
        owner, name, kind, revision, rest = (*path.split("/", 4), "", "", "", "", "")[:5]
        repo = self.hub.repos.get(f"{owner}/{name}")
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token not in ("", MEMBER, STRANGER):
            return self._send(401, message="Invalid credentials in Authorization header")
        if repo is None or (repo.state == "private" and token != MEMBER):
            # as the real Hub: one answer for what is not there and for what may not be seen
            return self._send(404 if token else 401, error="RepoNotFound")
        if repo.state == "echoing":
            return self._send(418, message=f"a fault that shows {token}")
        commit = repo.commit(revision or "main")
        if commit is None:
            return self._send(404, error="RevisionNotFound")
        if kind == "resolve":
            return self._file(repo, commit, rest, token)
        if kind == "tree":
            return self._json(self._entries(repo.commits[commit], under=rest))
        if kind == "paths-info":
            return self._json(self._entries(repo.commits[commit], among=parse_qs(body.decode())["paths"]))
        siblings = [{"rfilename": name} for name in repo.commits[commit]]
        return self._json({"id": f"{owner}/{name}", "sha": commit, "private": False, "siblings": siblings})

    do_HEAD = do_POST = do_GET

    def log_message(self, *_):
        pass

    def _file(self, repo, commit, name, token):
        if repo.state == "gated" and token != MEMBER:
            return self._send(403 if token else 401, error="GatedRepo")
        if commit in repo.lost:
            return self._send(418)
        content = repo.commits[commit].get(name)
        if content is None:
            return self._send(404, error="EntryNotFound", commit=commit)
        return self._send(200, content, etag=f'"{hashlib.sha1(content).hexdigest()}"', commit=commit)

    def _entries(self, files, under="", among=()):
        folders = {name.rpartition("/")[0] for name in files} - {""}
        names = among or [name for name in (*files, *folders) if name.startswith(under)]
        return [
            {"type": "directory", "path": name, "oid": "0" * 40}
            if name in folders
            else {"type": "file", "path": name, "size": len(files[name]), "oid": "1" * 40}
            for name in names
            if name in folders or name in files
        ]

    def _json(self, value):
        self._send(200, json.dumps(value).encode())

    def _send(self, status, body=b"", **headers):
        names = {
            "etag": "ETag",
            "commit": "X-Repo-Commit",
            "error": "X-Error-Code",
            "message": "X-Error-Message",
        }
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for key, value in headers.items():
            self.send_header(names[key], value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
