import pytest

from finelab import LabError, recipe
from finelab.publish import write_card
from finelab.run import create_run

EVIDENCE = {
    "machine": {"device": "cpu: some processor"},
    "data": {
        "source": "embedded",
        "sha256": "ab" * 32,
        "train_rows": 317,
        "heldout_rows": 117,
        "tokens_total": 40000,
        "tokens_trained": 15000,
    },
    "training": {
        "steps": 40,
        "seconds": 120.0,
        "tokens_per_s": 250.0,
        "first_loss": 2.0,
        "last_loss": 1.0,
    },
    "identity": [
        {"from": "base", "to": "adapter", "mean_kl": 0.1, "top1_agreement_share": 0.8, "passed": True}
    ],
    "evaluation": {
        "rows": 43,
        "heldout_nll_base": 1.9,
        "heldout_nll_tuned": 1.2,
        "difference": -0.7,
        "interval": [-0.8, -0.6],
        "verdict": "improved",
    },
}


def recorded(tmp_path, name):
    run = create_run(tmp_path / "trial", recipe.load_preset(name))
    for stage, values in EVIDENCE.items():
        run.record(stage, values)
    run.merged.mkdir()
    return run


def test_the_card_says_what_was_recorded(tmp_path):
    from huggingface_hub import ModelCard

    run = recorded(tmp_path, "smollm2-135m")
    text = write_card(run, run.merged, tmp_path)
    card = ModelCard(text)
    assert card.data.base_model == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert card.data.license == "apache-2.0"
    assert card.data.datasets is None
    assert "**improved**" in text
    assert "-0.700, 95 % interval -0.800 to -0.600" in text
    assert "317 training and 117 held-out" in text
    assert (run.merged / "README.md").read_text(encoding="utf-8") == text


def test_a_worse_model_is_called_worse(tmp_path):
    run = recorded(tmp_path, "smollm2-135m")
    run.record("evaluation", {"verdict": "worse", "difference": 0.2, "interval": [0.1, 0.3]})
    assert "**worse**" in write_card(run, run.merged, tmp_path)


def test_a_llama_carries_its_licence(tmp_path):
    run = recorded(tmp_path, "llama-3.2-1b")
    base = tmp_path / "base"
    base.mkdir()
    with pytest.raises(LabError, match="asks for a copy of the agreement"):
        write_card(run, run.merged, base)
    (base / "LICENSE.txt").write_text("the agreement", encoding="utf-8")
    text = write_card(run, run.merged, base)
    assert "Built with Llama." in text
    assert "license: llama3.2" in text
    assert "- mlabonne/FineTome-100k" in text
    assert (run.merged / "LICENSE.txt").read_text(encoding="utf-8") == "the agreement"
    assert "Meta Platforms" in (run.merged / "NOTICE").read_text(encoding="utf-8")


def test_a_llama_must_be_named_so(tmp_path):
    preset = recipe.override(recipe.load_preset("llama-3.2-1b"), ["publish.repo_name=my-model"])
    run = create_run(tmp_path / "trial", preset)
    for stage, values in EVIDENCE.items():
        run.record(stage, values)
    with pytest.raises(LabError, match="begins with Llama"):
        write_card(run, tmp_path, tmp_path)


def test_a_users_folder_is_not_told(tmp_path):
    run = recorded(tmp_path, "smollm2-135m")
    run.record("data", {"source": str(tmp_path / "private" / "chats.jsonl")})
    text = write_card(run, run.merged, tmp_path)
    assert "`chats.jsonl`" in text
    assert "private" not in text
