"""The loopback Hub against the real client, so that what is tested with it holds on the real one."""

import json
import os

import pytest
from huggingface_hub import CommitOperationAdd, HfApi, get_hf_file_metadata, hf_hub_url
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import get_session

from tests.hub.loopback import LoopbackHub, point_client_at
from tests.hub.store import git_oid

REPO = "alice/model"


@pytest.fixture
def server(tmp_path, monkeypatch):
    with LoopbackHub(tmp_path / "hub", part_bytes=1 << 20) as server:
        point_client_at(server, monkeypatch)
        yield server


@pytest.fixture
def api(server):
    return HfApi(endpoint=server.url, token=server.token("alice"))


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(os.urandom(2_500_000))
    (folder / "config.json").write_text("{}", encoding="utf-8")
    (folder / "empty.txt").write_text("", encoding="utf-8")
    return folder


def upload(api, folder, **options):
    api.create_repo(REPO, private=True, exist_ok=True)
    operations = [CommitOperationAdd(path.name, path) for path in sorted(folder.iterdir())]
    return api.create_commit(REPO, operations, commit_message="all", **options)


@pytest.mark.parametrize("sent", [False, True], ids=["sent by lfs", "sent by xet"])
@pytest.mark.parametrize("fetched", [False, True], ids=["fetched by lfs", "fetched by xet"])
def test_what_goes_up_comes_down(server, api, folder, tmp_path, monkeypatch, sent, fetched):
    point_client_at(server, monkeypatch, xet=sent)
    commit = upload(api, folder)
    point_client_at(server, monkeypatch, xet=fetched)
    api.snapshot_download(REPO, revision=commit.oid, local_dir=tmp_path / "back", cache_dir=tmp_path / "c")
    for path in folder.iterdir():
        assert (tmp_path / "back" / path.name).read_bytes() == path.read_bytes()
    check = api.verify_repo_checksums(REPO, local_dir=folder, revision=commit.oid)
    assert (check.checked_count, check.mismatches, check.missing_paths) == (3, [], [".gitattributes"])
    plain_download = sent is False or fetched is False
    assert server.count("GET", "/_cdn/*") == (1 if plain_download else 0)


def test_a_large_file_goes_up_in_parts_and_no_token_with_them(server, api, folder):
    upload(api, folder)
    assert server.count("PUT", "/_lfs/*") == 3
    assert not any(each.authorized for each in server.requests if each.path.startswith("/_lfs/"))
    server.requests.clear()
    upload(api, folder)
    assert server.count("PUT", "*") == server.count("*", "*/commit/*") == 0


def test_the_files_are_described_as_git_and_lfs_name_them(server, api, folder):
    commit = upload(api, folder)
    weights, config = api.get_paths_info(REPO, ["model.safetensors", "config.json"], revision=commit.oid)
    assert config.blob_id == git_oid(b"{}") == "9e26dfeeb6e641a33dae4961196235bdb965b21b"
    url = hf_hub_url(REPO, "model.safetensors", revision=commit.oid, endpoint=server.url)
    metadata = get_hf_file_metadata(url, token=api.token)
    assert (metadata.etag, metadata.size) == (weights.lfs.sha256, 2_500_000)
    assert metadata.commit_hash == commit.oid
    assert metadata.location.startswith(server.files_url)


@pytest.mark.parametrize(
    ("asked", "status", "slice_", "content_range"),
    [
        (None, 200, slice(None), None),
        ("bytes=0-9", 206, slice(0, 10), "bytes 0-9/2500000"),
        ("bytes=2499990-", 206, slice(-10, None), "bytes 2499990-2499999/2500000"),
        ("bytes=2499990-9999999", 206, slice(-10, None), "bytes 2499990-2499999/2500000"),
        ("bytes=2500000-", 416, slice(0, 0), "bytes */2500000"),
    ],
)
def test_a_range_of_a_file_can_be_asked_for(server, api, folder, asked, status, slice_, content_range):
    upload(api, folder)
    sha256 = server.repo(REPO).head.files["model.safetensors"].sha256
    headers = {"Range": asked} if asked else {}
    answer = get_session().get(f"{server.files_url}/_cdn/{sha256}", headers=headers)
    assert (answer.status_code, answer.headers.get("Content-Range")) == (status, content_range)
    assert answer.content == (folder / "model.safetensors").read_bytes()[slice_]


def test_who_may_see_and_write(server, api, folder):
    upload(api, folder)
    stranger = HfApi(endpoint=server.url, token=server.token("bob"))
    for caller in (stranger, HfApi(endpoint=server.url, token=False)):
        with pytest.raises(RepositoryNotFoundError):
            caller.repo_info(REPO)
    reader = HfApi(endpoint=server.url, token=server.token("alice", "read"))
    assert reader.repo_info(REPO).private
    reader.auth_check(REPO)
    for forbidden in (
        lambda: reader.auth_check(REPO, write=True),
        lambda: upload(reader, folder),
        lambda: stranger.create_repo("alice/other"),
    ):
        with pytest.raises((HfHubHTTPError, ValueError)):
            forbidden()
    with pytest.raises(HfHubHTTPError, match="Invalid user token"):
        HfApi(endpoint=server.url, token="hf_unknown").whoami()


def test_what_is_not_there_is_named_as_the_client_expects(server, api, folder):
    commit = upload(api, folder)
    with pytest.raises(RevisionNotFoundError):
        api.repo_info(REPO, revision="0" * 40)
    with pytest.raises(EntryNotFoundError):
        api.hf_hub_download(REPO, "absent.json", revision=commit.oid)
    with pytest.raises(RepositoryNotFoundError):
        api.repo_info("alice/absent")


def test_a_commit_on_a_parent_that_moved_is_refused(server, api, folder):
    api.create_repo(REPO)
    first = api.repo_info(REPO).sha
    upload(api, folder)
    (folder / "config.json").write_text("[]", encoding="utf-8")
    with pytest.raises(HfHubHTTPError, match="412"):
        upload(api, folder, parent_commit=first)
    assert len(server.repo(REPO).commits) == 2


def test_a_commit_of_a_file_that_never_came_is_refused(server, api):
    api.create_repo(REPO)
    header = {"key": "header", "value": {"summary": "x"}}
    file = {"key": "lfsFile", "value": {"path": "a", "oid": "0", "size": 1}}
    answer = get_session().post(
        f"{server.url}/api/models/{REPO}/commit/main",
        content=f"{json.dumps(header)}\n{json.dumps(file)}",
        headers={"Authorization": f"Bearer {api.token}"},
    )
    assert answer.status_code == 400
    assert len(server.repo(REPO).commits) == 1


def test_faults_are_used_up_in_order_and_only_where_they_belong(server, api):
    server.fail("/api/whoami-v2", status=503, times=2, headers={"X-Note": "here"})
    api.create_repo(REPO)
    statuses = [get_session().get(f"{server.url}/api/whoami-v2").status_code for _ in range(3)]
    assert statuses == [503, 503, 401]
