"""A push that is verified: one commit, compared with the server's hashes; a folder in place of no token.

The notebook makes the calls of `HfApi`. `create_commit` sends everything in one commit, so a reader of the
repository meets the old files or the new ones; `upload_folder` may split a push into several.
"""

from __future__ import annotations

import hashlib
import math
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from finelab.errors import LabError
from finelab.files import sha256, staged
from finelab.publish.manifest import PUSHED_FILES, Manifest, is_document
from finelab.publish.token import refused, shown
from finelab.resources import require_free_space
from finelab.run import Run

WAITS_S = (2.0, 8.0)  # before the second and the third try
LONGEST_WAIT_S = 900.0  # a longer one that the Hub asks for is told, not waited
SILENCE_S = 120.0  # without an answer; the client alone would wait for ever
PASSING = {408, 429, 500, 502, 503, 504}
CLIENTS_OWN = re.compile(r"/preupload/|/info/lfs/|/resolve/")  # which it retries itself, for 23 s, as any PUT
SERVERS_OWN = {".gitattributes"}  # the Hub adds it to every repository
_REFUSALS = {
    403: "{where}: the token {token} may not do this ({message}); give it write access under Settings, "
    "Access Tokens on the Hub.",
    404: "{where}: the Hub has no such repository, or hides it from the token {token}; run the push again "
    "from its first cell.",
    409: "{where} was changed by somebody else meanwhile; run the push again from its first cell.",
    412: "{where} was changed by somebody else meanwhile; run the push again from its first cell.",
    429: "{where}: too many requests from this account; run this again {later}.",
}
_TROUBLE = "{where}: the Hub gives {status} each time; run this again {later}, what has arrived is kept."


def hub(run: Run, token: str | None) -> Any:
    """`HfApi` with the token, made patient, or a `FolderHub` that answers to the same calls and says so."""
    if token is None:
        folder = run.folder / "pushed"
        print(f"No Hub token found: the push goes to {folder}.")
        return FolderHub(folder)
    from huggingface_hub import HfApi

    return PatientHub(HfApi(token=token))


@dataclass(frozen=True)
class PatientHub:
    """Hands each call to `HfApi`: a fault that may pass is tried again, any other is told in a sentence.

    The client retries transfers. It does not retry create_repo, whoami, repo_info, the check of the card's
    metadata, the list of files, or the commit.
    """

    api: Any

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.api, name)
        return partial(self._call, found) if callable(found) else found

    def _call(self, method: Callable[..., Any], *values: Any, **keywords: Any) -> Any:
        from huggingface_hub.utils import httpx

        waits_s = list(WAITS_S)
        while True:
            _limit_silence()
            try:
                return method(*values, **keywords)
            except (OSError, ValueError, RuntimeError, httpx.TransportError) as error:
                fault = _fault(error)
                if (wait_s := _wait_s(fault, waits_s)) is None:
                    where = keywords.get("repo_id", "the Hub")
                    raise LabError(_sentence(fault, where, self.api.token)) from error
            print(f"The Hub gives {_name(fault)}: trying again in {wait_s:.0f} s.")
            time.sleep(wait_s)


@dataclass(frozen=True)
class Changes:
    """The files that a repository lacks, as the operations of one commit on its `head`."""

    repo_id: str
    head: str
    private: bool
    files: Manifest
    names: tuple[str, ...]

    def __iter__(self) -> Iterator[Any]:
        """New operations each time: the client marks those it has used, and a second try needs fresh ones."""
        from huggingface_hub import CommitOperationAdd

        for name in self.names:
            yield CommitOperationAdd(path_in_repo=name, path_or_fileobj=self.files.folder / name)

    def __str__(self) -> str:
        if not self.names:
            return f"{self.repo_id} has these {len(self.files.files)} files already: nothing to send."
        return f"to send to {self.repo_id}: {', '.join(self.names)}"


def changes(run: Run, files: Manifest, repo: Any, check: Any) -> Changes:
    """What a push has to send, from `repo_info` and from `verify_repo_checksums` at its head.

    LabError before anything is sent when the repository is public and should be private (`create_repo`
    leaves one that exists as it is), or when it holds files of something else or another run's model.
    """
    private = run.recipe.publish.private
    if private and not repo.private:
        raise LabError(
            f"{repo.id} is public and publish.private asks for a private one: make it private in its "
            "settings on the Hub, or say publish.private=false. Nothing was sent."
        )
    if repo.private and not private:
        print(f"{repo.id} stays private: publish.private=false makes a new repository public, no other one.")
    lacking, foreign = _differences(files, check)
    if foreign:
        raise LabError(
            f"{repo.id} holds files of something else ({', '.join(foreign)}): choose another "
            "publish.repo_name, or delete them on the Hub. Nothing was sent."
        )
    replaced = [each["path"] for each in check.mismatches if not is_document(each["path"])]
    if replaced and repo.sha not in _recorded_commits(run):
        raise LabError(
            f"{repo.id} holds another model, of commit {repo.sha[:7]}, which run {run.name} did not push "
            f"({', '.join(replaced)}): give this one another name (--set publish.repo_name=...), or delete "
            "that repository on the Hub to replace it. Nothing was sent."
        )
    return Changes(repo.id, repo.sha, repo.private, files, tuple(lacking))


def _recorded_commits(run: Run) -> set[str]:
    """The last commit of each repository that this run has pushed."""
    published = run.evidence().get("publish", {})
    return {entry["commit"] for entry in (published, published.get("adapter", {})) if "commit" in entry}


def record_push(run: Run, name: str, sent: Changes, commit: str, check: Any) -> None:
    """Record a push, "merged" or "adapter", once `check`, made at its commit, finds every file right.

    LabError when one is missing, damaged, or not of this push: then nothing is recorded.
    """
    lacking, foreign = _differences(sent.files, check)
    if lacking or foreign or Manifest.of(sent.files.folder) != sent.files:
        names = ", ".join(lacking + foreign) or "the files changed here during the push"
        raise LabError(
            f"{sent.repo_id} at {commit[:7]} is not what was sent ({names}); run the push again from its "
            "first cell. Nothing is recorded as published."
        )
    entry = {
        "repo_id": sent.repo_id,
        "commit": commit,
        "files_verified": check.checked_count,
        "private": sent.private,
        "model_sha256": sent.files.model_sha256,
    }
    run.record("publish", entry if name == "merged" else {name: entry})
    print(f"{sent.repo_id} at {commit[:7]}: all {check.checked_count} files have the hashes they have here.")


def fetch_pushed(api: Any, repo_id: str, commit: str, files: Manifest, folder: Path) -> Path:
    """Download a pushed commit anew into `folder` and compare every file's SHA-256 with the manifest.

    The client compares sizes only, and would take files from its cache. LabError when a file differs.
    """
    require_free_space(folder, files.size_bytes, "the pushed model's copy")
    with staged(folder) as stage:
        own = stage / ".cache"  # an empty cache, beside the client's own notes
        api.snapshot_download(
            repo_id=repo_id, revision=commit, allow_patterns=PUSHED_FILES, local_dir=stage, cache_dir=own
        )
        shutil.rmtree(own, ignore_errors=True)
        for name, digest in files.files.items():
            if not (stage / name).exists() or sha256(stage / name) != digest:
                raise LabError(
                    f"{name} of {repo_id} at {commit[:7]} came back other than it was sent; run this cell "
                    "again, and the push if it happens twice."
                )
    return folder


@dataclass(frozen=True)
class FolderHub:
    """The calls of `HfApi` that a push needs, on a plain folder with one folder per repository."""

    folder: Path

    def whoami(self) -> dict[str, str]:
        """The owner of the repositories."""
        return {"name": "local"}

    def create_repo(self, repo_id: str, private: bool, exist_ok: bool) -> None:
        """Nothing to do: the folder is made by the commit."""

    def repo_info(self, repo_id: str) -> Any:
        """The state of the repository; it is private, as it never left this machine."""
        return SimpleNamespace(id=repo_id, sha=self._commit(repo_id), private=True)

    def create_commit(self, repo_id: str, operations: Any, parent_commit: str, commit_message: str) -> Any:
        """Add the operations' files, all or none."""
        target, added = self.folder / repo_id, list(operations)
        if added:
            with staged(target) as stage:
                if target.exists():
                    shutil.copytree(target, stage, dirs_exist_ok=True)
                for each in added:
                    shutil.copyfile(each.path_or_fileobj, stage / each.path_in_repo)
        return SimpleNamespace(oid=self._commit(repo_id))

    def verify_repo_checksums(self, repo_id: str, local_dir: Path, revision: str) -> Any:
        """Compare every pushed file with the local one by its hash."""
        pushed, local = _listing(self.folder / repo_id), _listing(local_dir)
        both = sorted(pushed & local)
        wrong = [n for n in both if sha256(self.folder / repo_id / n) != sha256(local_dir / n)]
        return SimpleNamespace(
            checked_count=len(both),
            mismatches=[{"path": name} for name in wrong],
            missing_paths=sorted(pushed - local),
            extra_paths=sorted(local - pushed),
        )

    def snapshot_download(self, repo_id: str, revision: str, local_dir: Path, **_: Any) -> None:
        """Copy the repository."""
        shutil.copytree(self.folder / repo_id, local_dir, dirs_exist_ok=True)

    def _commit(self, repo_id: str) -> str:
        """Named after its content, as a commit of git is."""
        folder = self.folder / repo_id
        lines = [f"{sha256(folder / name)}  {name}\n" for name in sorted(_listing(folder))]
        return hashlib.sha256("".join(lines).encode()).hexdigest()[:40]


def _listing(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def _differences(files: Manifest, check: Any) -> tuple[list[str], list[str]]:
    """What of the manifest the repository lacks or has otherwise, and what it holds beyond the manifest."""
    wrong = {*check.extra_paths, *(each["path"] for each in check.mismatches)}
    lacking = [name for name in files.files if name in wrong]
    foreign = set(check.missing_paths) - SERVERS_OWN | set(files.left) - set(check.extra_paths)
    return lacking, sorted(foreign)


def _limit_silence() -> None:
    """Give the client's shared session a limit for an answer; it has none, and says so in some calls."""
    from huggingface_hub.utils import get_session

    hooks = get_session().event_hooks["request"]
    if _with_limit not in hooks:
        hooks.append(_with_limit)


def _with_limit(request: Any) -> None:
    limits = request.extensions["timeout"]
    request.extensions["timeout"] = {name: limits[name] or SILENCE_S for name in limits}


def _fault(error: BaseException) -> BaseException:
    """What the Hub or the network said, under the client's own wrappings of it; else the error itself."""
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils import httpx

    known, fault = (HfHubHTTPError, httpx.TransportError), error
    while not isinstance(fault, known) and isinstance(fault, RuntimeError | OSError) and fault.__cause__:
        fault = fault.__cause__
    return fault if isinstance(fault, known) else error


def _status(fault: BaseException) -> int | None:
    """The HTTP status; hf_xet tells it in its text alone."""
    response = getattr(fault, "response", None)
    if response is not None:
        return int(response.status_code)
    found = re.search(r"\((\d{3}) [A-Z]", str(fault)) if isinstance(fault, ConnectionError) else None
    return int(found[1]) if found else None


def _name(fault: BaseException) -> str:
    return str(_status(fault) or f"no answer ({type(fault).__name__})")


def _may_pass(fault: BaseException) -> bool:
    """Whether another try may help, which the client has not made itself."""
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils import httpx

    if not isinstance(fault, HfHubHTTPError | httpx.TransportError):
        return False
    request = getattr(fault, "response", fault).request
    tried = request.method == "PUT" or CLIENTS_OWN.search(request.url.path)
    return not tried and (_status(fault) or 500) in PASSING


def _wait_s(fault: BaseException, waits_s: list[float]) -> float | None:
    """The seconds before the next try, taken from `waits_s` if the Hub says none; None: no other try."""
    if not waits_s or not _may_pass(fault):
        return None
    wait_s, asked_s = waits_s.pop(0), _asked_wait_s(fault)
    if asked_s is None:
        return wait_s
    return asked_s if asked_s <= LONGEST_WAIT_S else None


def _asked_wait_s(fault: BaseException) -> float | None:
    """The seconds that the Hub asks to wait: Retry-After, a number or a date, or its own rate limit."""
    from huggingface_hub.utils import parse_ratelimit_headers

    headers = getattr(getattr(fault, "response", None), "headers", {})
    after, limit = headers.get("Retry-After", ""), parse_ratelimit_headers(headers)
    if after.isdigit():
        return float(after) + 1  # what is left of a second is not said
    with suppress(TypeError, ValueError):  # not a date either
        return max((parsedate_to_datetime(after) - datetime.now(UTC)).total_seconds(), 0.0) + 1
    return limit.reset_in_seconds + 1.0 if limit and limit.remaining == 0 else None


def _sentence(fault: BaseException, where: str, token: str) -> str:
    """The fault as a sentence that says what to do."""
    from huggingface_hub.utils import httpx

    status, asked_s = _status(fault), _asked_wait_s(fault)
    later = f"in {math.ceil(asked_s / 60)} min" if asked_s else "later"
    message = " ".join(str(getattr(fault, "server_message", None) or fault).split())
    if status == 401:
        return refused(token)
    if status in _REFUSALS:
        return _REFUSALS[status].format(where=where, token=shown(token), message=message, later=later)
    if isinstance(fault, httpx.TransportError) or status in PASSING:
        return _TROUBLE.format(where=where, status=_name(fault), later=later)
    return f"{where}: {message}"
