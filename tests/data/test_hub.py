"""Hub data sets through the real client, in processes of their own: HF_ENDPOINT is read at its import."""

import io
import json
import os
import re
import socket
import subprocess
import sys

import pyarrow
import pytest
from pyarrow import parquet

from tests.data.loopback_hub import MEMBER, STRANGER, LoopbackHub, Repo

pytestmark = pytest.mark.slow

FIRST, SECOND, THIRD = "1" * 40, "2" * 40, "3" * 40
ROWS = [
    {
        "conversations": [{"from": "human", "value": f"q{i} é"}, {"from": "gpt", "value": f"a{i}"}],
        "source": "infini-instruct-top-500k",
        "score": i / 8,
    }
    for i in range(450)
]
TRAIN = "data/train-00000-of-00001.parquet"
CONFIGS = b"""---
configs:
- config_name: short
  data_files: [{split: train, path: short.parquet}]
- config_name: long
  data_files: [{split: train, path: long.parquet}, {split: train_sft, path: short.parquet}]
---
"""

QUESTION, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": 'one\n"two"'}
CALL = {"function": {"name": "f", "arguments": '{"x": null}'}}
MIXED = {  # JSON Lines that no Arrow struct holds: `datasets` keeps such columns as JSON text
    "lab/parts": [{"messages": [QUESTION | {"content": [{"type": "text", "text": "q"}]}, ANSWER]}],
    "lab/calls": [{"messages": [QUESTION, {"role": "assistant", "tool_calls": [CALL]}]}],
    "lab/weights": [{"messages": [QUESTION, ANSWER | {"weight": 1}]}],
    "lab/tools": [
        {
            "messages": [QUESTION, ANSWER],
            "tools": [{"name": name, "parameters": {name: {"type": "string"}}} for name in "xy"],
        }
    ],
}

PROGRAM = """
import json, sys
from finelab import LabError
from finelab.data.read import open_source

for text in sys.argv[1:]:
    try:
        source = open_source(text)
        rows = [row.value for row in source.rows()]
        print(json.dumps([source.name, source.revision, source.sha256, rows]))
    except LabError as error:
        print(json.dumps(str(error)))
"""


def table(rows):
    file = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(rows), file, row_group_size=200)
    return file.getvalue()


def one(files, **options):
    return Repo({FIRST: files}, {"main": FIRST}, **options)


REPOS = {
    "lab/tome": Repo(
        {FIRST: {TRAIN: table(ROWS[:3])}, SECOND: {TRAIN: table(ROWS)}}, {"main": SECOND, "v1": FIRST}
    ),
    "lab/gated": one({TRAIN: table(ROWS)}, state="gated"),
    "lab/private": one({TRAIN: table(ROWS)}, state="private"),
    "lab/test-only": one({"data/test-0.parquet": table(ROWS), "data/validation-0.parquet": table(ROWS)}),
    "lab/script": one({"script.py": b"raise SystemExit('run')"}),
    "lab/configs": one({"README.md": CONFIGS, "short.parquet": table(ROWS[:3]), "long.parquet": table(ROWS)}),
    "lab/garbage": one({TRAIN: b"PAR1 and then nothing"}),
    "lab/empty": one({"README.md": b"soon"}),
    "lab/echoing": one({TRAIN: table(ROWS)}, state="echoing"),
    "lab/lost": one({TRAIN: table(ROWS)}, lost=(FIRST,)),
    **{
        name: one({"train.jsonl": "".join(json.dumps(row) + "\n" for row in rows).encode()})
        for name, rows in MIXED.items()
    },
}


def open_in_a_process(endpoint, home, *texts, **environment):
    """What `open_source` gives for each text: [name, revision, sha256, rows], or the LabError's sentence."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    environment = {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", **environment}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *texts],
        env=clean | environment,
        capture_output=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr
    assert not re.search(r"hf_\w", done.stdout + done.stderr)
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def hub():
    with LoopbackHub(REPOS) as hub:
        yield hub


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("hf-home")


OPENED = ["lab/tome", "lab/tome@v1", f"lab/tome@{FIRST}"]
PARTS = {
    "lab/configs:short": ROWS[:3],
    f"lab/configs:long@{FIRST}": ROWS,
    "lab/configs:long:train_sft": ROWS[:3],
    "lab/test-only:validation": ROWS,
}
SENTENCES = {
    "lab/tome@v2": "'lab/tome' has no revision 'v2'; give a branch, a tag or a commit of it",
    "lab/nothing": "'lab/nothing' is not on the Hub, or is private; check the name, or log in",
    "lab/private": "'lab/private' is not on the Hub, or is private; check the name, or log in",
    "lab/gated": "'lab/gated' is gated; accept its terms at http://127.0.0.1:",
    "lab/test-only": "'lab/test-only' has no split named train; there are: validation, test; "
    "choose one as lab/test-only:validation.",
    "lab/script": "'lab/script' needs its own code, which is never run; give a local file with --data",
    "lab/configs": "has several configurations, and none is the default; there are: short, long; "
    "choose one as lab/configs:short.",
    "lab/configs:long:test": "has no split named test; there are: train, train_sft; "
    "choose one as lab/configs:long:train.",
    "lab/tome:test": "'lab/tome' has no split named test; there are: train; choose one as lab/tome:train.",
    "lab/configs:medium": "has several configurations, and none is the default; there are: short, long; ",
    "lab/garbage": "'lab/garbage' cannot be loaded (ArrowInvalid: Parquet magic bytes not found",
    "lab/empty": "doesn't contain any data files",
    "lab/lost": "stopped sending it; try again later, or give a local file with --data",
    "lab/a--b": "'lab/a--b' cannot be loaded (HFValidationError",
}


@pytest.fixture(scope="module")
def anonymous(hub, home):
    texts = [*OPENED, *PARTS, *MIXED, *SENTENCES]
    return dict(zip(texts, open_in_a_process(hub.endpoint, home, *texts), strict=True))


def test_rows_come_in_order_with_the_commit_they_are_of(anonymous):
    name, revision, _, rows = anonymous["lab/tome"]
    assert (name, revision) == ("lab/tome", SECOND)
    assert rows == ROWS


@pytest.mark.parametrize("text", ["lab/tome@v1", f"lab/tome@{FIRST}"])
def test_a_tag_and_a_commit_name_the_same_rows(anonymous, text):
    name, revision, sha256, rows = anonymous[text]
    assert (name, revision) == ("lab/tome", FIRST)
    assert rows == ROWS[:3]
    assert sha256 == anonymous["lab/tome@v1"][2] != anonymous["lab/tome"][2]


@pytest.mark.parametrize("text", PARTS)
def test_a_part_is_a_configuration_a_split_or_both(anonymous, text):
    name, revision, sha256, rows = anonymous[text]
    assert (name, revision) == (text.partition("@")[0], FIRST)
    assert rows == PARTS[text]
    assert [anonymous[other][2] for other in PARTS].count(sha256) == 1


@pytest.mark.parametrize("text", MIXED)
def test_rows_of_mixed_structure_are_as_their_json_has_them(anonymous, text):
    assert anonymous[text][3] == MIXED[text]


@pytest.mark.parametrize("text", SENTENCES)
def test_what_cannot_be_had_is_one_sentence(anonymous, text):
    assert SENTENCES[text] in anonymous[text]


def test_a_token_opens_what_is_locked_and_gives_the_same_content(hub, tmp_path, anonymous):
    texts = ["lab/gated", "lab/private", "lab/tome"]
    gated, private, public = open_in_a_process(hub.endpoint, tmp_path, *texts, HF_TOKEN=MEMBER)
    assert gated[3] == private[3] == ROWS
    assert public == anonymous["lab/tome"]


def test_a_token_without_access_is_told_so_and_never_shown(hub, tmp_path):
    texts = ["lab/gated", "lab/private", "lab/echoing"]
    gated, private, echoing = open_in_a_process(hub.endpoint, tmp_path, *texts, HF_TOKEN=STRANGER)
    assert "is gated; accept its terms" in gated
    assert "is private" in private
    assert "a fault that shows hf_…" in echoing


def test_a_refused_token_is_named(hub, tmp_path):
    (said,) = open_in_a_process(hub.endpoint, tmp_path, "lab/tome", HF_TOKEN="hf_fromlastyear")
    assert f"{hub.endpoint} refuses your token; log in" in said


def test_without_a_network_a_local_file_is_proposed(tmp_path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound and not listening: nobody answers there
        endpoint = f"http://127.0.0.1:{unused.getsockname()[1]}"
        (said,) = open_in_a_process(endpoint, tmp_path, "lab/tome")
    assert f"no answer from {endpoint}; check the network, or give a local file with --data" in said


def test_offline_mode_is_named(hub, tmp_path):
    (said,) = open_in_a_process(hub.endpoint, tmp_path, "lab/tome", HF_HUB_OFFLINE="1")
    assert "while HF_HUB_OFFLINE is set" in said


def test_an_older_copy_in_the_cache_is_not_taken_for_the_new_commit(tmp_path):
    moving = Repo(
        {FIRST: {TRAIN: table(ROWS)}, THIRD: {TRAIN: table(ROWS[:9])}}, {"main": FIRST}, lost=(THIRD,)
    )
    with LoopbackHub({"lab/moving": moving}) as hub:
        assert open_in_a_process(hub.endpoint, tmp_path, "lab/moving")[0][1] == FIRST
        moving.branches["main"] = THIRD
        (said,) = open_in_a_process(hub.endpoint, tmp_path, "lab/moving")
        assert "'lab/moving' cannot be loaded at 3333333: the Hub stopped sending it" in said
        moving.lost = ()
        (again,) = open_in_a_process(hub.endpoint, tmp_path, "lab/moving")
        assert again[1] == THIRD
        assert again[3] == ROWS[:9]
