import pytest

from finelab import LabError
from finelab.publish import PUSHED_FILES, hub, record_push


@pytest.fixture
def model_folder(tmp_path):
    folder = tmp_path / "merged"
    folder.mkdir()
    for name in (
        "model.safetensors",
        "config.json",
        "tokenizer.json",
        "chat_template.jinja",
        "README.md",
        ".hftoken",
        "token.txt",
        "optimizer.pt",
        "training_args.bin",
        "trainer_state.json",
    ):
        (folder / name).write_text(name, encoding="utf-8")
    return folder


def test_without_a_token_the_same_calls_fill_a_folder(run, model_folder, capsys):
    api = hub(run, token=None)
    assert "No Hub token found" in capsys.readouterr().out
    api.create_repo(repo_id="local/model", private=True, exist_ok=True)
    commit = api.upload_folder(repo_id="local/model", folder_path=model_folder, allow_patterns=PUSHED_FILES)
    pushed = run.folder / "pushed" / "local" / "model"
    assert sorted(path.name for path in pushed.iterdir()) == [
        "README.md",
        "chat_template.jinja",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    check = api.verify_repo_checksums(repo_id="local/model", local_dir=model_folder, revision=commit.oid)
    record_push(run, "local/model", commit.oid, check)
    assert run.evidence()["publish"]["files_verified"] == 5


def test_a_file_that_arrived_damaged_is_named(run, model_folder):
    api = hub(run, token=None)
    api.upload_folder(repo_id="local/model", folder_path=model_folder, allow_patterns=PUSHED_FILES)
    (run.folder / "pushed/local/model/config.json").write_text("flipped", encoding="utf-8")
    check = api.verify_repo_checksums(repo_id="local/model", local_dir=model_folder, revision="folder")
    with pytest.raises(LabError, match=r"config\.json arrived damaged"):
        record_push(run, "local/model", "folder", check)
    assert "publish" not in run.evidence()


def test_with_a_token_it_is_the_hubs_own_client_with_the_calls_we_make(run):
    import inspect

    from huggingface_hub import HfApi

    api = hub(run, token="hf_" + "a" * 30)
    assert isinstance(api, HfApi)
    for name, keywords in {
        "whoami": [],
        "create_repo": ["repo_id", "private", "exist_ok"],
        "upload_folder": ["repo_id", "folder_path", "allow_patterns"],
        "verify_repo_checksums": ["repo_id", "local_dir", "revision"],
    }.items():
        assert set(keywords) <= set(inspect.signature(getattr(api, name)).parameters)
