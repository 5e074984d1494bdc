"""What a Hub keeps: accounts, model repositories, their commits, and files by their hash. No HTTP here."""

import base64
import hashlib
import json
import threading
from dataclasses import dataclass, field
from pathlib import Path

from tests.hub import xet

LFS_SUFFIXES = (".safetensors", ".bin", ".gguf", ".pt")  # as in the .gitattributes of a new repository
LFS_BYTES = 10_000_000  # larger files are never regular


class Refusal(Exception):
    """An answer that is not 200: its status, the Hub's own error code, its message."""

    def __init__(self, status: int, message: str, code: str = "") -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


@dataclass(frozen=True)
class Account:
    """Whose token it is and what it may do; a fine-grained one writes only to what `scopes` names."""

    name: str
    role: str = "write"
    scopes: tuple[str, ...] = ()

    def may_write(self, repo_id: str) -> bool:
        owner = repo_id.partition("/")[0]
        if self.role == "fineGrained":
            return bool({owner, repo_id} & set(self.scopes))
        return self.role == "write" and owner == self.name

    def whoami(self) -> dict:
        token = {"displayName": "test", "role": self.role}
        if self.role == "fineGrained":
            token["fineGrained"] = {"global": [], "scoped": [self._scope(name) for name in self.scopes]}
        return {
            "type": "user",
            "name": self.name,
            "fullname": self.name,
            "orgs": [],
            "auth": {"type": "access_token", "accessToken": token},
        }

    def _scope(self, name: str) -> dict:
        kind = "model" if "/" in name else "user"
        return {"entity": {"type": kind, "name": name}, "permissions": ["repo.content.read", "repo.write"]}


@dataclass(frozen=True)
class File:
    """One file of a commit; `sha256` is None for one that git itself keeps."""

    size: int
    oid: str
    sha256: str | None = None

    @property
    def etag(self) -> str:
        return self.sha256 or self.oid


@dataclass(frozen=True)
class Commit:
    oid: str
    message: str
    files: dict[str, File]


@dataclass
class Repo:
    id: str
    private: bool
    commits: list[Commit] = field(default_factory=list)

    @property
    def head(self) -> Commit:
        return self.commits[-1]

    def at(self, revision: str) -> Commit:
        if revision == "main":
            return self.head
        for commit in self.commits:
            if commit.oid == revision:
                return commit
        raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")


class Store:
    """Everything the Hub has, in a folder; commits are all or nothing."""

    def __init__(self, folder: Path) -> None:
        self.blobs, self.cas = folder / "blobs", folder / "cas"
        self.blobs.mkdir(parents=True, exist_ok=True)
        self.accounts: dict[str, Account] = {}
        self.repos: dict[str, Repo] = {}
        self.lock = threading.Lock()

    def create(self, repo_id: str, private: bool, account: Account) -> Repo:
        with self.lock:
            if repo_id in self.repos:
                raise Refusal(409, "You already created this model repo")
            if not account.may_write(repo_id) or repo_id in account.scopes:
                raise Refusal(403, f"You don't have the rights to create a model under {repo_id}")
            repo = self.repos[repo_id] = Repo(repo_id, private)
            lines = "".join(
                f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES
            ).encode()
            self._append(repo, "initial commit", {".gitattributes": self.keep_regular(lines)})
            return repo

    def repo(self, repo_id: str, account: Account | None, write: bool = False) -> Repo:
        """The repository, if this account may read it (or write to it)."""
        repo = next((repo for id_, repo in self.repos.items() if id_.lower() == repo_id.lower()), None)
        owner = repo_id.partition("/")[0]
        readable = repo and (not repo.private or (account and account.name == owner))
        if not repo or not readable:
            raise Refusal(404 if account else 401, "Repository not found", "RepoNotFound")
        if write and not (account and account.may_write(repo_id)):
            raise Refusal(403, f"You don't have the required permissions to write to {repo_id}")
        return repo

    def commit(self, repo: Repo, lines: list[dict]) -> Commit:
        """Apply a commit's operations to the head; 412 when it has moved, 400 when a file never came."""
        with self.lock:
            header, *operations = lines
            parent = header["value"].get("parentCommit")
            if parent and parent != repo.head.oid:
                raise Refusal(412, "A commit has happened since. Please refresh and try again.")
            files = dict(repo.head.files)
            for operation in operations:
                value = operation["value"]
                if operation["key"] == "file":
                    files[value["path"]] = self.keep_regular(base64.b64decode(value["content"]))
                elif operation["key"] == "lfsFile":
                    files[value["path"]] = self._lfs_file(value)
                else:
                    raise Refusal(400, f"this Hub knows no {operation['key']}")
            return self._append(repo, header["value"]["summary"], files)

    def keep_regular(self, content: bytes) -> File:
        oid = git_oid(content)
        (self.blobs / oid).write_bytes(content)
        return File(len(content), oid)

    def keep_lfs(self, sha256: str, content: bytes) -> None:
        if hashlib.sha256(content).hexdigest() != sha256:
            raise Refusal(400, "the content does not have the SHA-256 it was announced with")
        (self.blobs / sha256).write_bytes(content)

    def has(self, sha256: str) -> bool:
        return (self.blobs / sha256).exists() or sha256 in xet.stored_files(self.cas)

    def content(self, name: str) -> Path:
        """The file with this hash; one that came by xet is put together at its first plain download."""
        path = self.blobs / name
        if not path.exists():
            xet.read_file(self.cas, *xet.stored_files(self.cas)[name], path)
        return path

    def _lfs_file(self, value: dict) -> File:
        if not self.has(value["oid"]):
            raise Refusal(400, f"the content of {value['path']} was never uploaded")
        pointer = (
            f"version https://git-lfs.github.com/spec/v1\noid sha256:{value['oid']}\nsize {value['size']}\n"
        )
        return File(value["size"], git_oid(pointer.encode()), value["oid"])

    def _append(self, repo: Repo, message: str, files: dict[str, File]) -> Commit:
        parent = repo.commits[-1].oid if repo.commits else None
        tree = {path: file.etag for path, file in sorted(files.items())}
        oid = hashlib.sha1(json.dumps([repo.id, parent, message, tree]).encode()).hexdigest()
        repo.commits.append(Commit(oid, message, files))
        return repo.head


def git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def is_lfs(path: str, size: int, sample: bytes) -> bool:
    return size > LFS_BYTES or path.endswith(LFS_SUFFIXES) or b"\0" in sample
