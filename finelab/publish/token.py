"""The Hub token: found where people keep it, never shown."""

from __future__ import annotations

import codecs
import os
import re
import subprocess
from pathlib import Path

from finelab.errors import LabError
from finelab.run import NOTEBOOKS

FILES = (".hftoken", "token.txt")
_TOKEN = re.compile(r"hf_[A-Za-z0-9]{20,}")


def read_token(folder: Path = NOTEBOOKS) -> str | None:
    """HF_TOKEN, else `.hftoken` or `token.txt` in `folder`, else the Hub login, else None.

    LabError when a file holds no token, or is tracked by git.
    """
    if os.environ.get("HF_TOKEN"):
        return _parse(os.environ["HF_TOKEN"], "HF_TOKEN")
    for path in (folder / name for name in FILES):
        if path.exists():
            _refuse_tracked(path)
            return _parse(_decode(path), str(path))
    from huggingface_hub import get_token

    token: str | None = get_token()
    return token


def _parse(text: str, where: str) -> str:
    """The token in a text that may carry quotes, `HF_TOKEN=`, blank lines or Windows newlines."""
    line = next((each.strip() for each in text.splitlines() if each.strip()), "")
    value = line.removeprefix("HF_TOKEN=").strip().strip("'\"").strip()
    if not _TOKEN.fullmatch(value):
        raise LabError(
            f"{where} holds no Hub token: expected one line that begins with hf_; make one with write "
            "access under Settings, Access Tokens on the Hub."
        )
    return value


def _decode(path: Path) -> str:
    """PowerShell writes UTF-16, Notepad a byte order mark."""
    raw = path.read_bytes()
    utf16 = raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return raw.decode("utf-16" if utf16 else "utf-8-sig", errors="replace")


def _refuse_tracked(path: Path) -> None:
    command = ["git", "ls-files", "--error-unmatch", path.name]
    try:
        tracked = subprocess.run(command, cwd=path.parent, capture_output=True, check=False)
    except FileNotFoundError:  # no git, so nothing is tracked
        return
    if tracked.returncode == 0:
        raise LabError(
            f"{path} is tracked by git and would be published: `git rm --cached {path.name}`, and "
            "revoke that token on the Hub."
        )
