import json

import pytest

from finelab import LabError
from finelab.data import read_conversations
from finelab.recipe import Data

ROWS = [
    {"conversations": [{"from": "human", "value": f"q{i} é 你好"}, {"from": "gpt", "value": f"a{i}"}]}
    for i in range(5)
]


def read(path):
    return read_conversations(Data(source=str(path), heldout_share=0.1))


def as_array():
    return json.dumps(ROWS, ensure_ascii=False, indent=1)


def as_lines():
    return "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", as_array().encode()),
        ("b.jsonl", as_lines().encode()),
        ("c.json", as_lines().encode()),
        ("bom.json", b"\xef\xbb\xbf" + as_array().encode()),
        ("utf16.jsonl", as_lines().encode("utf-16")),
        ("crlf.jsonl", as_lines().replace("\n", "\r\n").encode()),
        ("blank-lines.jsonl", ("\n\n" + as_lines().replace("\n", "\n\n")).encode()),
    ],
)
def test_every_form_gives_the_same_rows(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    assert read(path).rows == ROWS


def test_parquet_gives_the_same_rows(tmp_path):
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet").rows == ROWS


def test_an_array_that_breaks_off_is_read_as_far_as_it_is_whole(tmp_path, capsys):
    text = as_array()
    path = tmp_path / "cut.json"
    path.write_text(text[: text.index("q3")], encoding="utf-8")
    source = read(path)
    assert source.rows == ROWS[:3]
    assert "breaks off in row 4" in source.broken
    assert "the 3 rows before it are used" in capsys.readouterr().out


def test_a_broken_line_is_one_lost_row(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(as_lines().replace('{"conversations"', "{conversations", 1), encoding="utf-8")
    rows = read(path).rows
    assert len(rows) == 5
    assert rows[0].startswith("not valid JSON")
    assert rows[1:] == ROWS[1:]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("empty.json", b"", "no rows in it"),
        ("empty-array.json", b"[]", "no rows in it"),
        ("cut-at-once.json", b'[{"a', "breaks off in row 1"),
        ("latin.json", b'[{"a": "\xe9"}]', "byte 8 is not UTF-8 text"),
        ("table.csv", b"a,b", "is not a .json, .jsonl or .parquet file"),
        ("fake.parquet", b"PAR1", "not a whole parquet file"),
    ],
)
def test_an_unreadable_file_is_named_with_the_reason(tmp_path, name, content, said):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(LabError) as error:
        read(path)
    assert name in str(error.value)
    assert said in str(error.value)


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(LabError, match="does not exist"):
        read(tmp_path / "nowhere.json")
    with pytest.raises(LabError, match="is not a"):
        read(tmp_path)


def test_the_embedded_data_is_the_default(preset):
    source = read_conversations(preset.data)
    assert len(source.rows) >= 400
    assert source.broken is None
