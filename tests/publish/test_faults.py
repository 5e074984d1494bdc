"""What can go wrong with a push, over the real protocol: it ends well or in one clear sentence.

Whatever happens, the repository's main branch is the old one or the whole new one, nothing is recorded
that was not verified, and the next run finishes.
"""

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from finelab import LabError
from finelab.files import sha256
from finelab.publish.manifest import proven
from finelab.publish.push import fetch_pushed, hub
from tests.hub.loopback import LoopbackHub, point_client_at
from tests.hub.steps import is_whole, prove, push, write_model
from tests.hub.store import Account

REPO = "alice/model"
ROOT = Path(__file__).parents[2]


@pytest.fixture
def server(tmp_path):
    with LoopbackHub(tmp_path / "hub", part_bytes=100_000) as server:
        yield server


@pytest.fixture
def run(run):
    write_model(run.merged)
    prove(run)
    return run


@pytest.fixture(autouse=True)
def without_waits(monkeypatch):
    monkeypatch.setattr("finelab.publish.push.WAITS_S", (0.0, 0.0))


def planned(path, **fault):
    return lambda server, monkeypatch: server.fail(path, **fault)


def read_only(server, monkeypatch):
    return server.token("alice", "read")


def silent(server, monkeypatch):
    monkeypatch.setattr("finelab.publish.push.SILENCE_S", 0.2)
    server.fail("*/tree/*", delay_s=20.0, times=None)


def name_taken(server, monkeypatch):
    repo = server.store.create(REPO, True, Account("alice"))
    repo.head.files["photos.zip"] = server.store.keep_regular(b"something else")


def public(server, monkeypatch):
    server.store.create(REPO, False, Account("alice"))


FAULTS = {
    "401": (planned("*/preupload/*", status=401), r"does not accept the token hf_….*expired"),
    "403": (planned("*/commit/*", status=403), r"token hf_….* may not do this \(planned fault 403\)"),
    "404": (planned("*/preupload/*", status=404), "the Hub has no such repository"),
    "409": (planned("*/commit/*", status=409), "changed by somebody else meanwhile"),
    "412": (planned("*/commit/*", status=412), "changed by somebody else meanwhile"),
    "429 with Retry-After": (planned("*/repos/create", status=429, headers={"Retry-After": "0"}), None),
    "500 once": (planned("*/commit/*", status=500), None),
    "500 for ever": (planned("*/commit/*", status=500, times=None), "the Hub gives 500 each time"),
    "cut mid-file": (planned("/_lfs/*", method="PUT", cut=50_000), None),
    "flipped byte": (planned("/_lfs/*", method="PUT", flip=True), "does not have the SHA-256"),
    "slow server": (planned("*", delay_s=0.05, times=None), None),
    "silent server": (silent, r"the Hub gives no answer \(ReadTimeout\) each time"),
    "commit done, answer lost": (planned("*/commit/*", lost=True), None),
    "read-only token": (read_only, "don't have the rights to create"),
    "name taken": (name_taken, r"holds files of something else \(photos\.zip\)"),
    "repo public": (public, r"alice/model is public.*Nothing was sent"),
}
LFS_ALONE = {"cut mid-file", "flipped byte"}  # xet's bytes do not pass this server
NEEDS_A_PERSON = {"name taken", "repo public"}
CASES = [(name, xet) for xet in (False, True) for name in FAULTS if not (xet and name in LFS_ALONE)]


@pytest.mark.parametrize(("name", "xet"), CASES, ids=[f"{n}, {'xet' if x else 'lfs'}" for n, x in CASES])
def test_a_push_ends_well_or_in_one_sentence(server, run, monkeypatch, name, xet):
    point_client_at(server, monkeypatch, xet)
    plan, sentence = FAULTS[name]
    token = server.token("alice")
    with monkeypatch.context() as meanwhile:
        faulty = plan(server, meanwhile) or token
        if sentence is None:
            push(run, faulty)
        else:
            with pytest.raises(LabError, match=sentence) as error:
                push(run, faulty)
            assert "\n" not in str(error.value)
            assert faulty not in str(error.value)
            assert "publish" not in run.evidence()
    assert all(fault.seen for fault in server.faults)
    if name in NEEDS_A_PERSON:
        assert server.count("*", "*/preupload/*") == server.count("*", "*/commit/*") == 0
        return
    server.faults.clear()
    commit = push(run, token)
    assert run.evidence()["publish"]["commit"] == commit == server.repo(REPO).head.oid
    assert is_whole(server, REPO, run)
    assert len(server.repo(REPO).commits) == 2  # the first one and ours: nothing was pushed twice


def test_somebody_elses_commit_in_between_is_not_overwritten(server, run, monkeypatch, capsys):
    """The look at the repository, then another commit, then ours: the Hub's own 412."""
    point_client_at(server, monkeypatch)
    token = server.token("alice")
    look = server.store.repo

    def look_and_let_another_in(repo_id, account, write=False):
        repo = look(repo_id, account, write)
        if write and len(repo.commits) == 1:
            server.store.commit(repo, [{"key": "header", "value": {"summary": "another"}}])
        return repo

    monkeypatch.setattr(server.store, "repo", look_and_let_another_in)
    with pytest.raises(LabError, match="changed by somebody else meanwhile"):
        push(run, token)
    assert [commit.message for commit in server.repo(REPO).commits] == ["initial commit", "another"]
    push(run, token)
    assert is_whole(server, REPO, run)


@pytest.mark.parametrize(
    ("status", "said"), [(401, "does not accept the token"), (403, "may not do this"), (404, "no such repo")]
)
def test_a_refusal_that_xet_meets_ends_in_the_same_sentence(server, run, monkeypatch, status, said):
    point_client_at(server, monkeypatch, xet=True)
    server.fail("*/xet-write-token/*", status=status)
    with pytest.raises(LabError, match=said):
        push(run, server.token("alice"))
    assert "publish" not in run.evidence()


@pytest.fixture
def pushed(server, run, monkeypatch):
    """A pushed run, its files, and the client to fetch it with."""
    point_client_at(server, monkeypatch)
    token = server.token("alice")
    commit = push(run, token)
    server.requests.clear()
    return hub(run, token), commit, proven(run, "merged", run.merged)


def fetch(run, pushed):
    api, commit, files = pushed
    return fetch_pushed(api, REPO, commit, files, run.folder / "copy")


def test_a_download_cut_mid_file_goes_on_where_it_was(server, run, pushed, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 10_000)
    server.fail("/_cdn/*", cut=150_000)
    fetch(run, pushed)
    assert server.count("GET", "/_cdn/*") == 2
    assert not any(each.authorized for each in server.requests if each.path.startswith("/_cdn/"))


def test_a_byte_flipped_on_the_way_back_is_found(server, run, pushed):
    server.fail("/_cdn/*", flip=True)
    with pytest.raises(LabError, match=r"model\.safetensors of alice/model at .* came back other"):
        fetch(run, pushed)
    assert not (run.folder / "copy").exists()
    assert sha256(fetch(run, pushed) / "model.safetensors") == pushed[2].files["model.safetensors"]


def test_an_old_cache_is_not_taken_for_the_pushed_copy(server, run, pushed, monkeypatch, tmp_path):
    """The client alone gives the old snapshot without a word when the Hub fails."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    api, old, _ = pushed
    api.snapshot_download(repo_id=REPO)
    write_model(run.merged, seed=1)
    prove(run)
    commit = push(run, api.api.token)
    server.fail("/api/models/alice/model*", status=500, times=None)
    assert Path(api.snapshot_download(repo_id=REPO)).name == old
    files = proven(run, "merged", run.merged)
    with pytest.raises(LabError, match="gives 500 each time"):
        fetch(run, (api, commit, files))
    assert not (run.folder / "copy").exists()
    server.faults.clear()
    fetch(run, (api, commit, files))


def test_a_damaged_cache_is_not_asked(server, run, pushed, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    api, commit, files = pushed
    cached = Path(api.snapshot_download(repo_id=REPO, revision=commit)) / "config.json"
    cached.write_bytes(b" " * cached.stat().st_size)
    assert sha256(fetch(run, pushed) / "config.json") == files.files["config.json"]


def test_an_upload_that_never_works_ends_after_the_clients_own_tries(server, run, monkeypatch):
    point_client_at(server, monkeypatch)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    server.fail("/_lfs/*", method="PUT", status=500, times=None)
    with pytest.raises(LabError, match="the Hub gives 500 each time"):
        push(run, server.token("alice"))
    assert server.count("PUT", "*") == 6
    assert "publish" not in run.evidence()


@pytest.mark.slow
@pytest.mark.parametrize("xet", [False, True], ids=["lfs", "xet"])
def test_killed_at_random_moments_nothing_half_is_called_done(server, run, monkeypatch, xet):
    """Ten kills spread over the requests of a push, each a random few milliseconds after one."""
    point_client_at(server, monkeypatch, xet)
    token = server.token("alice")
    prepare(run, 0)
    assert start(run, server, token, "rehearsal", xet).wait() == 0
    total = len(server.requests)
    server.fail("*", delay_s=0.01, times=None)
    chance, killed = random.Random(0), 0
    for number in range(10):
        prepare(run, number + 1)
        name, before = f"model-{number}", len(server.requests)
        child = start(run, server, token, name, xet)
        wanted = before + 1 + int(total * (number + chance.random()) / 10)
        server.wait_until(lambda wanted=wanted: len(server.requests) >= wanted)
        time.sleep(chance.uniform(0, 0.02))
        child.kill()
        killed += child.wait() != 0
        server.wait_until(lambda: server.busy == 0)
        check_after_kill(server, run, f"alice/{name}")
        commit = push(run, token, name)
        assert run.evidence()["publish"]["commit"] == commit
        assert is_whole(server, f"alice/{name}", run)
        assert len(server.repo(f"alice/{name}").commits) == 2
    assert killed >= 8


def prepare(run, seed):
    """Other weights each time, as the server keeps those that came, of a run that pushed nothing yet."""
    (run.folder / "evidence.json").unlink()
    write_model(run.merged, 1_000_000, seed)
    prove(run)


def start(run, server, token, name, xet):
    environment = {
        **os.environ,
        "HF_ENDPOINT": server.url,
        "HF_TOKEN": token,
        "HF_HUB_DISABLE_XET": str(not xet),
    }
    command = [sys.executable, "-m", "tests.hub.steps", str(run.folder), name]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def check_after_kill(server, run, repo_id):
    """Main is as it was or whole; what is recorded as published is what main holds."""
    repo = server.store.repos.get(repo_id)
    whole = repo is not None and is_whole(server, repo_id, run)
    assert repo is None or whole or list(repo.head.files) == [".gitattributes"]
    published = run.evidence().get("publish")
    assert published is None or (whole and published["commit"] == repo.head.oid)
