"""The Hub token: found where people keep it, checked before it is needed, never shown."""

from __future__ import annotations

import os
import re
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from finelab.errors import LabError
from finelab.files import read_text
from finelab.run import NOTEBOOKS

FILES = (".hftoken", "token.txt")
PUSHES_VARIABLE = "FINELAB_PUSHES"
_TOKEN = re.compile(r"(?:hf_(?:oauth_|jwt_)?|api_org_)[A-Za-z0-9._-]{20,}")
# In a text: not inside a longer word, but also right after a notebook's escaped newline. The Hub's own
# tokens have 34 letters and digits, Modal's (ak- and as-) have 22.
_IN_TEXT = re.compile(
    rb"(?:(?<![A-Za-z0-9_])|(?<=\\[nrt]))"
    rb"(?:(?:hf|api_org)_[A-Za-z0-9]{30,}|hf_(?:oauth|jwt)_[A-Za-z0-9._-]{30,}|a[ks]-[A-Za-z0-9]{20,})"
)
_MAKE_ONE = "make one with write access under Settings, Access Tokens on the Hub"


def read_token(folder: Path = NOTEBOOKS) -> str | None:
    """HF_TOKEN, else `.hftoken` or `token.txt` in `folder`, else the Hub login, else None.

    LabError when a file holds no token, or is tracked by git.
    """
    return next((token for _, token in each_token(folder)), None)


def each_token(folder: Path = NOTEBOOKS) -> Iterator[tuple[str, str]]:
    """Every place with a token and the token in it, the one that is used first; LabError as `read_token`."""
    if os.environ.get("HF_TOKEN"):
        yield "HF_TOKEN", _parse(os.environ["HF_TOKEN"], "HF_TOKEN")
    for path in (folder / name for name in FILES):
        if path.exists():
            _refuse_tracked(path)
            if can_be_read_by_others(path):
                print(f"Other users of this machine can read your token: chmod 600 {path}")
            yield str(path), _parse(read_text(path), str(path))
    from huggingface_hub import get_token

    if not os.environ.get("HF_TOKEN") and (login := get_token()):  # which reads the variable first, too
        yield "the Hub login", login


def check_token(token: str | None, repo_name: str) -> str | None:
    """Say before the training whether its model can be pushed: the account, or None if that is not known.

    No token and no answer from the Hub are only noted: a training needs neither. LabError when the Hub
    does not know the token, or when it may not write to `repo_name`; FINELAB_PUSHES=0 says that this machine
    only trains, so that a token that reads will do.
    """
    if token is None:
        print("No Hub token: the model will be pushed to a folder of the run.")
        return None
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
    from huggingface_hub.utils import httpx

    api = HfApi(token=token)
    try:
        account = api.whoami()
        if os.environ.get(PUSHES_VARIABLE) == "0":
            print(f"{account['name']} trains here with the token {shown(token)}, and pushes elsewhere.")
            return str(account["name"])
        repo_id = f"{account['name']}/{repo_name}"
        _require_write(api, account, repo_id)
    except (HfHubHTTPError, OfflineModeIsEnabled, httpx.TransportError) as error:
        if getattr(getattr(error, "response", None), "status_code", None) == 401:
            raise LabError(refused(token)) from error
        print(f"The Hub could not be asked about the token {shown(token)}; training does not need it.")
        return None
    print(f"{account['name']} may push to {repo_id} with the token {shown(token)}.")
    return str(account["name"])


def find_tokens(content: str | bytes) -> list[str]:
    """The tokens of the Hub and of Modal in a text or a file's bytes, shortened so that they can be shown."""
    raw = content.encode() if isinstance(content, str) else content
    found = _IN_TEXT.findall(raw.replace(b"\0", b""))  # without UTF-16's zero bytes
    return [shown(token.decode()) for token in found]


def shown(token: str) -> str:
    """The token's kind and its last four characters, `hf_…1a2b`: enough to tell it from another one."""
    kind = re.match(r"hf_|api_org_|a[ks]-", token)
    return f"{kind[0] if kind else ''}…{token[-4:]}"


def refused(token: str) -> str:
    """What to do about a token that the Hub does not know."""
    return (
        f"the Hub does not accept the token {shown(token)}: it was revoked, has expired or was not copied "
        f"whole; {_MAKE_ONE} and put it in this one's place."
    )


def _require_write(api: Any, account: dict[str, Any], repo_id: str) -> None:
    access = account.get("auth", {}).get("accessToken", {})
    if access.get("role") == "read":
        raise LabError(
            f"the token {shown(api.token)} of {account['name']} may only read, so the model could not be "
            f"pushed after the training; {_MAKE_ONE} and put it in this one's place."
        )
    if access.get("role") == "fineGrained" and not _is_granted(api, access, repo_id):
        raise LabError(
            f"the fine-grained token {shown(api.token)} may not write to {repo_id}: edit it under Settings, "
            "Access Tokens on the Hub and tick write access to your repositories, or to this one."
        )


def _is_granted(api: Any, access: dict[str, Any], repo_id: str) -> bool:
    """Ask for the repository itself; when it is still to be made, the token must write for its owner."""
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

    try:
        api.auth_check(repo_id, write=True)
        return True
    except RepositoryNotFoundError:
        owner = repo_id.partition("/")[0]
        scopes = access["fineGrained"]["scoped"] if "fineGrained" in access else None
        return scopes is None or any(
            scope["entity"].get("name") == owner and "repo.write" in scope["permissions"] for scope in scopes
        )
    except HfHubHTTPError as error:
        if error.response.status_code == 403:
            return False
        raise


def _parse(text: str, where: str) -> str:
    """The token in a text that may carry quotes, `HF_TOKEN=`, blank lines or Windows newlines."""
    line = next((each.strip() for each in text.splitlines() if each.strip()), "")
    value = line.removeprefix("HF_TOKEN=").strip().strip("'\"").strip()
    if not _TOKEN.fullmatch(value):
        raise LabError(f"{where} holds no Hub token: expected one line that begins with hf_; {_MAKE_ONE}.")
    return value


def can_be_read_by_others(path: Path) -> bool:
    """Whether other users of this machine can read a file; Windows has no such permissions."""
    return os.name == "posix" and bool(path.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH))


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
