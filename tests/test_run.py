import json
from concurrent.futures import ThreadPoolExecutor

import pytest

import finelab.run
from finelab import LabError, open_run, recipe
from finelab.run import ACCEPT_VARIABLE, RUN_VARIABLE, create_run


def test_a_runs_recipe_is_frozen_at_first_use(tmp_path, preset):
    folder = tmp_path / "trial"
    create_run(folder, preset)
    changed = recipe.override(preset, ["lora.r=8"])
    with pytest.raises(LabError, match=r"lora\.r: 16 -> 8.*--run NAME"):
        create_run(folder, changed)
    assert create_run(folder, preset).recipe == preset


def test_a_change_that_is_accepted_is_frozen(tmp_path, preset, monkeypatch, capsys):
    create_run(tmp_path, preset)
    wanted = recipe.override(preset, ["training.learning_rate=1e-4"])
    monkeypatch.setenv(ACCEPT_VARIABLE, "1")
    assert create_run(tmp_path, wanted).recipe == wanted == open_run(tmp_path).recipe
    assert "training.learning_rate: 0.0002 -> 0.0001" in capsys.readouterr().out


def test_what_leaves_the_weights_as_they_are_may_change(tmp_path, preset, capsys):
    """A session that was too long, a file to be merged into another dtype."""
    create_run(tmp_path, preset)
    wanted = recipe.override(preset, ["training.session_hours=5.8", "publish.merged_dtype=base"])
    assert create_run(tmp_path, wanted).recipe == wanted == open_run(tmp_path).recipe
    assert "publish.merged_dtype: 'float16' -> 'base'" in capsys.readouterr().out
    with pytest.raises(LabError, match=r"\(lora\.r: 16 -> 8\)"):
        create_run(tmp_path, recipe.override(preset, ["lora.r=8", "training.session_hours=2"]))
    assert open_run(tmp_path).recipe == wanted


def test_a_bare_name_is_a_run_of_the_lab(tmp_path, preset, monkeypatch):
    monkeypatch.setattr(finelab.run, "RUNS", tmp_path)
    create_run(tmp_path / "mine", recipe.override(preset, ["lora.r=8"]))
    monkeypatch.setenv(RUN_VARIABLE, "mine")
    assert open_run().recipe.lora.r == open_run("mine").recipe.lora.r == 8


def test_the_environment_names_the_run(tmp_path, preset, monkeypatch):
    create_run(tmp_path / "trial", recipe.override(preset, ["lora.r=8"]))
    monkeypatch.setenv(RUN_VARIABLE, str(tmp_path / "trial"))
    assert open_run().recipe.lora.r == 8
    assert open_run().name == "trial"


def test_evidence_is_merged_by_stage_and_lists_are_replaced(run):
    run.record("training", {"steps": 3})
    run.record("training", {"seconds": 1.5})
    run.record("identity", [1, 2])
    run.record("identity", [3])
    assert run.evidence() == {"training": {"steps": 3, "seconds": 1.5}, "identity": [3]}


def test_nothing_is_lost_of_what_two_notebooks_record_at_once(run):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: run.record(f"stage {number}", {"number": number}), range(40)))
    assert run.evidence() == {f"stage {number}": {"number": number} for number in range(40)}


@pytest.mark.parametrize("text", [b"{", b"[]", b"null", b'{"data": "\xfc"}'])
def test_damaged_evidence_is_named_with_what_makes_it_anew(run, text):
    (run.folder / "evidence.json").write_bytes(text)
    with pytest.raises(LabError, match=r"not valid JSON.*: python lab\.py run --run trial --from data$"):
        run.record("training", {"steps": 3})
    assert (run.folder / "evidence.json").read_bytes() == text


def test_a_stage_that_did_not_run_yet_is_named(run):
    with pytest.raises(LabError, match="run notebook 03_train of this run first"):
        run.require(run.adapter, "03_train")


def test_evidence_is_plain_json_with_unix_newlines(run):
    run.record("data", {"source": "Zoë"})
    raw = (run.folder / "evidence.json").read_bytes()
    assert b"\r" not in raw
    assert json.loads(raw)["data"]["source"] == "Zoë"
