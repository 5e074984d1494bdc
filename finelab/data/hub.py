"""A data set of the Hub, at one commit."""

from __future__ import annotations

import re
from typing import Any

from finelab.errors import LabError

_LOG_IN = "log in with `hf auth login` or HF_TOKEN"
_LOCAL = "give a local file with --data"
_STOPPED = "stopped sending it; try again later"
_CONFIGS = re.compile(r"available configs: \['(.+?)'\]")
_TOKEN = re.compile(r"hf_\w+")


def load(name: str, part: str | None, revision: str | None) -> tuple[str, Any]:
    """The commit that `revision` (default: the main branch) stands for, and a split there.

    `part` is a configuration, a split, or `configuration:split`; left out, they are the default one and
    `train`. The split is a `datasets.Dataset`, downloaded and memory-mapped. Raises LabError when it cannot
    be had.
    """
    from datasets import load_dataset
    from huggingface_hub import HfApi

    try:
        commit = HfApi().dataset_info(name, revision=revision).sha
        config, split = _config_and_split(name, part, commit)
        splits = load_dataset(name, config, revision=commit)
    except Exception as error:  # the two clients raise a dozen kinds
        raise LabError(_sentence(name, revision, error)) from error
    if split not in splits:
        there, chosen = ", ".join(splits), f"{config}:" if config else ""
        raise LabError(
            f"the data set {name!r} has no split named {split}; there are: {there}; "
            f"choose one as {name}:{chosen}{next(iter(splits))}."
        )
    # when the Hub stops answering halfway, `datasets` takes any older copy from its cache
    if not all(commit in file["filename"] for file in splits[split].cache_files):
        raise LabError(f"the data set {name!r} cannot be loaded at {commit[:7]}: the Hub {_STOPPED}.")
    return commit, splits[split]


def _config_and_split(name: str, part: str | None, commit: str) -> tuple[str | None, str]:
    from datasets import get_dataset_config_names

    if part is None:
        return None, "train"
    first, _, rest = part.partition(":")
    if first in get_dataset_config_names(name, revision=commit):
        return first, rest or "train"
    return None, part


def _sentence(name: str, revision: str | None, error: BaseException) -> str:
    from huggingface_hub import constants, errors
    from huggingface_hub.utils import httpx

    hub, said = constants.ENDPOINT, _said(error)
    gated = f"is gated; accept its terms at {hub}/datasets/{name} and {_LOG_IN}"
    unreachable = f"cannot be loaded: no answer from {hub}; check the network, or {_LOCAL}"
    texts = {  # where `datasets` drops the cause
        "is a gated dataset": gated,
        "scripts are no longer supported": f"needs its own code, which is never run; {_LOCAL}",
        "on the Hugging Face Hub either": f"cannot be loaded: {hub} {_STOPPED}, or {_LOCAL}",
        "Invalid credentials": f"cannot be loaded: {hub} refuses your token; {_LOG_IN} again",
    }
    if configs := _CONFIGS.search(said):
        names = configs[1].split("', '")
        texts["available configs"] = (
            f"has several configurations, and none is the default; there are: {', '.join(names)}; "
            f"choose one as {name}:{names[0]}"
        )
    kinds = {
        errors.GatedRepoError: gated,
        errors.RevisionNotFoundError: f"has no revision {revision!r}; give a branch, a tag or a commit of it",
        errors.RepositoryNotFoundError: f"is not on the Hub, or is private; check the name, or {_LOG_IN}",
        errors.OfflineModeIsEnabled: f"cannot be loaded while HF_HUB_OFFLINE is set; unset it, or {_LOCAL}",
        httpx.TransportError: unreachable,
        ConnectionError: unreachable,
    }
    meanings = [meaning for text, meaning in texts.items() if text in said]
    meanings += [meaning for kind, meaning in kinds.items() if _has_cause(error, kind)]
    meanings += [f"cannot be loaded ({said[:300]}); {_LOCAL}"]
    return f"the data set {name!r} {meanings[0]}."


def _said(error: BaseException) -> str:
    """The client's own words on one line, without a token."""
    from huggingface_hub.errors import HfHubHTTPError

    cause = error if isinstance(error, HfHubHTTPError) else error.__cause__ or error
    return _TOKEN.sub("hf_…", " ".join(f"{type(cause).__name__}: {cause}".split()))


def _has_cause(error: BaseException | None, kind: type) -> bool:
    """Whether `error`, or what it was raised from, is of that kind."""
    while error and not isinstance(error, kind):
        error = error.__cause__
    return error is not None
