"""The Hub's token and the Hub itself, asked in a thread so that nobody waits longer than WAIT_S."""

from __future__ import annotations

import contextlib
import io
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finelab.doctor.gather.attempt import attempt
from finelab.errors import LabError
from finelab.run import NOTEBOOKS

WAIT_S = 3.0
NO_ANSWER = {"hub_asked": True, "hub_answer": None, "hub_role": "", "hub_writes": True}
NOT_ASKED = {**NO_ANSWER, "hub_asked": False}


@dataclass(frozen=True)
class Tokens:
    """The token that is used, which is never shown, and where it and others stand."""

    used: str | None = None
    places: tuple[str, ...] = ()
    differ: bool = False
    problem: str = ""

    def __repr__(self) -> str:
        return f"Tokens(places={self.places})"

    def facts(self) -> dict[str, Any]:
        """What `Facts` holds of the tokens."""
        return {
            "tokens": self.places,
            "tokens_differ": self.differ,
            "token_problem": self.problem,
            "token_readable": attempt(lambda: readable_file(self.places), ""),
            "hub_offline": attempt(is_offline, False),
        }


def tokens(folder: Path = NOTEBOOKS) -> Tokens:
    """Look where `publish.read_token` looks."""
    found: dict[str, str] = {}
    try:
        from finelab.publish.token import each_token

        with contextlib.redirect_stdout(io.StringIO()):  # a rule says what it prints
            found.update(each_token(folder))
    except LabError as error:
        if not found:  # a bad file that is not used harms nobody
            return Tokens(problem=str(error))
    except Exception:  # its packages are not installed
        return Tokens()
    used = next(iter(found.values()), None)
    return Tokens(used, tuple(found), len(set(found.values())) > 1)


def readable_file(places: tuple[str, ...]) -> str:
    """The first token file that other users can read."""
    from finelab.publish.token import can_be_read_by_others

    files = [path for path in map(Path, places) if path.is_file()]
    return next((str(path) for path in files if can_be_read_by_others(path)), "")


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE forbids to ask."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def asking(token: str | None) -> Callable[[], dict[str, Any]]:
    """Ask the Hub who the token is; the function given back waits for what `Facts` holds of the answer."""
    answers: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    started = time.monotonic()

    def ask() -> None:
        asked = not attempt(is_offline, True)  # without the client's package it cannot be asked either
        answers.put(attempt(lambda: whoami(token), NO_ANSWER) if asked else NOT_ASKED)

    def answer() -> dict[str, Any]:
        # A name that does not resolve takes longer than any of the client's own limits.
        with contextlib.suppress(queue.Empty):
            return answers.get(timeout=max(0.1, started + WAIT_S - time.monotonic()))
        return NO_ANSWER

    threading.Thread(target=ask, daemon=True).start()
    return answer


def whoami(token: str | None) -> dict[str, Any]:
    """The Hub's status, and the role it gives the token; raises where there is no answer."""
    from huggingface_hub import constants
    from huggingface_hub.utils import build_hf_headers, get_session

    response = get_session().get(
        f"{constants.ENDPOINT}/api/whoami-v2",
        headers=build_hf_headers(token=token or False),
        timeout=WAIT_S,
    )
    account: dict[str, Any] = response.json() if response.status_code == 200 else {}
    access = account.get("auth", {}).get("accessToken", {})
    role = str(access.get("role", ""))
    scopes = access.get("fineGrained", {}).get("scoped", [])
    writes = any("repo.write" in scope.get("permissions", ()) for scope in scopes)
    return {
        "hub_asked": True,
        "hub_answer": int(response.status_code),
        "hub_role": role,
        "hub_writes": role != "fineGrained" or "fineGrained" not in access or writes,
    }
