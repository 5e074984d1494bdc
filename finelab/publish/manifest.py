"""What may leave the machine: the files on a list, each with its hash, and the proof that goes with them."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from finelab.errors import LabError
from finelab.files import sha256, staged, write_json
from finelab.publish.token import find_tokens
from finelab.run import Run

MODEL_FILES = [
    "model.safetensors",
    "model-*-of-*.safetensors",
    "model.safetensors.index.json",
    "adapter_model.safetensors",
    "adapter_config.json",
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
]
DOCUMENTS = ["README.md", "*.png", "LICENSE*", "USE_POLICY.md", "NOTICE"]  # after the proof, no part of it
PUSHED_FILES = MODEL_FILES + DOCUMENTS  # nothing else: no optimizer state, no pickle, no token


@dataclass(frozen=True)
class Manifest:
    """The files of a folder that are pushed, name -> SHA-256, and the names of those that stay."""

    folder: Path
    files: dict[str, str]
    left: tuple[str, ...]

    @classmethod
    def of(cls, folder: Path) -> Manifest:
        """List and hash what may be pushed; LabError when there is no model, or when a file holds a token."""
        names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        pushed = [name for name in names if _matches(name, PUSHED_FILES)]
        if not any(name.endswith(".safetensors") for name in pushed):
            raise LabError(f"{folder} holds no model; run the step that writes it again.")
        for name in pushed:
            if found := find_tokens(_text(folder / name)):
                raise LabError(
                    f"{folder / name} contains a token ({found[0]}); take it out, revoke it where it was "
                    "made, and run this again. Nothing was pushed."
                )
        hashes = {name: sha256(folder / name) for name in pushed}
        return cls(folder, hashes, tuple(name for name in names if name not in hashes))

    @property
    def size_bytes(self) -> int:
        """What will be sent, at most."""
        return sum((self.folder / name).stat().st_size for name in self.files)

    @property
    def model_sha256(self) -> str:
        """One hash for everything that decides what the model says: all files but the documents.

        Where an adapter's base lies is left out of it: that is a folder here, and a name on the Hub.
        """
        lines = []
        for name, digest in sorted(self.files.items()):
            if name == "adapter_config.json":
                config = json.loads((self.folder / name).read_text(encoding="utf-8"))
                config.pop("base_model_name_or_path", None)
                digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()
            if not is_document(name):
                lines.append(f"{digest}  {name}\n")
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def __str__(self) -> str:
        sizes = {name: (self.folder / name).stat().st_size for name in self.files}
        rows = [f"{name:32} {sizes[name]:>15,} bytes  {self.files[name][:16]}" for name in self.files]
        return "\n".join([*rows, *(f"{name:32} stays here" for name in self.left)])


def proven(run: Run, name: str, folder: Path) -> Manifest:
    """The gate of a push: the folder's manifest, if the identity chain passed on exactly these files.

    `name` is the chain's word for them, "adapter" or "merged". LabError when a link failed, or none was
    measured on files with this `model_sha256`.
    """
    links = run.evidence().get("identity", [])
    for link in links:
        if link["to"] != "served" and not link["passed"]:  # a server's fault is not the files'
            raise LabError(
                f"{link['from']} -> {link['to']} of the identity chain did not pass, so nothing is pushed; "
                "mend what notebook 04_publish says about it and run it again."
            )
    files = Manifest.of(folder)
    if files.model_sha256 not in [link.get("sha256") for link in links if link["to"] == name]:
        raise LabError(
            f"{folder} is not what the identity chain was measured on, so it is not pushed; run notebook "
            "04_publish again from its start."
        )
    return files


def adapter_for_hub(run: Run) -> Path:
    """A copy of the run's adapter that names its base as the Hub does, for the adapter's own repository.

    PEFT writes this machine's folder into adapter_config.json, and into a README that the card replaces.
    """
    folder = run.folder / "adapter_for_hub"
    with staged(folder) as stage:
        for path in sorted(run.adapter.iterdir()):
            if _matches(path.name, MODEL_FILES):
                shutil.copy2(path, stage / path.name)
        config = json.loads((run.adapter / "adapter_config.json").read_text(encoding="utf-8"))
        config["base_model_name_or_path"] = run.recipe.publish.base_model
        write_json(stage / "adapter_config.json", config)
    return folder


def is_document(name: str) -> bool:
    """Whether a pushed file says something about the model, and is no part of it."""
    return _matches(name, DOCUMENTS)


def _matches(name: str, patterns: list[str]) -> bool:
    return "/" not in name and any(fnmatch(name, pattern) for pattern in patterns)


def _text(path: Path) -> bytes:
    """What a person may have written into a file: of weights only the header, a length and JSON."""
    with path.open("rb") as file:
        if path.suffix != ".safetensors":
            return file.read()
        return file.read(min(int.from_bytes(file.read(8), "little"), path.stat().st_size))
