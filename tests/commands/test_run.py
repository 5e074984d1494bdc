"""`lab.py run`: what its options mean, which stages it does, and what it never loses."""

import argparse
import os

import pytest

from finelab import LabError
from finelab.__main__ import main
from finelab.commands import run as command
from finelab.commands.run import OUTPUTS, copy_of, prepare, run_stages, set_aside, stages_from
from finelab.files import write_text
from finelab.run import ACCEPT_VARIABLE, TRAINING_LOCK, WORK_LOCK, alone, open_run


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.setattr("finelab.run.RUNS", tmp_path / "runs")
    return tmp_path / "runs"


@pytest.fixture
def options(runs):
    """Parsed options of `lab.py run`."""

    def parse(*arguments):
        parser = argparse.ArgumentParser()
        command.add_arguments(parser)
        return parser.parse_args(["--recipe", "smollm2-135m", *arguments])

    return parse


@pytest.mark.parametrize("text", ["train", "03", "03_train", "03_train.ipynb"])
def test_a_stage_may_be_called_by_any_of_its_names(text):
    assert command.stage_called(text) == "03_train"


def test_the_options_become_the_runs_recipe(options, runs, tmp_path):
    file = tmp_path / "mine.jsonl"
    file.write_text("{}\n", encoding="utf-8")
    made = prepare(options("--run", "mine", "--data", str(file), "--set", "data.limit=200"))
    assert made.folder == runs / "mine"
    assert made.recipe.data.sources == (str(file),)
    assert made.recipe.data.heldout_sources == ()
    assert made.recipe.data.limit == 200


def test_the_run_is_called_like_its_recipe(options, runs):
    assert prepare(options()).folder == runs / "smollm2-135m"


def test_a_run_goes_on_with_its_own_recipe(options):
    made = prepare(options("--run", "small", "--set", "lora.r=8"))
    args = options("--run", "small")
    args.recipe = None
    assert prepare(args) == made


def test_options_are_laid_over_the_recipe_of_a_run_that_is_there(options, tmp_path):
    """Edited by hand or told a longer session, it goes on under the command that made it."""
    file = tmp_path / "mine.jsonl"
    file.write_text("{}\n", encoding="utf-8")
    first = ("--run", "small", "--data", str(file), "--set", "lora.r=8")
    prepare(options(*first))
    later = prepare(options("--run", "small", "--set", "training.session_hours=5.8"))
    assert (later.recipe.lora.r, later.recipe.training.session_hours) == (8, 5.8)
    assert prepare(options(*first)).recipe == later.recipe


def test_a_file_is_named_from_the_users_folder(options, tmp_path, monkeypatch):
    """The notebooks, which read it, run in their own."""
    (tmp_path / "a.jsonl").write_text("{}\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    mix = ("--run", "mix", "--set", 'data.sources=["a.jsonl", "owner/name"]', "--set", "data.weights=[1, 2]")
    assert prepare(options(*mix)).recipe.data.sources == (str(tmp_path / "a.jsonl"), "owner/name")
    assert prepare(options(*mix)).recipe.data.weights == (1, 2)  # it goes on under the same command


def test_a_run_is_not_changed_in_its_midst(options):
    prepare(options("--run", "small", "--set", "lora.r=8"))
    with pytest.raises(LabError, match=r"lora\.r: 8 -> 4.*--run NAME"):
        prepare(options("--run", "small", "--set", "lora.r=4"))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--recipe", "llama-9"], "there is no recipe 'llama-9'; there are: llama-3.2-1b, "),
        (["--data", "nowhere.jsonl"], "--data nowhere.jsonl: there is no such file"),
        (["--set", "lora.rank=8"], "--set: lora.rank: unknown key"),
        (["--set", "lora.r=much"], "--set: lora.r: expected int, got 'much'"),
        (["--run", "../elsewhere"], "--run ../elsewhere: a run has a name, not a path"),
        (["--set", "model.model_name=a/b"], "publish.license is not set, and the recipe's is of another"),
        (["--set", "model.model_name=./mine"], "publish.base_model = './mine': expected the base model's"),
        (
            ["--set", "lora.init_lora_weights=loftq"],
            "lora.init_lora_weights = 'loftq' trains beside a rounded",
        ),
        (["--from", "merge"], "--from merge: there is no such stage; there are: data, adapter, "),
    ],
)
def test_a_wrong_option_is_one_sentence_and_makes_no_run(runs, capsys, arguments, sentence):
    assert main(["run", *arguments]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"finelab: {sentence}")
    assert "Traceback" not in told
    assert not runs.exists()


def test_a_runs_folder_that_cannot_be_written_is_named(options, runs):
    runs.write_text("a file where the folder should be", encoding="utf-8")
    with pytest.raises(LabError, match=r"cannot write .*runs"):
        prepare(options())


def test_a_full_disk_is_named_before_anything_is_written(options, runs, monkeypatch):
    monkeypatch.setattr(command, "NEEDED_BYTES", 10**18)
    with pytest.raises(LabError, match="not enough disk for a run"):
        prepare(options())
    assert not runs.exists()


def test_from_a_stage_sets_it_and_the_later_ones_aside(run):
    made = [copy_of(run, stage) for stage in OUTPUTS]
    made += [run.folder / name / "file" for names in OUTPUTS.values() for name in names]
    for path in made:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(str(path.relative_to(run.folder)), encoding="utf-8")
    set_aside(run, stages_from("03_train"), outputs=True)
    (replaced,) = (run.folder / "replaced").iterdir()
    kept = {path for path in made if path.exists()}
    assert kept == {copy_of(run, "01_data"), copy_of(run, "02_adapter"), run.folder / "data/file"}
    for path in set(made) - kept:
        name = path.relative_to(run.folder)
        assert (replaced / name).read_text(encoding="utf-8") == str(name)


def test_with_nothing_to_set_aside_nothing_is_made(run):
    set_aside(run, list(OUTPUTS), outputs=True)
    assert not (run.folder / "replaced").exists()


@pytest.mark.slow
def test_a_second_call_keeps_what_is_done_and_goes_on(run, write_notebook, console):
    count = "import os, pathlib; open(os.environ['FINELAB_RUN'] + '/{}', 'a').write('x')"
    for stage in OUTPUTS:
        write_notebook(count.format(stage), name=stage)
    broken = write_notebook("from finelab import LabError; raise LabError('no.')", name="04_publish")
    with pytest.raises(LabError, match=r"^04_publish: no\.$"):
        run_stages(run, broken.parent, console)
    write_notebook(count.format("04_publish"), name="04_publish")
    run_stages(run, broken.parent, console)
    told = " ".join(console.file.getvalue().split())
    assert "03_train: done before, kept; --from train does it again" in told
    for stage in OUTPUTS:
        assert (run.folder / stage).read_text() == "x"
        assert copy_of(run, stage).exists()


@pytest.mark.slow
def test_a_stage_done_anew_makes_the_later_ones_new(run, write_notebook, console):
    for stage in OUTPUTS:
        notebook = write_notebook("1", name=stage)
    run_stages(run, notebook.parent, console)
    copy_of(run, "04_publish").unlink()
    run_stages(run, notebook.parent, console)
    (replaced,) = (run.folder / "replaced").iterdir()
    assert {path.stem for path in replaced.rglob("*.ipynb")} == {"05_chat", "06_evaluate"}
    assert copy_of(run, "05_chat").exists()


def test_two_runners_do_not_work_on_the_same_run(options, monkeypatch):
    monkeypatch.setattr(command, "do", lambda run, stages: 0)
    run = prepare(options("--run", "mine"))
    public = options("--run", "mine", "--set", "publish.private=false")
    with alone(run, WORK_LOCK), pytest.raises(LabError, match="another process is at work on run 'mine'"):
        command.main(public)
    assert open_run(run.folder) == run  # which the first one still goes by
    assert command.main(public) == 0
    assert not open_run(run.folder).recipe.publish.private


def test_a_stage_is_not_set_aside_while_a_notebook_trains(options, monkeypatch):
    monkeypatch.setattr(command, "do", lambda run, stages: 0)
    run = prepare(options("--run", "mine"))
    write_text(run.checkpoints / "checkpoint-2" / "trainer_state.json", "{}")
    again = options("--run", "mine", "--from", "train")
    with alone(run, TRAINING_LOCK), pytest.raises(LabError, match="another process is at work on run 'mine'"):
        command.main(again)
    assert (run.checkpoints / "checkpoint-2").exists()
    assert command.main(again) == 0
    assert not run.checkpoints.exists()


def test_what_a_killed_call_left_goes_when_the_run_goes_on(options, monkeypatch):
    monkeypatch.setattr(command, "do", lambda run, stages: 0)
    run = prepare(options("--run", "mine"))
    for name in (".merged.0a1b2c3d", "tmp_x9y8z7w"):
        (run.folder / name).mkdir()
        os.utime(run.folder / name, (0, 0))
    assert command.main(options("--run", "mine")) == 0
    assert [path.name for path in run.folder.iterdir() if path.is_dir()] == []


def test_a_run_made_for_training_only_is_not_trained_to_be_published(options, capsys):
    prepare(options("--run", "mine", "--set", "model.model_name=a/b"))
    assert main(["run", "--run", "mine"]) == 2
    assert "publish.license is not set" in capsys.readouterr().err


def test_accepted_changes_reach_the_kernel_that_trains(options, monkeypatch):
    seen = []
    monkeypatch.delenv(ACCEPT_VARIABLE, raising=False)
    monkeypatch.setattr(command, "do", lambda run, stages: seen.append(os.environ.get(ACCEPT_VARIABLE)) or 0)
    assert command.main(options("--run", "mine")) == 0
    monkeypatch.setenv(ACCEPT_VARIABLE, "")  # so that it is put back after the test
    assert command.main(options("--run", "mine", "--accept-changes")) == 0
    assert seen == [None, "1"]


def test_only_the_stages_asked_for_are_done(options, monkeypatch):
    asked = []
    monkeypatch.setattr(command, "do", lambda run, stages: asked.append(stages) or 0)
    assert command.main(options("--run", "mine", "--stages", "train, data")) == 0
    assert command.main(options("--run", "mine")) == 0
    assert asked == [["01_data", "03_train"], list(OUTPUTS)]
    with pytest.raises(LabError, match="--stages fly: there is no such stage"):
        command.main(options("--run", "mine", "--stages", "data,fly"))
