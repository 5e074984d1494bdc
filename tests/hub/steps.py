"""A run that may be pushed, and the push of notebook 04_publish, cell by cell.

`python -m tests.hub.steps RUN REPO_NAME` pushes with HF_ENDPOINT and HF_TOKEN: a process to be killed.
"""

import json
import os
import random
import sys
from pathlib import Path

from finelab.publish.manifest import Manifest, proven
from finelab.publish.push import changes, hub, record_push
from finelab.run import Run, open_run
from tests.hub.loopback import LoopbackHub

CARD = "---\nlicense: apache-2.0\n---\n# A model\n"


def write_model(folder: Path, size: int = 300_000, seed: int = 0) -> None:
    """A folder as a merge leaves it, with `size` random bytes of weights, and files that must not leave."""
    folder.mkdir(parents=True, exist_ok=True)
    tensor = {"w": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}
    header = json.dumps(tensor).encode()
    weights = random.Random(seed).randbytes(size)
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + weights)
    texts = {
        "config.json": '{"model_type": "llama"}',
        "tokenizer.json": '{"model": {}}',
        "chat_template.jinja": "{{ messages }}",
        "README.md": CARD,
        "training_args.bin": "a pickle",
        "optimizer.pt": "a state",
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")


def prove(run: Run) -> None:
    """Record an identity chain that passed on the merged folder as it is now."""
    links = [
        {"from": "base", "to": "adapter", "passed": True},
        {"from": "adapter", "to": "merged", "passed": True, "sha256": Manifest.of(run.merged).model_sha256},
    ]
    run.record("identity", links)


def push(run: Run, token: str | None, repo_name: str = "model") -> str:
    """Push the merged model as the notebook does, and return the commit."""
    files = proven(run, "merged", run.merged)
    api = hub(run, token)
    repo_id = f"{api.whoami()['name']}/{repo_name}"
    api.create_repo(repo_id=repo_id, private=run.recipe.publish.private, exist_ok=True)
    repo = api.repo_info(repo_id=repo_id)
    check = api.verify_repo_checksums(repo_id=repo_id, local_dir=files.folder, revision=repo.sha)
    sent = changes(run, files, repo, check)
    print(sent)
    commit = api.create_commit(
        repo_id=repo_id, operations=sent, parent_commit=sent.head, commit_message="finelab: trial"
    )
    check = api.verify_repo_checksums(repo_id=repo_id, local_dir=files.folder, revision=commit.oid)
    record_push(run, "merged", sent, commit.oid, check)
    return commit.oid


def is_whole(server: LoopbackHub, repo_id: str, run: Run) -> bool:
    """Whether the repository's main branch has every file of the run's manifest, and no other."""
    held = {path: server.store.content(file.etag) for path, file in server.repo(repo_id).head.files.items()}
    held.pop(".gitattributes")
    sent = {name: run.merged / name for name in Manifest.of(run.merged).files}
    return held.keys() == sent.keys() and all(
        held[name].read_bytes() == sent[name].read_bytes() for name in sent
    )


if __name__ == "__main__":
    print("pushing", flush=True)
    push(open_run(sys.argv[1]), os.environ["HF_TOKEN"], sys.argv[2])
