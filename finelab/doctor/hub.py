"""Rules about the Hub: the token, where it stands, what it may, and whether the Hub answers."""

from __future__ import annotations

from finelab.doctor.facts import Facts
from finelab.doctor.finding import Finding
from finelab.doctor.shell import DOCTOR, call, quoted, remove, without_variable

TOKENS = "https://huggingface.co/settings/tokens"


def no_token(facts: Facts) -> Finding | None:
    """Nothing can be published."""
    if facts.tokens or facts.token_problem or facts.torch is None:  # first things first
        return None
    return Finding(
        "note",
        "no Hub token",
        f"the model is pushed to a folder of the run; to publish, make one that may write at {TOKENS}, then:",
        call(facts, facts.program, "-m huggingface_hub.cli.hf auth login"),
    )


def unusable_token(facts: Facts) -> Finding | None:
    """Something else than a token, or one that git would publish; the problem says what to do about it."""
    if not facts.token_problem:
        return None
    in_shell = facts.token_problem.startswith("HF_TOKEN")
    return Finding(
        "warning",
        facts.token_problem,
        "the run stops where the token is read",
        without_variable(facts, "HF_TOKEN") if in_shell else "put that file right, or delete it",
    )


def two_tokens(facts: Facts) -> Finding | None:
    """The variable wins over the file, and the file over the login."""
    if not facts.tokens_differ:
        return None
    used, *others = facts.tokens
    in_shell = used == "HF_TOKEN"
    return Finding(
        "warning",
        f"there are different Hub tokens in {' and in '.join(facts.tokens)}",
        f"the one in {used} is used, perhaps another account's; to use the one in {others[0]}:",
        without_variable(facts, "HF_TOKEN") if in_shell else remove(facts, used, DOCTOR),
    )


def readable_token(facts: Facts) -> Finding | None:
    """File permissions."""
    if not facts.token_readable:
        return None
    return Finding(
        "warning",
        f"other users of this machine can read {facts.token_readable}",
        "they can do with your account what the token may",
        f"chmod 600 {quoted(facts, facts.token_readable)}",
    )


def refused_token(facts: Facts) -> Finding | None:
    """The Hub does not know it."""
    if facts.hub_answer != 401 or not facts.tokens:
        return None
    return Finding(
        "warning",
        f"the Hub does not accept the token in {facts.tokens[0]}",
        "nothing can be pushed, and downloads with it are refused too; it was revoked, has expired or was "
        "not copied whole",
        f"make another at {TOKENS} and put it in this one's place",
    )


def read_only_token(facts: Facts) -> Finding | None:
    """A token for downloads."""
    if facts.hub_role != "read":
        return None
    return Finding(
        "warning",
        f"the token in {facts.tokens[0]} may only read",
        "the model cannot be pushed after the training",
        f"make one that may write at {TOKENS} and put it in this one's place",
    )


def narrow_token(facts: Facts) -> Finding | None:
    """A fine-grained token without write access to any repository."""
    if facts.hub_role != "fineGrained" or facts.hub_writes:
        return None
    return Finding(
        "warning",
        f"the fine-grained token in {facts.tokens[0]} may not write to any repository",
        "the model cannot be pushed after the training",
        f"edit it at {TOKENS}: tick write access to your repositories",
    )


def offline(facts: Facts) -> Finding | None:
    """A variable left from a test, or meant."""
    if not facts.hub_offline:
        return None
    return Finding(
        "note",
        "HF_HUB_OFFLINE is set",
        "models and data sets come from the cache only, and nothing is pushed",
        without_variable(facts, "HF_HUB_OFFLINE"),
    )


def unreachable(facts: Facts) -> Finding | None:
    """No answer within a few seconds."""
    if not facts.hub_asked or facts.hub_answer is not None:
        return None
    return Finding(
        "warning",
        "the Hub does not answer",
        "nothing can be downloaded or pushed: look at the network and its proxy (HTTPS_PROXY); without it "
        "the embedded model works:",
        "python lab.py run --recipe smollm2-135m",
    )


RULES = (
    no_token,
    unusable_token,
    two_tokens,
    readable_token,
    refused_token,
    read_only_token,
    narrow_token,
    offline,
    unreachable,
)
