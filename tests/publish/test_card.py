import json

import pytest

from finelab import LabError, recipe
from finelab.publish import write_card
from finelab.run import create_run

EVIDENCE = {
    "machine": {"device": "cpu: some processor"},
    "data": {
        "source": "embedded",
        "repaired": {"white space trimmed": 7},
        "dropped": {"no answer to a question": 2},
        "sha256": "ab" * 32,
        "train_rows": 317,
        "heldout_rows": 117,
        "tokens_total": 40000,
        "tokens_trained": 15000,
        "leaked_rows": 3,
    },
    "training": {
        "machines": ["cpu: some processor, 2 cores"],
        "versions": {"torch": "2.13.0"},
        "tokens_trained": 12000,
        "steps": 40,
        "seconds": 120.0,
        "tokens_per_s": 250.0,
        "first_loss": 2.0,
        "last_loss": 1.0,
    },
    "identity": [
        {
            "from": "base",
            "to": "adapter",
            "positions": 139,
            "mean_kl": 0.1,
            "top1_agreement_share": 0.8,
            "passed": True,
        }
    ],
    "evaluation": {
        "rows": 43,
        "heldout_nll_base": 1.9,
        "heldout_nll_tuned": 1.2,
        "difference": -0.7,
        "interval": [-0.8, -0.6],
        "verdict": "improved",
        "weights": "4 bit",
    },
}


def recorded(tmp_path, name, *changes):
    run = create_run(tmp_path / "trial", recipe.override(recipe.load_preset(name), list(changes)))
    for stage, values in EVIDENCE.items():
        run.record(stage, values)
    run.merged.mkdir()
    (run.merged / "config.json").write_text('{"dtype": "float16"}', encoding="utf-8")
    return run


def forget(run, stage, *keys):
    """Take some of a stage's evidence away, without keys all of it."""
    evidence = run.evidence()
    for key in keys:
        del evidence[stage][key]
    if not keys:
        del evidence[stage]
    (run.folder / "evidence.json").write_text(json.dumps(evidence), encoding="utf-8")


def card_of(run, repo_id="somebody/Llama-tuned"):
    from huggingface_hub import ModelCard

    text = write_card(run, run.merged, repo_id)
    return text, ModelCard(text).data


def test_the_card_says_what_was_recorded(tmp_path):
    run = recorded(tmp_path, "smollm2-135m")
    text, metadata = card_of(run, "somebody/tuned")
    assert metadata.base_model == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert metadata.license == "apache-2.0"
    assert metadata.datasets is None
    assert "On 43 held-out conversations: **improved**" in text
    assert "-0.700, 95 % interval -0.800 to -0.600" in text
    assert "317 training and 117 held-out" in text
    assert "repaired, white space trimmed: 7 rows" in text
    assert "left out, no answer to a question: 2 rows" in text
    assert "vllm serve somebody/tuned" in text
    assert (run.merged / "README.md").read_text(encoding="utf-8") == text


def test_the_card_says_what_was_trained_with_and_where_not_what_came_after(tmp_path):
    run = recorded(tmp_path, "smollm2-135m", "training.max_steps=40")
    run.record("machine", {"device": "cpu: a laptop that only publishes", "profile": {"dtype": "float32"}})
    run.record(
        "tuning", {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "packing": True}
    )
    text, _ = card_of(run)
    for said in (
        "| per_device_train_batch_size | 4 |",
        "| gradient_accumulation_steps | 2 |",
        "| packing | True |",
        "| max_steps | 40 |",
        "over 12,000 tokens of answers",
        "on cpu: some processor, 2 cores",
        "torch 2.13.0",
        "3 of the held-out conversations nearly repeat one to train on",
        "on its base in 4 bit",
        "rounded to 4 bit (Q4_1)",
    ):
        assert said in text
    assert "laptop" not in text and "num_train_epochs" not in text


def test_the_loss_stands_in_the_hubs_own_metadata(tmp_path):
    _, metadata = card_of(recorded(tmp_path, "smollm2-135m"))
    (result,) = metadata.eval_results
    assert (result.metric_type, result.metric_value) == ("loss", 1.2)


def test_a_merged_files_card_has_the_files_own_loss_and_an_adapters_the_adapters(tmp_path):
    run = recorded(tmp_path, "smollm2-135m")
    assert "before the merge" in card_of(run)[0]
    own = {"heldout_nll_tuned": 1.25, "difference": -0.65, "verdict": "improved", "rows": 41}
    own |= {"weights": "float16"}
    run.record("merged_evaluation", EVIDENCE["evaluation"] | own)
    text, metadata = card_of(run)
    assert "On 41 held-out conversations" in text
    assert "merged, in float16" in text and "Measured on this file, computed in float16," in text
    assert metadata.eval_results[0].metric_value == 1.25
    (run.merged / "adapter_config.json").write_text("{}", encoding="utf-8")
    text, metadata = card_of(run)
    assert "On 43 held-out conversations" in text and "Measured with the adapter" in text
    assert metadata.eval_results[0].metric_value == 1.2


def test_without_an_evaluation_none_is_claimed(tmp_path):
    run = recorded(tmp_path, "smollm2-135m")
    forget(run, "evaluation")
    text, metadata = card_of(run)
    assert "Not evaluated." in text
    assert metadata.eval_results is None


def test_a_worse_model_is_called_worse(tmp_path):
    run = recorded(tmp_path, "smollm2-135m")
    run.record("evaluation", {"verdict": "worse", "difference": 0.2, "interval": [0.1, 0.3]})
    assert "**worse**" in card_of(run)[0]


def test_plan_and_families_are_told_when_they_were_measured(tmp_path):
    run = recorded(tmp_path, "smollm2-135m")
    assert "Planned and measured" not in card_of(run)[0]
    run.record("plan", {"predicted": {"seconds": 100}, "actual": {"seconds": 120}, "error": {"seconds": 0.2}})
    run.record("evaluation", {"families": EVIDENCE["evaluation"] | {"verdict": "no measurable change"}})
    text, _ = card_of(run)
    assert "| seconds | 100 | 120 | +20.0% |" in text
    assert "never trained on: **no measurable change**" in text


def test_an_adapter_has_an_adapters_card(tmp_path):
    run = recorded(tmp_path, "smollm2-135m")
    (run.merged / "adapter_config.json").write_text("{}", encoding="utf-8")
    text, metadata = card_of(run, "somebody/adapter")
    assert metadata.library_name == "peft"
    assert 'AutoPeftModelForCausalLM.from_pretrained("somebody/adapter")' in text
    assert "vllm" not in text


def test_a_data_set_is_linked_once_whatever_parts_of_it_were_read(tmp_path):
    run = recorded(tmp_path, "smollm2-135m")
    run.record("data", EVIDENCE["data"] | {"source": "lab/chats:short, lab/chats:long:train_sft"})
    text, metadata = card_of(run)
    assert metadata.datasets == ["lab/chats"]
    assert "`lab/chats:short, lab/chats:long:train_sft`" in text


def test_the_runs_pictures_go_with_the_card(tmp_path):
    run = recorded(tmp_path, "smollm2-135m")
    assert "![" not in card_of(run)[0]
    run.figure("03_loss").parent.mkdir()
    run.figure("03_loss").write_bytes(b"a picture")
    assert "![03_loss](03_loss.png)" in card_of(run)[0]
    assert (run.merged / "03_loss.png").read_bytes() == b"a picture"


def test_a_llama_carries_its_licence(tmp_path):
    run = recorded(tmp_path, "llama-3.2-1b")
    run.record("data", {"source": "mlabonne/FineTome-100k"})
    text, metadata = card_of(run)
    assert "Built with Llama." in text
    assert metadata.license == "llama3.2"
    assert metadata.datasets == ["mlabonne/FineTome-100k"]
    agreement = (run.merged / "LICENSE.txt").read_text(encoding="utf-8")
    assert agreement.startswith("LLAMA 3.2 COMMUNITY LICENSE AGREEMENT")
    assert "Meta Platforms" in (run.merged / "NOTICE").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("changes", "repo_id", "said"),
    [
        ([], "somebody/my-model", "begins with Llama"),
        (["publish.license=llama9"], "somebody/Llama-x", "the lab has no copy"),
        (["publish.base_model=../models/llama"], "somebody/Llama-x", "Hub id, owner/name"),
        (["model.model_name=Qwen/Qwen3-0.6B"], "somebody/my-model", r"than Qwen/Qwen3-0\.6B"),
    ],
)
def test_terms_that_are_not_met_stop_the_card(tmp_path, changes, repo_id, said):
    run = recorded(tmp_path, "llama-3.2-1b", *changes)
    with pytest.raises(LabError, match=said):
        card_of(run, repo_id)
    assert not (run.merged / "README.md").exists()


@pytest.mark.parametrize("folder", ["/home/me/private/", "C:\\Users\\me\\private\\"])
def test_a_users_folder_is_not_told(tmp_path, folder):
    run = recorded(tmp_path, "smollm2-135m")
    run.record("data", {"source": f"{folder}chats.jsonl, mlabonne/FineTome-100k"})
    text, _ = card_of(run)
    assert "`chats.jsonl, mlabonne/FineTome-100k`" in text
    assert "private/" not in text and "private\\" not in text


def test_a_users_file_is_no_data_set_of_the_hub(tmp_path):
    run = recorded(tmp_path, "smollm2-135m")
    run.record("data", {"source": "chats/my.jsonl, chats/more.csv.gz, mlabonne/FineTome-100k"})
    text, metadata = card_of(run)
    assert metadata.datasets == ["mlabonne/FineTome-100k"]
    assert "`my.jsonl, more.csv.gz, mlabonne/FineTome-100k`" in text


def test_a_run_of_the_first_version_has_a_card(tmp_path):
    run = recorded(tmp_path, "smollm2-135m")
    run.record("training", {"best_step": 6})
    forget(run, "training", "machines", "versions")
    forget(run, "evaluation", "weights")
    text, _ = card_of(run)
    assert "in 2.0 minutes, 250 tokens/s" in text and "1.000 at the end.\n" in text
    assert "Measured with the adapter on its base, before the merge" in text
    assert "This checkpoint was chosen" not in text


@pytest.mark.parametrize(("stage", "again"), [("data", "--from data"), ("training", "--from train")])
def test_without_what_a_card_tells_the_stage_to_do_again_is_named(tmp_path, stage, again):
    run = recorded(tmp_path, "smollm2-135m")
    forget(run, stage)
    with pytest.raises(LabError, match=rf"evidence\.json says nothing of the run's {stage}.*{again}"):
        card_of(run)


@pytest.mark.parametrize(("eval_rows", "rows"), [(0, "3,000"), (200, "200"), (5000, "3,000")])
def test_the_rows_that_chose_the_checkpoint_are_those_that_were_looked_at(tmp_path, eval_rows, rows):
    run = recorded(tmp_path, "smollm2-135m", f"training.eval_rows={eval_rows}")
    run.record("training", {"best_step": 6})
    run.record("data", {"validation_rows": 3000})
    assert f"chosen by its loss on {rows} other conversations" in card_of(run)[0]


def test_without_tuning_the_batches_are_the_recipes(tmp_path):
    run = recorded(tmp_path, "smollm2-135m", "training.tune=false")
    run.record("tuning", {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2})
    assert "| per_device_train_batch_size | 2 |" in card_of(run)[0]


def test_what_changed_between_two_sittings_is_told_without_a_users_folder(tmp_path):
    run = recorded(tmp_path, "smollm2-135m")
    assert "Changed on the way" not in card_of(run)[0]
    changes = ["training.learning_rate: 0.0002 -> 0.0005", "data.sources: ['/home/me/a.csv'] -> ['embedded']"]
    run.record("training", {"accepted_changes": changes})
    said = "Changed on the way, and accepted: training.learning_rate: 0.0002 -> 0.0005; data.sources."
    assert said in card_of(run)[0]
