import importlib.util
import json
import sys
from pathlib import Path

import pytest

from finelab.errors import LabError
from finelab.evaluate import harness
from finelab.evaluate.harness import harness_command
from tests.tiny import base_model, tokenizer

installed = importlib.util.find_spec("lm_eval") is not None


def test_the_command_names_the_model_the_tasks_and_its_own_template():
    command = harness_command(Path("merged"), ["arc_challenge", "hellaswag"], Path("out"), limit=100)
    assert command[:4] == [sys.executable, "-m", "lm_eval", "run"]
    options = dict(zip(command[4::2], command[5::2], strict=False))
    assert options["--model"] == "hf"
    assert options["--model_args"] == "pretrained=merged,dtype=float32"
    assert options["--tasks"] == "arc_challenge,hellaswag"
    assert "--apply_chat_template" in command
    assert command[-2:] == ["--limit", "100"]


@pytest.mark.skipif(installed, reason="lm-eval is installed")
def test_without_the_package_it_says_how_to_get_it():
    with pytest.raises(LabError, match="pip install lm-eval"):
        harness(Path("merged"), ["arc_challenge"])


PRINTS_AN_ARROW = """
import json, pathlib, sys
print("|acc|↑|", flush=True)
folder = pathlib.Path(sys.argv[sys.argv.index("--output_path") + 1])
if "fails" not in sys.argv:
    (folder / "results_1.json").write_text(json.dumps({"results": {"own": {"acc,none": 0.5}}}))
"""


def test_what_the_harness_prints_needs_no_alphabet_of_the_machines(tmp_path, monkeypatch):
    """A stand-in for the package, which need not be installed, where a pipe is not UTF-8 by default."""
    (tmp_path / "lm_eval").mkdir()
    (tmp_path / "lm_eval" / "__init__.py").touch()
    (tmp_path / "lm_eval" / "__main__.py").write_text(PRINTS_AN_ARROW, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    narrow = {"PYTHONPATH": str(tmp_path), "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}
    for name, value in narrow.items():
        monkeypatch.setenv(name, value)
    assert harness(Path("merged"), ["own"]) == {"own": {"acc,none": 0.5}}
    with pytest.raises(LabError, match=r"lm_eval failed on fails: .acc.↑"):
        harness(Path("merged"), ["fails"])


@pytest.fixture
def model(tmp_path):
    base_model(vocab_size=260).save_pretrained(tmp_path / "model")
    tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.slow
@pytest.mark.skipif(not installed, reason="lm-eval is not installed: pip install lm-eval")
def test_an_offline_task_of_ones_own_gives_its_metrics(model, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    data = tmp_path / "rows.jsonl"
    row = {"question": "the", "choices": ["a", "b"], "label": 0}
    data.write_text((json.dumps(row) + "\n") * 4, encoding="utf-8")
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "own.yaml").write_text(
        "task: own\ndataset_path: json\n"
        f"dataset_kwargs:\n  data_files:\n    test: {data}\n"
        "test_split: test\noutput_type: multiple_choice\n"
        'doc_to_text: "{{question}}"\ndoc_to_choice: choices\ndoc_to_target: label\n'
        "metric_list:\n  - metric: acc\n    aggregation: mean\n    higher_is_better: true\n",
        encoding="utf-8",
    )
    found = harness(model, ["own"], include_path=tmp_path / "tasks")
    assert found["own"]["acc,none"] in (0.0, 1.0)


@pytest.mark.slow
@pytest.mark.skipif(not installed, reason="lm-eval is not installed: pip install lm-eval")
def test_an_unknown_task_is_one_sentence(model):
    with pytest.raises(LabError, match="lm_eval failed on no_such_task"):
        harness(model, ["no_such_task"], limit=1)
