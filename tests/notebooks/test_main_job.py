"""The main job for real: the notebooks as committed, the embedded model, a small slice of its data."""

import dataclasses
import json
import shutil

import pytest

from finelab import recipe
from finelab.files import sha256, write_json
from finelab.run import create_run
from finelab.train.certificate import compare
from finelab.train.tuner import setting_of
from tests.notebooks.lab import Lab

pytestmark = pytest.mark.slow

ROWS, STEPS, ROWS_PER_STEP = 48, 4, 2
SLICE = [
    f"data.limit={ROWS}",
    f"training.max_steps={STEPS}",
    "training.per_device_train_batch_size=1",
    f"training.gradient_accumulation_steps={ROWS_PER_STEP}",
    "training.save_steps=2",
    "training.learning_rate=1e-3",
    "training.warmup_steps=0",
    "training.eval_steps=2",
    "training.early_stopping_patience=3",
    "data.validation_share=0.1",
    "chat.max_new_tokens=16",
]
STAGES = ["01_data", "02_adapter", "03_train", "04_publish", "05_chat", "06_evaluate"]


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
    """An uninterrupted run, tuned before: its folder, exit code and output."""
    run = create_run(lab.runs / "whole", recipe.override(recipe.load_preset("smollm2-135m"), SLICE))
    batches = {"per_device_train_batch_size": ROWS_PER_STEP, "gradient_accumulation_steps": 1}
    tuned = dataclasses.asdict(setting_of(run.recipe, run.profile())) | batches
    run.record("tuning", tuned | {"trials": []})
    code, output = lab.run(*small("whole"))
    return run.folder, code, output


def state(folder):
    """What the trainer kept of itself at the last step."""
    path = folder / "checkpoints" / f"checkpoint-{STEPS}" / "trainer_state.json"
    return json.loads(path.read_text(encoding="utf-8"))


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
    assert data["rows_kept"] == ROWS
    assert evidence["adapter"]["trainable_parameters"] == 4_884_480
    training = evidence["training"]
    assert (training["steps"], training["resumes"]) == (STEPS, [])
    assert training["tokens_per_s"] == pytest.approx(training["tokens"] / training["seconds"], rel=0.01)
    assert [(link["from"], link["to"]) for link in evidence["identity"]] == [
        ("base", "adapter"),
        ("adapter", "merged"),
        ("merged", "gguf"),
        ("merged", "pushed copy"),
    ]
    assert evidence["plan"]["actual"]["steps"] == evidence["plan"]["predicted"]["steps"] == STEPS
    assert evidence["plan"]["error"].keys() == evidence["plan"]["actual"].keys()
    assert all(link["passed"] for link in evidence["identity"])
    low, high = evidence["evaluation"]["interval"]
    assert low <= evidence["evaluation"]["difference"] <= high
    assert evidence["publish"]["files_verified"] >= 6


def test_the_tuned_batches_reach_the_trainer(whole):
    """Those of an earlier tuning: the recipe's are half as large, and twice as many a step."""
    folder, _, _ = whole
    assert state(folder)["train_batch_size"] == ROWS_PER_STEP


def test_the_adapter_is_the_best_on_the_validation_rows(whole):
    folder, _, _ = whole
    evidence = json.loads((folder / "evidence.json").read_text(encoding="utf-8"))
    losses = {
        entry["eval_loss"]: entry["step"] for entry in state(folder)["log_history"] if "eval_loss" in entry
    }
    assert sorted(losses.values()) == [0, 2, 4]
    training = evidence["training"]
    sealed = [(loss, step) for loss, step in losses.items() if step]  # of the start there is no checkpoint
    assert (training["best_validation_loss"], training["best_step"]) == min(sealed)
    best = folder / "checkpoints" / f"checkpoint-{training['best_step']}"
    names = [each / "adapter_model.safetensors" for each in (folder / "adapter", best)]
    assert sha256(names[0]) == sha256(names[1])
    sides = ("train_rows", "heldout_rows", "validation_rows")
    assert sum(evidence["data"][side] for side in sides) == ROWS
    assert evidence["data"]["validation_rows"] > 0
    assert evidence["evaluation"]["rows"] < evidence["data"]["heldout_rows"]  # the rest are the families
    assert "validation " in (folder / "notebooks" / "03_train.ipynb").read_text(encoding="utf-8")


def test_the_counted_tokens_are_the_tokens_that_were_trained_on(whole):
    """Counted from the rows that transformers' sampler draws first."""
    folder, _, _ = whole
    evidence = json.loads((folder / "evidence.json").read_text(encoding="utf-8"))
    import torch
    from datasets import load_from_disk

    rows = load_from_disk(str(folder / "data" / "train"))
    drawn = torch.Generator().manual_seed(recipe.read(folder / "recipe.toml").training.seed)
    met = rows[torch.randperm(len(rows), generator=drawn)[: STEPS * ROWS_PER_STEP].tolist()]
    assert evidence["training"]["tokens"] == sum(map(len, met["input_ids"]))
    # a row's first token is not predicted
    trained = sum(label != -100 for labels in met["labels"] for label in labels[1:])
    assert evidence["training"]["tokens_trained"] == trained


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
    answer = model.generate(**prompt, max_new_tokens=3, do_sample=False)
    assert answer.shape[1] > prompt["input_ids"].shape[1]
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


def with_data_of(folder, killed):
    """A run that has been through the first notebook, as the run in `folder` has."""
    shutil.copytree(folder / "data", killed / "data")
    (killed / "notebooks").mkdir()
    for name in ("recipe.toml", "notebooks/01_data.ipynb"):
        shutil.copy(folder / name, killed / name)
    evidence = json.loads((folder / "evidence.json").read_text(encoding="utf-8"))
    write_json(killed / "evidence.json", {name: evidence[name] for name in ("data", "tuning")})


def test_killed_in_training_it_goes_on_and_ends_the_same(lab, whole):
    folder, _, _ = whole
    with_data_of(folder, lab.runs / "killed")
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
    assert f"Training is finished: {STEPS} of {STEPS} steps" in executed
    assert sha256(folder / "adapter" / "adapter_model.safetensors") == before
    after = json.loads((folder / "evidence.json").read_text(encoding="utf-8"))
    assert after["evaluation"] == evaluation
    assert after["training"]["steps"] == STEPS
