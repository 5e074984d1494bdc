"""The first notebook on the user's own file, as `lab.py run --data` runs it."""

import json

import pytest

from tests.notebooks.lab import Lab

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    return Lab(tmp_path_factory.mktemp("runs"))


def test_bad_data_is_one_sentence(lab, tmp_path):
    path = tmp_path / "columns.jsonl"
    path.write_text('{"text": "hello"}\n' * 20, encoding="utf-8")
    code, output = lab.run("--run", "columns", "--data", str(path))
    assert code == 2, output
    assert "no conversation column" in output
    assert "Traceback" not in output
    assert (lab.runs / "columns" / "recipe.toml").exists()


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
