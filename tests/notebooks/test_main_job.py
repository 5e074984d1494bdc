"""The main job for real: the notebooks as committed, the embedded model, a small slice of its data."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from finelab.files import sha256
from finelab.train.certificate import compare

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
ROWS_PER_STEP = 4
SLICE = [
    "data.limit=80",
    "training.max_steps=6",
    f"training.gradient_accumulation_steps={ROWS_PER_STEP // 2}",
    "training.save_steps=2",
    "training.learning_rate=1e-3",
    "training.warmup_steps=0",
    "training.tune=false",  # two runs that are compared bit for bit must have the same batches
    "chat.max_new_tokens=16",
]
STAGES = ["01_data", "02_adapter", "03_train", "04_publish", "05_chat", "06_evaluate"]


class Lab:
    """Calls `python -m finelab run`, as lab.py does, with the runs in a folder of the test."""

    def __init__(self, runs):
        self.runs = runs
        self.environment = {
            **os.environ,
            "FINELAB_RUNS": str(runs),
            "HF_TOKEN": "",
            "HF_TOKEN_PATH": str(runs / "no-login"),
        }

    def start(self, *options):
        return subprocess.Popen(
            [sys.executable, "-m", "finelab", "run", *options],
            cwd=ROOT,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, *options):
        process = self.start(*options)
        output, _ = process.communicate()
        return process.returncode, output

    def kill_when(self, path, *options):
        """Start a run and kill -9 it, with its kernel, as soon as `path` is there."""
        process = self.start(*options)
        while not path.exists():
            assert process.poll() is None, process.stdout.read()
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def small(name, *more):
    options = ["--run", name]
    for assignment in (*SLICE, *more):
        options += ["--set", assignment]
    return options


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    return Lab(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def whole(lab):
    """An uninterrupted run: its folder, exit code and output."""
    code, output = lab.run(*small("whole"))
    return lab.runs / "whole", code, output


def test_it_ends_with_a_table_and_exit_code_0(whole):
    folder, code, output = whole
    assert code == 0, output
    for text in ("held-out loss", "adapter -> merged", "passed", str(folder.name), "lab.py chat"):
        assert text in output
    assert "Traceback" not in output


def test_every_stage_leaves_an_executed_copy_with_its_outputs(whole):
    folder, _, _ = whole
    for stage in STAGES:
        notebook = json.loads((folder / "notebooks" / f"{stage}.ipynb").read_text(encoding="utf-8"))
        code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
        assert all(cell["execution_count"] for cell in code)
        assert any(cell["outputs"] for cell in code)
    names = {path.stem for path in (folder / "figures").glob("*.png")}
    assert names >= {"01_mask", "01_lengths", "02_parameters", "03_loss", "03_heldout", "04_identity"}


def test_the_evidence_has_the_promised_keys(whole):
    folder, _, _ = whole
    evidence = json.loads((folder / "evidence.json").read_text(encoding="utf-8"))
    assert evidence["machine"].keys() >= {"device", "cores", "memory_bytes", "versions"}
    data = evidence["data"]
    assert data.keys() >= {
        *("source", "revision", "rows_in", "rows_kept", "dropped", "repaired", "train_rows"),
        *("heldout_rows", "tokens_total", "tokens_trained", "truncated_share", "padding_share", "sha256"),
    }
    assert data["rows_kept"] == data["train_rows"] + data["heldout_rows"] == 80
    assert evidence["adapter"]["trainable_parameters"] == 4_884_480
    training = evidence["training"]
    assert (training["steps"], training["resumes"]) == (6, [])
    assert training["tokens_per_s"] == pytest.approx(training["tokens"] / training["seconds"], rel=0.01)
    assert [(link["from"], link["to"]) for link in evidence["identity"]] == [
        ("base", "adapter"),
        ("adapter", "merged"),
        ("merged", "gguf"),
        ("merged", "pushed copy"),
    ]
    assert evidence["plan"]["actual"]["steps"] == evidence["plan"]["predicted"]["steps"] == 6
    assert evidence["plan"]["error"].keys() == evidence["plan"]["actual"].keys()
    assert all(link["passed"] for link in evidence["identity"])
    low, high = evidence["evaluation"]["interval"]
    assert low <= evidence["evaluation"]["difference"] <= high
    assert evidence["publish"]["files_verified"] >= 6


def test_the_held_out_loss_on_the_way_and_the_tuned_batches_reach_the_trainer(lab):
    """What the small runs leave out: measured batches, intervals, early stopping, the best adapter kept."""
    changes = ["training.tune=true", "training.eval_steps=2", "training.early_stopping_patience=1"]
    changes.append("data.validation_share=0.1")
    code, output = lab.run(*small("watched", *changes), "--stages", "data,train")
    assert code == 0, output
    notebook = lab.runs / "watched" / "notebooks" / "03_train.ipynb"
    evidence = json.loads((lab.runs / "watched" / "evidence.json").read_text(encoding="utf-8"))
    assert [trial["verdict"] for trial in evidence["tuning"]["trials"]].count("chosen") == 1
    assert evidence["training"]["best_validation_loss"] < 5
    assert evidence["training"]["best_step"] in (2, 4, 6)
    sides = ("train_rows", "heldout_rows", "validation_rows")
    assert sum(evidence["data"][side] for side in sides) == 80
    assert evidence["data"]["validation_rows"] > 0
    assert evidence["evaluation"]["rows"] < evidence["data"]["heldout_rows"]  # the rest are the families
    assert "validation " in notebook.read_text(encoding="utf-8")


def test_the_counted_tokens_are_the_tokens_that_were_trained_on(whole):
    """Six steps, however many epochs these are: counted from the rows."""
    folder, _, _ = whole
    evidence = json.loads((folder / "evidence.json").read_text(encoding="utf-8"))
    from datasets import load_from_disk

    lengths = [len(ids) for ids in load_from_disk(str(folder / "data" / "train"))["input_ids"]]
    epochs, rest = divmod(6 * ROWS_PER_STEP, len(lengths))
    ordered = sorted(lengths)
    least = epochs * sum(lengths) + sum(ordered[:rest])
    most = epochs * sum(lengths) + sum(ordered[len(ordered) - rest :])
    assert least <= evidence["training"]["tokens"] <= most


def test_the_merged_model_is_plain_transformers_and_stops_by_itself(whole):
    folder, _, _ = whole
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    tokenizer = AutoTokenizer.from_pretrained(folder / "merged")
    model = AutoModelForCausalLM.from_pretrained(folder / "merged")
    ends = GenerationConfig.from_pretrained(folder / "merged").eos_token_id
    assert tokenizer.eos_token_id == 2 and ends in (2, [2])
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi!"}], add_generation_prompt=True, return_tensors="pt"
    )
    assert model.generate(**prompt, max_new_tokens=3, do_sample=False).shape[1] > 0
    pushed = folder / "pushed" / "local" / "smollm2-135m-instruct-finelab"
    assert sha256(pushed / "model.safetensors") == sha256(folder / "merged" / "model.safetensors")
    assert "Did it work?" in (pushed / "README.md").read_text(encoding="utf-8")


def test_a_second_call_keeps_what_is_done_and_says_so(lab, whole):
    folder, _, _ = whole
    before = sha256(folder / "adapter" / "adapter_model.safetensors")
    code, output = lab.run(*small("whole"))
    assert code == 0, output
    for stage in STAGES:
        assert f"{stage}: done before, kept" in output
    assert sha256(folder / "adapter" / "adapter_model.safetensors") == before


def test_another_recipe_for_the_same_run_is_refused(lab, whole):
    code, output = lab.run(*small("whole", "lora.r=8"))
    assert code == 2
    assert "lora.r: 16 -> 8" in output


def test_killed_in_training_it_goes_on_and_ends_the_same(lab, whole):
    folder, _, _ = whole
    sealed = lab.runs / "killed" / "checkpoints" / "checkpoint-2" / "finelab-manifest.json"
    until = ["--stages", "data,train"]  # what comes later starts from the adapter, whose bytes are compared
    lab.kill_when(sealed, *small("killed"), *until)
    assert not (lab.runs / "killed" / "adapter").exists()

    code, output = lab.run(*small("killed"), *until)
    assert code == 0, output
    assert "01_data: done before, kept" in output
    evidence = json.loads((lab.runs / "killed" / "evidence.json").read_text(encoding="utf-8"))
    assert evidence["training"]["resumes"][0] >= 2
    uninterrupted = json.loads((folder / "evidence.json").read_text(encoding="utf-8"))
    assert evidence["training"]["tokens"] == uninterrupted["training"]["tokens"]
    assert evidence["training"]["last_loss"] == uninterrupted["training"]["last_loss"]
    assert sha256(lab.runs / "killed" / "adapter" / "adapter_model.safetensors") == sha256(
        folder / "adapter" / "adapter_model.safetensors"
    )
    # notebook 06 adds to what notebook 03 found, and finds that again
    assert evidence["evaluation"].items() <= uninterrupted["evaluation"].items()
    assert "interval" in evidence["evaluation"]
    certificates = [each["training"]["certificate"] for each in (evidence, uninterrupted)]
    assert compare(*certificates) == []
    assert certificates[0]["restored_exactly"]


def test_a_finished_run_is_not_trained_one_step_further(lab, whole):
    folder = lab.runs / "again"
    shutil.copytree(whole[0], folder)
    (folder / "notebooks" / "03_train.ipynb").unlink()
    before = sha256(folder / "adapter" / "adapter_model.safetensors")
    evaluation = json.loads((folder / "evidence.json").read_text(encoding="utf-8"))["evaluation"]
    notebook = folder / "notebooks" / "03_train.ipynb"
    lab.kill_when(notebook, *small("again"))
    executed = notebook.read_text(encoding="utf-8")
    assert "Training is finished: 6 of 6 steps" in executed
    assert sha256(folder / "adapter" / "adapter_model.safetensors") == before
    after = json.loads((folder / "evidence.json").read_text(encoding="utf-8"))
    assert after["evaluation"] == evaluation
    assert after["training"]["steps"] == 6


SHAREGPT = {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("columns.jsonl", '{"text": "hello"}\n' * 20, "no conversation column"),
        ("few.jsonl", json.dumps(SHAREGPT) + "\n", "both are needed"),
    ],
)
def test_bad_data_is_one_sentence(lab, tmp_path, name, content, said):
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    options = ["--run", name.partition(".")[0], "--data", str(path)]
    code, output = lab.run(*options)
    assert code == 2, output
    assert said in output
    assert "Traceback" not in output
    assert (lab.runs / name.partition(".")[0] / "recipe.toml").exists()


def test_a_users_file_is_read_as_far_as_it_is_whole(lab, tmp_path):
    rows = [
        {
            "conversations": [
                {"from": "human", "value": f"question {number}"},
                {"from": "gpt", "value": f"answer {number}"},
            ]
        }
        for number in range(40)
    ]
    text = json.dumps(rows)
    path = tmp_path / "mine.json"
    path.write_text(text[:-30], encoding="utf-8")
    notebook = lab.runs / "mine" / "notebooks" / "01_data.ipynb"
    lab.kill_when(notebook, "--run", "mine", "--data", str(path), "--set", "data.limit=20")
    data = json.loads((lab.runs / "mine" / "evidence.json").read_text(encoding="utf-8"))["data"]
    assert (data["rows_in"], data["rows_kept"]) == (39, 20)
    assert "in row 40" in data["broken"][0]
    assert "in row 40" in notebook.read_text(encoding="utf-8")


def test_a_full_disk_is_one_sentence_and_the_run_stays_usable(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("needs the right to mount a small disk (root)")
    try:
        code, output = Lab(disk).run("--run", "full")
        assert code == 2
        assert "not enough disk" in output
        assert "Traceback" not in output
    finally:
        subprocess.run(["umount", str(disk)], check=True)
