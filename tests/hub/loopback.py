"""The Hub's HTTP side: every route the client needs to create, push to, verify and download a model.

`python -m tests.hub.loopback FOLDER` serves one by hand; HF_ENDPOINT then points a client at it.
"""

import base64
import json
import re
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from fnmatch import fnmatch
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.hub import xet
from tests.hub.store import Account, Refusal, Repo, Store, is_lfs

PARTS = {"id": r"(?P<id>[^/]+/[^/]+)", "rev": r"(?P<rev>[^/]+)", "sha": r"(?P<sha>[0-9a-f]+)"}
ROUTES: list[tuple[str, re.Pattern[str], Callable[..., "Answer"]]] = []


@dataclass
class Fault:
    """What goes wrong with the next `times` requests (None: for ever) to a path like the glob `path`.

    `status`: answered in place of doing it. `delay_s`: waited before. `cut`: the connection ends after
    so many bytes of the body, and `flip`: one bit of the body is wrong; the body of a PUT is the client's,
    else it is the Hub's. `lost`: it is done, but the answer never comes.
    """

    path: str
    method: str = "*"
    times: int | None = 1
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    delay_s: float = 0.0
    cut: int | None = None
    flip: bool = False
    lost: bool = False
    seen: int = 0


@dataclass(frozen=True)
class Request:
    """One request as it was answered; status 0 when the client's body never came whole."""

    method: str
    path: str
    status: int
    authorized: bool


@dataclass
class Answer:
    """A status with JSON, bytes, or a file of which a range may be asked for."""

    body: Any = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


class LoopbackHub:
    """A Hub on a free port, with its files in `folder`: `with LoopbackHub(folder) as hub: ...`.

    A client gets `HfApi(endpoint=hub.url, token=hub.token("alice"))`. File contents lie at another
    origin (`hub.files_url`), as on the real Hub, so that a token sent there would show in `requests`.
    """

    def __init__(self, folder: Path, part_bytes: int = 16 << 20) -> None:
        self.store = Store(folder)
        self.part_bytes = part_bytes
        self.faults: list[Fault] = []
        self.requests: list[Request] = []
        self.busy = 0
        self.changed = threading.Condition()
        self.stopping = threading.Event()
        self._server = Server(("127.0.0.1", 0), Handler)
        self._server.hub = self
        port = self._server.server_port
        self.url, self.files_url = f"http://127.0.0.1:{port}", f"http://localhost:{port}"

    def __enter__(self) -> "LoopbackHub":
        threading.Thread(target=self._server.serve_forever, args=[0.02], daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        self._server.shutdown()
        self._server.server_close()

    def token(self, name: str, role: str = "write", scopes: tuple[str, ...] = ()) -> str:
        """A new token of this account."""
        token = f"hf_{name}{role}".ljust(36, "x") + str(len(self.store.accounts))
        self.store.accounts[token] = Account(name, role, scopes)
        return token

    def fail(self, path: str, **fault: Any) -> None:
        """Plan a fault; see `Fault`."""
        self.faults.append(Fault(path, **fault))

    def take_fault(self, method: str, path: str) -> Fault:
        """The first planned fault for this request, used up by one; an empty one if there is none."""
        for fault in self.faults:
            if fault.times != 0 and fnmatch(method, fault.method) and fnmatch(path, fault.path):
                fault.times = fault.times and fault.times - 1
                fault.seen += 1
                return fault
        return Fault(path)

    def wait_until(self, holds: Callable[[], bool]) -> None:
        """Block until something is true of the requests; with `busy == 0` none is in work."""
        with self.changed:
            assert self.changed.wait_for(holds, timeout=60)

    def work(self, more: int, done: Request | None = None) -> None:
        """Keep account of a request that begins or ends."""
        with self.changed:
            self.busy += more
            self.requests += [done] if done else []
            self.changed.notify_all()

    def repo(self, repo_id: str) -> Repo:
        """A repository as the Hub has it."""
        return self.store.repos[repo_id]

    def count(self, method: str, path: str) -> int:
        """How many requests like these were made."""
        return sum(fnmatch(each.method, method) and fnmatch(each.path, path) for each in self.requests)


def point_client_at(server: LoopbackHub, monkeypatch: Any, xet: bool = False) -> None:
    """As HF_ENDPOINT and HF_HUB_DISABLE_XET do, which the client reads only once, at its import."""
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.url)
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", not xet)


def route(method: str, pattern: str) -> Callable[[Callable[..., Answer]], Callable[..., Answer]]:
    """Register what answers a method and path; `{id}`, `{rev}` and `{sha}` are handed over by name."""

    def register(function: Callable[..., Answer]) -> Callable[..., Answer]:
        ROUTES.append((method, re.compile(pattern.format(**PARTS)), function))
        return function

    return register


class Server(ThreadingHTTPServer):
    """One thread per connection; a client that goes away is no error of the Hub."""

    hub: LoopbackHub
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """Reads a request, lets the planned fault happen, answers by the routes."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    hub = property(lambda self: self.server.hub)
    store = property(lambda self: self.server.hub.store)

    def serve(self) -> None:
        url = urlsplit(self.path)
        self.query = parse_qs(url.query)
        fault = self.hub.take_fault(self.command, url.path)
        self.hub.work(+1)
        self.hub.stopping.wait(fault.delay_s)
        try:
            answer = self.answer(url.path, fault)
            answer.headers |= fault.headers
            status = answer.status
        except ConnectionError:  # cut while the client was sending, or by it
            fault, status = Fault(url.path, lost=True), 0
        authorized = "Authorization" in self.headers
        self.hub.work(-1, Request(self.command, url.path, status, authorized))
        self.close() if fault.lost else self.send(answer, fault)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = serve

    def answer(self, path: str, fault: Fault) -> Answer:
        put = self.command == "PUT"
        self.body = self.read_body(fault.cut if put else None)
        if put and fault.flip:
            self.body = flipped(self.body)
        try:
            if fault.status:
                raise Refusal(fault.status, f"planned fault {fault.status}")
            return self.dispatch(path)
        except Refusal as refusal:
            return refused(refusal)

    def dispatch(self, path: str) -> Answer:
        for method, pattern, function in ROUTES:
            if method == self.command.replace("HEAD", "GET") and (found := pattern.fullmatch(path)):
                named = {name: unquote(text) for name, text in found.groupdict().items() if text}
                return function(self, **named)
        raise Refusal(404, f"this Hub has no route {self.command} {path}")

    @property
    def account(self) -> Account | None:
        """Whose token came along; None without one, 401 for one the Hub does not know."""
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in self.store.accounts:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return self.store.accounts.get(token)

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    def read_body(self, cut: int | None) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            length = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(length if cut is None else min(cut, length))
            if len(body) < length:
                raise ConnectionError
            return body
        chunks = []
        while size := int(self.rfile.readline() or b"-1", 16):
            chunks.append(self.rfile.read(size))
            if len(chunks[-1]) != size or (cut is not None and sum(map(len, chunks)) > cut):
                raise ConnectionError
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def send(self, answer: Answer, fault: Fault) -> None:
        status, headers, content = self.content_of(answer)
        if fault.flip and self.command != "PUT":
            content = flipped(content)
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: fault.cut])
        if fault.cut is not None:
            self.close()

    def content_of(self, answer: Answer) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and bytes of an answer, of a file the range that was asked for."""
        if not isinstance(answer.body, Path):
            is_json = not isinstance(answer.body, bytes)
            content = json.dumps(answer.body).encode() if is_json else answer.body
            kind = {"Content-Type": "application/json"} if is_json else {}
            return answer.status, kind | answer.headers, content
        size, headers = answer.body.stat().st_size, answer.headers | {"Accept-Ranges": "bytes"}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not asked:
            return answer.status, headers, answer.body.read_bytes()
        first, last = int(asked[1]), min(int(asked[2] or size), size - 1)
        if first >= size:
            return 416, headers | {"Content-Range": f"bytes */{size}"}, b""
        with answer.body.open("rb") as file:
            file.seek(first)
            content = file.read(last - first + 1)
        return 206, headers | {"Content-Range": f"bytes {first}-{last}/{size}"}, content

    def close(self) -> None:
        """Cut the connection, also for a client that is still sending."""
        self.close_connection = True
        with suppress(OSError):  # the client went first
            self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *_: object) -> None:
        """Nothing: `hub.requests` is the log."""


def flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def refused(refusal: Refusal) -> Answer:
    headers = {"X-Error-Message": refusal.message}
    if refusal.code:
        headers["X-Error-Code"] = refusal.code
    return Answer({"error": refusal.message}, refusal.status, headers)


@route("GET", "/api/whoami-v2")
def whoami(call: Handler) -> Answer:
    if call.account is None:
        raise Refusal(401, "Invalid credentials in Authorization header")
    return Answer(call.account.whoami())


@route("POST", "/api/validate-yaml")
def validate_yaml(call: Handler) -> Answer:
    if re.match(r"---\n(.+\n)*---\n", call.json["content"]):
        return Answer({"errors": [], "warnings": []})
    return Answer({"errors": [{"message": "no metadata between two lines of ---"}], "warnings": []}, 400)


@route("POST", "/api/repos/create")
def create(call: Handler) -> Answer:
    if call.account is None:
        raise Refusal(401, "Invalid credentials in Authorization header")
    asked = call.json
    repo_id = f"{asked.get('organization') or call.account.name}/{asked['name']}"
    url = {"url": f"{call.hub.url}/{repo_id}"}
    try:
        call.store.create(repo_id, asked.get("visibility") == "private", call.account)
    except Refusal as refusal:
        answer = refused(refusal)
        answer.body |= url  # the client reads it from a 409 too
        return answer
    return Answer(url)


@route("GET", "/api/models/{id}(/revision/{rev})?")
def repo_info(call: Handler, id: str, rev: str = "main") -> Answer:
    repo = call.store.repo(id, call.account)
    commit = repo.at(rev)
    siblings = [{"rfilename": path} for path in sorted(commit.files)]
    return Answer({"id": repo.id, "sha": commit.oid, "private": repo.private, "siblings": siblings})


@route("GET", "/api/models/{id}/auth-check(/write)?")
def auth_check(call: Handler, id: str) -> Answer:
    call.store.repo(id, call.account, write=call.path.endswith("/write"))
    return Answer({})


@route("GET", "/api/models/{id}/tree/{rev}")
def tree(call: Handler, id: str, rev: str) -> Answer:
    commit = call.store.repo(id, call.account).at(rev)
    return Answer([entry(call.store, commit.files, path) for path in sorted(commit.files)])


@route("POST", "/api/models/{id}/paths-info/{rev}")
def paths_info(call: Handler, id: str, rev: str) -> Answer:
    commit = call.store.repo(id, call.account).at(rev)
    asked = parse_qs(call.body.decode())["paths"]
    return Answer([entry(call.store, commit.files, path) for path in asked if path in commit.files])


def entry(store: Store, files: dict, path: str) -> dict:
    file = files[path]
    found = {"type": "file", "path": path, "size": file.size, "oid": file.oid}
    if file.sha256:
        found["lfs"] = {"oid": file.sha256, "size": file.size, "pointerSize": 134}
        if stored := xet.stored_files(store.cas).get(file.sha256):
            found["xetHash"] = stored[0]
    return found


@route("POST", "/api/models/{id}/preupload/{rev}")
def preupload(call: Handler, id: str, rev: str) -> Answer:
    present = call.store.repo(id, call.account, write=True).at(rev).files
    files = []
    for file in call.json["files"]:
        path, lfs = file["path"], is_lfs(file["path"], file["size"], base64.b64decode(file["sample"]))
        found = {"path": path, "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False}
        if path in present:
            found["oid"] = present[path].etag
        files.append(found)
    return Answer({"files": files})


@route("POST", r"/{id}\.git/info/lfs/objects/batch")
def lfs_batch(call: Handler, id: str) -> Answer:
    call.store.repo(id, call.account, write=True)
    objects = []
    for file in call.json["objects"]:
        answer = {"oid": file["oid"], "size": file["size"]}
        if not call.store.has(file["oid"]):
            answer["actions"] = upload_actions(call.hub, id, file)
        objects.append(answer)
    return Answer({"objects": objects})


def upload_actions(hub: LoopbackHub, repo_id: str, file: dict) -> dict:
    place = f"{hub.files_url}/_lfs/{file['oid']}"
    verify = {"href": f"{hub.url}/{repo_id}.git/info/lfs/objects/verify"}
    if file["size"] <= hub.part_bytes:
        return {"upload": {"href": place}, "verify": verify}
    parts = -(-file["size"] // hub.part_bytes)
    header = {f"{part:05}": f"{place}?part={part}" for part in range(1, parts + 1)}
    header["chunk_size"] = str(hub.part_bytes)
    return {"upload": {"href": f"{hub.url}/_lfs/{file['oid']}/complete", "header": header}, "verify": verify}


@route("PUT", "/_lfs/{sha}")
def lfs_put(call: Handler, sha: str) -> Answer:
    part = call.query.get("part")
    if part is None:
        call.store.keep_lfs(sha, call.body)
        return Answer()
    (call.store.blobs / f"{sha}.{int(part[0])}").write_bytes(call.body)
    return Answer(headers={"ETag": f'"{part[0]}"'})


@route("POST", "/_lfs/{sha}/complete")
def lfs_complete(call: Handler, sha: str) -> Answer:
    parts = [call.store.blobs / f"{sha}.{part['partNumber']}" for part in call.json["parts"]]
    call.store.keep_lfs(sha, b"".join(part.read_bytes() for part in parts))
    for part in parts:
        part.unlink()
    return Answer({})


@route("POST", r"/{id}\.git/info/lfs/objects/verify")
def lfs_verify(call: Handler, id: str) -> Answer:
    call.store.repo(id, call.account, write=True)
    if not call.store.has(call.json["oid"]):
        raise Refusal(404, "this object never came")
    return Answer({})


@route("GET", "/api/models/{id}/xet-(?P<kind>read|write)-token/{rev}")
def xet_token(call: Handler, id: str, rev: str, kind: str) -> Answer:
    call.store.repo(id, call.account, write=kind == "write")
    token, expiry, place = "xet", int(time.time()) + 3600, xet.address(call.store.cas)
    headers = {
        "X-Xet-Cas-Url": place,
        "X-Xet-Access-Token": token,
        "X-Xet-Token-Expiration": str(expiry),
    }
    return Answer({"casUrl": place, "accessToken": token, "exp": expiry}, headers=headers)


@route("POST", "/api/models/{id}/commit/{rev}")
def commit(call: Handler, id: str, rev: str) -> Answer:
    repo = call.store.repo(id, call.account, write=True)
    made = call.store.commit(repo, [json.loads(line) for line in call.body.splitlines()])
    return Answer({"commitOid": made.oid, "commitUrl": f"{call.hub.url}/{id}/commit/{made.oid}"})


@route("GET", "/{id}/resolve/{rev}/(?P<path>.+)")
def resolve(call: Handler, id: str, rev: str, path: str) -> Answer:
    commit = call.store.repo(id, call.account).at(rev)
    if path not in commit.files:
        raise Refusal(404, "Entry not found", "EntryNotFound")
    file = commit.files[path]
    headers = {"X-Repo-Commit": commit.oid, "ETag": f'"{file.etag}"'}
    if file.sha256 is None:
        return Answer(call.store.content(file.oid), headers=headers)
    headers |= {"X-Linked-ETag": f'"{file.sha256}"', "X-Linked-Size": str(file.size)}
    if stored := xet.stored_files(call.store.cas).get(file.sha256):
        headers["X-Xet-Hash"] = stored[0]
        headers["X-Xet-Refresh-Route"] = f"{call.hub.url}/api/models/{id}/xet-read-token/{commit.oid}"
    return Answer(status=302, headers=headers | {"Location": f"{call.hub.files_url}/_cdn/{file.sha256}"})


@route("GET", "/_cdn/{sha}")
def cdn(call: Handler, sha: str) -> Answer:
    return Answer(call.store.content(sha), headers={"ETag": f'"{sha}"'})


if __name__ == "__main__":
    with LoopbackHub(Path(sys.argv[1])) as served:
        print(f"HF_ENDPOINT={served.url} HF_TOKEN={served.token('alice')}", flush=True)
        threading.Event().wait()
