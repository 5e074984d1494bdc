"""Files that a reader never meets half written, and those that people typed."""

from __future__ import annotations

import codecs
import errno
import hashlib
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from finelab.errors import LabError

_REASONS = {
    errno.ENOSPC: "the disk is full; free some space and run the same command again",
    errno.EDQUOT: "your disk quota is used up; free some space and run the same command again",
    errno.EFBIG: "the file would be larger than this system allows",
    errno.EROFS: "the folder is on a read-only disk; choose another one",
    errno.EACCES: "this user may not write there; choose another folder or change its permissions",
    errno.EPERM: "this user may not write there; choose another folder or change its permissions",
    errno.ENOTDIR: "a part of this path is a file, not a folder",
    errno.EEXIST: "a part of this path is a file, not a folder",
}
IDLE_S = 600.0
LEFTOVER = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{8}(?P<old>\.old)?|tmp[a-z0-9_]{8}")
HELD_S = 2.0 if os.name == "nt" else 0.0
if os.name == "nt":  # a file that is open cannot be replaced there
    _REASONS[errno.EACCES] = (
        "another program or notebook has it open, or this user may not write there; close what uses it "
        "and run the same command again"
    )


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a failed write below `path` into a LabError that says what to do."""
    try:
        yield
    except OSError as error:
        reason = _REASONS.get(error.errno or 0)
        if reason is None:
            raise
        raise LabError(f"cannot write {path}: {reason}.") from error


def read_text(path: Path) -> str:
    """A text that a person wrote: PowerShell writes UTF-16, Notepad a byte order mark."""
    raw = path.read_bytes()
    utf16 = raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return raw.decode("utf-16" if utf16 else "utf-8-sig", errors="replace")


def fsync(path: Path) -> None:
    """Force a file's bytes to the disk, so that a rename after it never shows an empty file."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8 with Unix newlines; the file is the old one or the new one, never half."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    with writing(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("w", encoding="utf-8", newline="\n") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            rename(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """Yield an empty folder that becomes `folder` when the block ends well: one that exists is whole.

    An older `folder` is replaced at the end, so it is there until the new one is complete.
    """
    stage = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
    with writing(folder):
        try:
            stage.mkdir(parents=True)
            yield stage
            for path in stage.rglob("*"):
                if path.is_file():
                    fsync(path)
            _exchange(stage, folder)
        finally:
            shutil.rmtree(stage, ignore_errors=True)


def _exchange(stage: Path, folder: Path) -> None:
    """Put `stage` in the place of `folder`, which comes back when that fails or is interrupted."""
    replaced = stage.with_name(stage.name + ".old")
    try:
        if folder.exists():
            rename(folder, replaced)
        rename(stage, folder)
    except BaseException:
        if replaced.exists() and not folder.exists():
            rename(replaced, folder)
        raise
    shutil.rmtree(replaced, ignore_errors=True)


def clear_leftovers(folder: Path) -> None:
    """Delete what killed processes left in `folder` of `staged` and `TemporaryDirectory`: a model each.

    What was replaced comes back if the new one did not. Where something was written in the last `IDLE_S`
    seconds, another process may be at work, and it stays.
    """
    for path in folder.iterdir():
        found = LEFTOVER.fullmatch(path.name)
        if not found or not path.is_dir() or time.time() - _written_at(path) < IDLE_S:
            continue
        if found["old"] and not (target := folder / found["name"]).exists():
            rename(path, target)
        else:
            shutil.rmtree(path, ignore_errors=True)


def _written_at(folder: Path) -> float:
    """When something was last written in a folder, as `time.time` counts."""
    try:
        return max(path.stat().st_mtime for path in (folder, *folder.rglob("*")))
    except FileNotFoundError:  # a file has just gone
        return time.time()


def rename(path: Path, target: Path) -> None:
    """Give a file or folder another name, in the place of a file that has it.

    On Windows a virus scanner or the search index has what was just written open for a moment, and the name
    cannot change meanwhile: so it is tried again for `HELD_S` seconds.
    """
    until = time.monotonic() + HELD_S
    while True:
        try:
            path.replace(target)
            return
        except PermissionError:
            if time.monotonic() >= until:
                raise
            time.sleep(0.05)


def link(source: Path, target: Path) -> None:
    """A second name for the file, which takes no disk; a copy where the two lie on different disks."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def link_all(source: Path, target: Path) -> None:
    """A second name in the folder `target` for each file below the folder `source`."""
    for path in sorted(source.rglob("*")):
        if path.is_file():
            link(path, target / path.relative_to(source))


def sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
