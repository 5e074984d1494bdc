import json

import pytest

from finelab.train.checkpoint import MANIFEST, REQUIRED, newest_whole, seal


@pytest.fixture
def checkpoints(tmp_path):
    """Three sealed checkpoints, steps 2, 4 and 10."""
    for step in (2, 4, 10):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        for name in (*REQUIRED, "rng_state.pth"):
            (folder / name).write_text(f"{name} of step {step}", encoding="utf-8")
        seal(folder, elapsed_s=step * 1.5)
    return tmp_path


def test_the_newest_by_number_is_taken(checkpoints):
    found = newest_whole(checkpoints)
    assert (found.step, found.elapsed_s) == (10, 15.0)


def test_no_checkpoint_is_a_fresh_start(tmp_path):
    assert newest_whole(tmp_path / "nothing") is None


@pytest.mark.parametrize("name", [*REQUIRED, "rng_state.pth", MANIFEST])
@pytest.mark.parametrize("damage", ["missing", "truncated", "changed"])
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_taken(checkpoints, name, damage, capsys):
    path = checkpoints / "checkpoint-10" / name
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:5])
    else:
        path.write_text("something else", encoding="utf-8")
    assert newest_whole(checkpoints).step == 4
    said = capsys.readouterr().out
    assert "checkpoint-10 is not whole" in said
    assert len(list(checkpoints.glob("broken-checkpoint-10-*"))) == 1
    assert newest_whole(checkpoints).step == 4


def test_a_manifest_that_leaves_out_the_optimizer_does_not_count(checkpoints):
    path = checkpoints / "checkpoint-10" / MANIFEST
    manifest = json.loads(path.read_text(encoding="utf-8"))
    del manifest["sha256"]["optimizer.pt"]
    path.write_text(json.dumps(manifest), encoding="utf-8")
    (checkpoints / "checkpoint-10" / "optimizer.pt").unlink()
    assert newest_whole(checkpoints).step == 4
