import inspect
import json
import shutil
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from finelab import LabError
from finelab.files import write_json
from finelab.publish.manifest import Manifest, adapter_for_hub, proven
from finelab.publish.push import FolderHub, changes, hub, record_push
from finelab.run import create_run
from tests.hub.loopback import LoopbackHub, point_client_at
from tests.hub.steps import is_whole, prove, push, write_model
from tests.hub.store import Account

SENT = ["README.md", "chat_template.jinja", "config.json", "model.safetensors", "tokenizer.json"]
SECRET = "hf_" + "Ab3dEf6hIj" * 4


@pytest.fixture
def server(tmp_path, monkeypatch):
    with LoopbackHub(tmp_path / "hub", part_bytes=100_000) as server:
        point_client_at(server, monkeypatch)
        yield server


@pytest.fixture
def run(run):
    write_model(run.merged)
    prove(run)
    return run


# --- the manifest


def test_only_the_files_on_the_list_are_on_the_manifest(run):
    for name in ("checkpoint-4/config.json", "LICENSES/token.txt"):
        (run.merged / name).parent.mkdir()
        (run.merged / name).write_text("{}", encoding="utf-8")
    for name in (".hftoken", "token.txt", "rng_state.pth", "pytorch_model.bin", "optimizer.safetensors"):
        (run.merged / name).write_text(name, encoding="utf-8")
    files = Manifest.of(run.merged)
    assert list(files.files) == SENT
    assert {".hftoken", "training_args.bin", "optimizer.safetensors", "checkpoint-4/config.json"} <= set(
        files.left
    )
    assert "model.safetensors" in str(files)
    assert "optimizer.pt                     stays here" in str(files)


@pytest.mark.parametrize("name", ["README.md", "tokenizer_config.json", "model.safetensors", "LICENSE.txt"])
def test_a_file_with_a_token_stops_the_push_and_is_named(run, name):
    content = SECRET.encode()
    if name == "model.safetensors":  # in its header, where tools put notes
        header = json.dumps({"__metadata__": {"note": SECRET}}).encode()
        content = len(header).to_bytes(8, "little") + header
    (run.merged / name).write_bytes(content)
    with pytest.raises(LabError, match=f"{name} contains a token") as error:
        Manifest.of(run.merged)
    assert SECRET not in str(error.value)


def test_a_folder_without_a_model_says_so(tmp_path):
    with pytest.raises(LabError, match="holds no model"):
        Manifest.of(tmp_path)


# --- the gate


def test_the_card_may_change_after_the_proof(run):
    (run.merged / "README.md").write_text("---\nlicense: mit\n---\n", encoding="utf-8")
    for name in ("LICENSE.txt", "USE_POLICY.md", "04_identity.png"):
        (run.merged / name).write_text(name, encoding="utf-8")
    assert {"LICENSE.txt", "USE_POLICY.md", "04_identity.png"} < proven(
        run, "merged", run.merged
    ).files.keys()


@pytest.mark.parametrize(
    "name", ["model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja", "vocab.json"]
)
def test_a_model_other_than_the_proven_one_is_refused(run, name):
    with (run.merged / name).open("ab") as file:
        file.write(b" ")
    with pytest.raises(LabError, match="is not what the identity chain was measured on"):
        proven(run, "merged", run.merged)


@pytest.mark.parametrize(
    ("links", "said"),
    [
        ([], "is not what the identity chain was measured on"),
        ([{"from": "base", "to": "adapter", "passed": False}], "base -> adapter of the identity chain"),
        ([{"from": "adapter", "to": "merged", "passed": True}], "is not what the identity chain"),
    ],
)
def test_without_a_chain_that_passed_nothing_is_pushed(run, links, said):
    write_json(run.folder / "evidence.json", {"identity": links})
    with pytest.raises(LabError, match=said):
        proven(run, "merged", run.merged)


def test_a_later_link_that_failed_closes_the_gate_too(run):
    links = run.evidence()["identity"]
    run.record("identity", [*links, {"from": "merged", "to": "pushed", "passed": False}])
    with pytest.raises(LabError, match="merged -> pushed"):
        proven(run, "merged", run.merged)


def test_a_server_that_said_something_else_does_not_close_it(run):
    links = run.evidence()["identity"]
    run.record("identity", [*links, {"from": "merged", "to": "served", "passed": False}])
    assert proven(run, "merged", run.merged).files


# --- the push, to the Hub in both of its ways and to a folder


@pytest.mark.parametrize("xet", [False, True], ids=["lfs", "xet"])
def test_a_push_is_one_private_commit_of_the_manifests_files(server, run, monkeypatch, xet):
    point_client_at(server, monkeypatch, xet)
    commit = push(run, server.token("alice"))
    repo = server.repo("alice/model")
    assert repo.private
    assert [each.message for each in repo.commits] == ["initial commit", "finelab: trial"]
    assert sorted(repo.head.files) == [".gitattributes", *SENT]
    assert is_whole(server, "alice/model", run)
    assert run.evidence()["publish"] == {
        "repo_id": "alice/model",
        "commit": commit,
        "files_verified": 5,
        "private": True,
        "model_sha256": run.evidence()["identity"][1]["sha256"],
    }


@pytest.mark.parametrize("xet", [False, True], ids=["lfs", "xet"])
def test_a_second_push_sends_nothing_and_says_so(server, run, monkeypatch, capsys, xet):
    point_client_at(server, monkeypatch, xet)
    token = server.token("alice")
    first = push(run, token)
    server.requests.clear()
    assert push(run, token) == first
    assert "alice/model has these 5 files already: nothing to send" in capsys.readouterr().out
    assert {each.method for each in server.requests if "/repos/create" not in each.path} == {"GET"}


def test_a_new_card_is_sent_alone(server, run):
    token = server.token("alice")
    push(run, token)
    (run.merged / "README.md").write_text("---\nlicense: mit\n---\nNew\n", encoding="utf-8")
    server.requests.clear()
    push(run, token)
    assert server.count("*", "*lfs*") == 0
    assert is_whole(server, "alice/model", run)


def test_without_a_token_the_same_calls_fill_a_folder(run, capsys):
    commit = push(run, token=None)
    assert "No Hub token found" in capsys.readouterr().out
    pushed = run.folder / "pushed" / "local" / "model"
    assert sorted(path.name for path in pushed.iterdir()) == SENT
    assert run.evidence()["publish"].items() >= {"repo_id": "local/model", "files_verified": 5}.items()
    assert push(run, token=None) == commit
    assert "nothing to send" in capsys.readouterr().out
    write_model(run.merged, seed=1)
    prove(run)
    assert push(run, token=None) != commit


def test_the_adapters_repository_is_recorded_beside_the_merged_one(server, run):
    commit = push(run, server.token("alice"))
    sent = changes_of(run, "adapter-repo")
    record_push(run, "adapter", sent, "c" * 40, check_of(sent))
    publish = run.evidence()["publish"]
    assert (publish["repo_id"], publish["commit"]) == ("alice/model", commit)
    assert publish["adapter"]["repo_id"] == "local/adapter-repo"


# --- what another push left there


@pytest.fixture
def another(server, run, tmp_path):
    """A second run of the same recipe, after the first was pushed."""
    push(run, server.token("alice"))
    another = create_run(tmp_path / "another", run.recipe)
    write_model(another.merged, seed=1)
    prove(another)
    return another


def test_another_runs_model_is_not_replaced(server, run, another):
    held = server.repo("alice/model").head.oid
    said = (
        rf"alice/model holds another model, of commit {held[:7]}, which run another did not push "
        r"\(model\.safetensors\).*publish\.repo_name=.*delete that repository on the Hub to replace it"
    )
    with pytest.raises(LabError, match=said):
        push(another, server.token("alice"))
    assert is_whole(server, "alice/model", run)
    push(another, server.token("alice"), "another-name")
    assert is_whole(server, "alice/another-name", another)


def test_a_repository_that_was_deleted_is_replaced(server, another):
    del server.store.repos["alice/model"]
    push(another, server.token("alice"))
    assert is_whole(server, "alice/model", another)


def test_a_push_that_ended_before_it_was_recorded_goes_on(server, run):
    commit = push(run, server.token("alice"))
    (run.folder / "evidence.json").unlink()
    prove(run)
    assert push(run, server.token("alice")) == commit == run.evidence()["publish"]["commit"]


def test_a_run_replaces_its_own_model(server, run):
    push(run, server.token("alice"))
    write_model(run.merged, seed=1)
    prove(run)
    push(run, server.token("alice"))
    assert is_whole(server, "alice/model", run)


def test_a_run_that_asks_for_a_public_repository_is_told_that_an_older_one_stays_private(server, run, capsys):
    push(run, server.token("alice"))
    public = replace(run.recipe, publish=replace(run.recipe.publish, private=False))
    push(replace(run, recipe=public), server.token("alice"))
    assert "alice/model stays private: publish.private=false makes a new" in capsys.readouterr().out
    push(replace(run, recipe=public), server.token("alice"), "new")
    assert not server.repo("alice/new").private
    assert "stays private" not in capsys.readouterr().out


# --- what is not recorded


def changes_of(run, name="model"):
    """A push to a folder up to its commit."""
    api, files = FolderHub(run.folder / "pushed"), proven(run, "merged", run.merged)
    repo = api.repo_info(repo_id=f"local/{name}")
    check = api.verify_repo_checksums(repo_id=repo.id, local_dir=run.merged, revision=repo.sha)
    sent = changes(run, files, repo, check)
    api.create_commit(repo_id=repo.id, operations=sent, parent_commit=sent.head, commit_message="x")
    return sent


def check_of(sent):
    api = FolderHub(sent.files.folder.parent / "pushed")
    return api.verify_repo_checksums(repo_id=sent.repo_id, local_dir=sent.files.folder, revision="x")


def damage(pushed):
    (pushed / "config.json").write_text("flipped", encoding="utf-8")


def lose(pushed):
    (pushed / "tokenizer.json").unlink()


def add(pushed):
    (pushed / "virus.exe").write_text("x", encoding="utf-8")


def add_what_stays(pushed):
    (pushed / "optimizer.pt").write_text("a state", encoding="utf-8")


@pytest.mark.parametrize(
    ("accident", "name"),
    [
        (damage, "config.json"),
        (lose, "tokenizer.json"),
        (add, "virus.exe"),
        (add_what_stays, "optimizer.pt"),
    ],
)
def test_a_repository_other_than_what_was_sent_is_not_recorded(run, accident, name):
    sent = changes_of(run)
    accident(run.folder / "pushed" / "local" / "model")
    with pytest.raises(LabError, match=rf"is not what was sent \({name}\)"):
        record_push(run, "merged", sent, "c" * 40, check_of(sent))
    assert "publish" not in run.evidence()


def test_a_model_that_changes_during_its_push_is_not_recorded(run):
    sent = changes_of(run)
    write_model(run.merged, seed=1)
    shutil.copy2(run.merged / "model.safetensors", run.folder / "pushed" / "local" / "model")
    with pytest.raises(LabError, match="the files changed here during the push"):
        record_push(run, "merged", sent, "c" * 40, check_of(sent))


# --- the adapter


def write_adapter(run):
    run.adapter.mkdir()
    shutil.copy2(run.merged / "model.safetensors", run.adapter / "adapter_model.safetensors")
    config = {"base_model_name_or_path": "/home/me/base", "r": 8, "lora_alpha": 16}
    write_json(run.adapter / "adapter_config.json", config)
    (run.adapter / "README.md").write_text("base_model: /home/me/base", encoding="utf-8")
    (run.adapter / "training_args.bin").write_text("a pickle", encoding="utf-8")


def test_the_pushed_adapter_names_its_base_on_the_hub_and_no_folder_of_this_machine(run):
    write_adapter(run)
    folder = adapter_for_hub(run)
    assert sorted(path.name for path in folder.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    assert config == {"base_model_name_or_path": run.recipe.publish.base_model, "r": 8, "lora_alpha": 16}


def test_the_adapters_proof_holds_for_its_copy_but_not_for_another_scale(run):
    write_adapter(run)
    link = {"from": "base", "to": "adapter", "passed": True, "sha256": Manifest.of(run.adapter).model_sha256}
    run.record("identity", [link])
    folder = adapter_for_hub(run)
    assert proven(run, "adapter", folder).folder == folder
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    write_json(folder / "adapter_config.json", config | {"lora_alpha": 32})
    with pytest.raises(LabError, match="is not what the identity chain was measured on"):
        proven(run, "adapter", folder)


# --- patience


@pytest.fixture
def slept(monkeypatch):
    waits = []
    monkeypatch.setattr("finelab.publish.push.time.sleep", waits.append)
    return waits


@pytest.mark.parametrize(
    ("headers", "wait_s"),
    [
        ({}, 2),
        ({"Retry-After": "7"}, 8),
        ({"Retry-After": "a date"}, 600),
        ({"Retry-After": "soon"}, 2),
        ({"ratelimit": '"api";r=0;t=55'}, 56),
        ({"ratelimit": '"api";r=9;t=55'}, 2),
    ],
)
def test_the_wait_that_the_hub_asks_for_is_kept(server, run, slept, capsys, headers, wait_s):
    if wait_s == 600:
        headers = {"Retry-After": format_datetime(datetime.now(UTC) + timedelta(seconds=600))}
    server.fail("/api/whoami-v2", status=429, headers=headers)
    assert hub(run, server.token("alice")).whoami()["name"] == "alice"
    assert slept == [pytest.approx(wait_s, abs=30 if wait_s == 600 else 0)]
    assert "The Hub gives 429: trying again in" in capsys.readouterr().out


def test_a_wait_of_an_hour_is_told_and_not_waited(server, run, slept):
    server.fail("/api/whoami-v2", status=429, headers={"Retry-After": "3600"})
    with pytest.raises(LabError, match="too many requests from this account; run this again in 61 min"):
        hub(run, server.token("alice")).whoami()
    assert slept == []


def test_a_read_only_token_is_refused_on_a_repository_that_exists(server, run):
    server.store.create("alice/model", True, Account("alice"))
    with pytest.raises(LabError, match=r"may not do this .*write access under Settings"):
        push(run, server.token("alice", "read"))
    assert len(server.repo("alice/model").commits) == 1


def test_the_cards_metadata_is_checked_before_anything_is_sent(server, run):
    (run.merged / "README.md").write_text("no metadata", encoding="utf-8")
    with pytest.raises(LabError, match=r"Invalid metadata in README\.md"):
        push(run, server.token("alice"))
    assert server.count("*", "*/preupload/*") == 0


def test_the_client_still_takes_the_keywords_we_pass(server, run):
    """And the folder takes them too."""
    keywords = {
        "whoami": set(),
        "create_repo": {"repo_id", "private", "exist_ok"},
        "repo_info": {"repo_id"},
        "verify_repo_checksums": {"repo_id", "local_dir", "revision"},
        "create_commit": {"repo_id", "operations", "parent_commit", "commit_message"},
        "snapshot_download": {"repo_id", "revision", "allow_patterns", "local_dir", "cache_dir"},
    }
    for name, passed in keywords.items():
        known = inspect.signature(getattr(hub(run, server.token("alice")).api, name)).parameters
        assert passed <= set(known)
        ours = inspect.signature(getattr(FolderHub(run.folder), name)).parameters
        assert passed <= set(ours) or "_" in ours
