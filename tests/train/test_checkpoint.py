import json

import pytest

from finelab.train.checkpoint import (
    MANIFEST,
    REQUIRED,
    by_step,
    differences,
    newest_whole,
    rotate,
    seal,
)


@pytest.fixture
def checkpoints(tmp_path):
    """Three sealed checkpoints, steps 2, 4 and 10, of a run in float16, which has a scaler."""
    for step in (2, 4, 10):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        for name in (*REQUIRED, "scaler.pt"):
            (folder / name).write_text(f"{name} of step {step}", encoding="utf-8")
        seal(folder, step * 1.5, {"lora.r": 8}, {"weights_sha256": f"of step {step}"}, 7_000)
    return tmp_path


def rewrite(folder, change):
    path = folder / MANIFEST
    manifest = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(change(manifest)), encoding="utf-8")


def test_the_newest_by_number_is_taken_with_what_it_was_sealed_with(checkpoints):
    found = newest_whole(checkpoints)
    assert (found.step, found.elapsed_s) == (10, 15.0)
    assert found.fingerprint == {"lora.r": 8}
    assert found.certificate == {"weights_sha256": "of step 10"}
    assert found.peak_memory_bytes == 7_000


def test_no_checkpoint_is_a_fresh_start(tmp_path):
    assert newest_whole(tmp_path / "nothing") is None


@pytest.mark.parametrize("name", [*REQUIRED, "scaler.pt", MANIFEST])
@pytest.mark.parametrize("damage", ["missing", "empty", "truncated", "changed"])
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_taken(checkpoints, name, damage, capsys):
    path = checkpoints / "checkpoint-10" / name
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "truncated":
        path.write_bytes(content[:-5])
    else:
        path.write_bytes(content.replace(b"1", b"2", 1))
    assert newest_whole(checkpoints).step == 4
    said = capsys.readouterr().out
    assert "checkpoint-10 is not whole" in said
    if name != MANIFEST:
        assert name in said
    assert len(list(checkpoints.glob("broken-checkpoint-10-*"))) == 1
    assert newest_whole(checkpoints).step == 4


@pytest.mark.parametrize(
    "change",
    [
        lambda manifest: [manifest],
        lambda manifest: "text",
        lambda manifest: None,
        lambda manifest: manifest | {"sha256": 7},
        lambda manifest: manifest | {"sha256": list(manifest["sha256"])},
        lambda manifest: manifest | {"elapsed_s": "long"},
        lambda manifest: manifest | {"elapsed_s": manifest["elapsed_s"] + 1},
        lambda manifest: manifest | {"certificate": {}},
        lambda manifest: {key: manifest[key] for key in manifest if key != "fingerprint"},
    ],
)
def test_a_manifest_that_says_something_else_does_not_count(checkpoints, change, capsys):
    rewrite(checkpoints / "checkpoint-10", change)
    assert newest_whole(checkpoints).step == 4
    assert "checkpoint-10 is not whole (its manifest" in capsys.readouterr().out


def test_a_checkpoint_sealed_without_its_optimizer_does_not_count(checkpoints, capsys):
    folder = checkpoints / "checkpoint-10"
    (folder / "optimizer.pt").unlink()
    seal(folder, 15.0, {}, {}, 0)
    assert newest_whole(checkpoints).step == 4
    assert "optimizer.pt is missing" in capsys.readouterr().out


def test_all_broken_is_a_fresh_start_and_each_is_named(checkpoints, capsys):
    for path in checkpoints.glob("*/optimizer.pt"):
        path.unlink()
    assert newest_whole(checkpoints) is None
    said = capsys.readouterr().out
    assert all(f"checkpoint-{step} is not whole (optimizer.pt is missing)" in said for step in (2, 4, 10))


def test_differences_name_what_was_what_is_and_what_came_or_went():
    old, new = {"a": 1, "b": [1], "gone": None, "left": 2}, {"a": 1, "b": [2], "came": "x"}
    assert differences(old, new) == ["b: [1] -> [2]", "left: 2 -> None", "came: None -> 'x'"]


@pytest.mark.parametrize(
    ("limit", "best", "left"),
    [
        (1, None, {10}),
        (2, None, {4, 10}),
        (3, None, {2, 4, 10}),
        (1, 2, {2, 10}),
        (2, 2, {2, 10}),
        (2, 10, {4, 10}),
        (3, 2, {2, 4, 10}),
    ],
)
def test_the_newest_and_the_best_are_kept_and_as_many_as_asked_for(checkpoints, limit, best, left):
    rotate(checkpoints, limit, best)
    assert {int(path.name.rpartition("-")[2]) for path in checkpoints.iterdir()} == left


def test_the_same_rows_of_a_step_shared_out_otherwise_are_no_change():
    micro, accumulation = "training.per_device_train_batch_size", "training.gradient_accumulation_steps"
    one, two, other = ({micro: m, accumulation: a, "lora.r": 8} for m, a in ((8, 1), (4, 2), (4, 1)))
    assert differences(by_step(one), by_step(two)) == []
    assert differences(by_step(one), by_step(other)) == [f"{micro}: 8 -> 4"]
