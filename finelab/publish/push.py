"""Where a push goes: the Hub with a token, a folder of the run without one, by the same calls."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from finelab.errors import LabError
from finelab.files import sha256, staged
from finelab.run import Run

PUSHED_FILES = [  # nothing else leaves the machine: no optimizer state, no pickle, no token
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "generation_config.json",
    "adapter_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "README.md",
    "*.png",
    "LICENSE*",
    "USE_POLICY.md",
    "NOTICE",
]


def hub(run: Run, token: str | None) -> Any:
    """`HfApi` with the token, or a `FolderHub` that answers to the same calls and says so."""
    if token is None:
        folder = run.folder / "pushed"
        print(f"No Hub token found: the push goes to {folder}.")
        return FolderHub(folder)
    from huggingface_hub import HfApi

    return HfApi(token=token)


def record_push(run: Run, repo_id: str, commit: str, check: Any) -> None:
    """Record a verified push; LabError when a file on the other side is not the one sent."""
    if check.mismatches:
        names = ", ".join(str(getattr(each, "path", each)) for each in check.mismatches)
        raise LabError(f"{repo_id}: {names} arrived damaged; run this notebook again.")
    run.record(
        "publish",
        {
            "repo_id": repo_id,
            "commit": commit,
            "files_verified": check.checked_count,
            "private": run.recipe.publish.private,
        },
    )


@dataclass(frozen=True)
class FolderHub:
    """The calls of `HfApi` that a push needs, on a plain folder."""

    folder: Path

    def whoami(self) -> dict[str, str]:
        """The owner of the repositories."""
        return {"name": "local"}

    def create_repo(self, repo_id: str, private: bool, exist_ok: bool) -> None:
        """Nothing to do: the folder is made by the upload."""

    def upload_folder(self, repo_id: str, folder_path: Path, allow_patterns: list[str]) -> Any:
        """Copy the allowed files, all or none."""
        with staged(self.folder / repo_id) as stage:
            for path in _allowed(folder_path, allow_patterns):
                shutil.copy2(path, stage / path.name)
        return SimpleNamespace(oid="folder")

    def verify_repo_checksums(self, repo_id: str, local_dir: Path, revision: str) -> Any:
        """Compare every pushed file with the local one by its hash."""
        pushed = sorted((self.folder / repo_id).iterdir())
        wrong = [path.name for path in pushed if sha256(path) != sha256(Path(local_dir) / path.name)]
        return SimpleNamespace(checked_count=len(pushed), mismatches=wrong)


def _allowed(folder: Path, patterns: list[str]) -> list[Path]:
    return sorted(
        path
        for path in folder.iterdir()
        if path.is_file() and any(fnmatch(path.name, pattern) for pattern in patterns)
    )
