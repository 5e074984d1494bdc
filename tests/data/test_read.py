"""Every kind of file, whole, odd and damaged: rows, rows with errors, `broken`, or one sentence."""

import csv
import gzip
import io
import itertools
import json
import os
import pickle
import random
import re
import subprocess
import sys
import zlib
from pathlib import Path

import pyarrow
import pytest
import zstandard
from hypothesis import example, given
from hypothesis import strategies as st
from pyarrow import parquet

from finelab import LabError
from finelab.data import files_json, files_table, files_text, files_window
from finelab.data.files_json import json_values, jsonl_values
from finelab.data.read import Row, open_source

ROWS = [
    {"conversations": [{"from": "human", "value": f"q{i} é 你好"}, {"from": "gpt", "value": f"a{i}"}]}
    for i in range(5)
]
TABLE = [{"instruction": f'q{i} é, "so"', "output": f"line 1\nline {i}"} for i in range(5)]
ARRAY = json.dumps(ROWS, ensure_ascii=False, indent=1).encode()
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()
CUT = ARRAY[: ARRAY.index(b"q3")]
BOM = b"\xef\xbb\xbf"


def csv_text(delimiter=",", newline="\r\n"):
    text = io.StringIO()
    writer = csv.DictWriter(text, list(TABLE[0]), delimiter=delimiter, lineterminator=newline)
    writer.writeheader()
    writer.writerows(TABLE)
    return text.getvalue().encode()


def parquet_bytes(rows, **options):
    file = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(rows), file, **options)
    return file.getvalue()


def parquet_of(*columns):
    file = io.BytesIO()
    arrays = [pyarrow.array(values) for _, values in columns]
    parquet.write_table(pyarrow.Table.from_arrays(arrays, [name for name, _ in columns]), file)
    return file.getvalue()


def utf16(text, order):
    mark = {"le": b"\xff\xfe", "be": b"\xfe\xff"}[order]
    return mark + text.decode().encode(f"utf-16-{order}")


def crc_flipped(data):
    packed = bytearray(gzip.compress(data))
    packed[-6] ^= 255
    return bytes(packed)


def parquet_with_a_damaged_group():
    """Three row groups of two rows; the second one's compressed page is overwritten."""
    data = bytearray(parquet_bytes(ROWS + ROWS[:1], row_group_size=2, use_dictionary=False))
    column = parquet.ParquetFile(io.BytesIO(data)).metadata.row_group(1).column(0)
    start, size = column.data_page_offset, column.total_compressed_size
    data[start : start + size] = b"\xff" * size
    return bytes(data)


def write(folder, name, content):
    path = folder / name
    path.write_bytes(content)
    return str(path)


def read(folder, name, content):
    source = open_source(write(folder, name, content))
    return source, list(source.rows())


WHOLE = [
    ("array.json", ARRAY, ROWS),
    ("compact.json", json.dumps(ROWS).encode(), ROWS),
    ("bom.json", BOM + ARRAY, ROWS),
    ("bom.jsonl", BOM + LINES, ROWS),
    ("lines-in.json", LINES, ROWS),
    ("lines.jsonl", LINES, ROWS),
    ("lines.ndjson", LINES, ROWS),
    ("UPPER.JSONL", LINES, ROWS),
    ("no-last-newline.jsonl", LINES.rstrip(), ROWS),
    ("utf16le.jsonl", utf16(LINES, "le"), ROWS),
    ("utf16be.jsonl", utf16(LINES, "be"), ROWS),
    ("utf16le.json", utf16(ARRAY, "le"), ROWS),
    ("crlf.jsonl", LINES.replace(b"\n", b"\r\n"), ROWS),
    ("crlf.json", ARRAY.replace(b"\n", b"\r\n"), ROWS),
    ("blank-lines.jsonl", b"\n \n" + LINES.replace(b"\n", b"\n\n"), ROWS),
    ("packed.jsonl.gz", gzip.compress(LINES), ROWS),
    ("packed.json.gz", gzip.compress(ARRAY), ROWS),
    ("two-members.jsonl.gz", gzip.compress(LINES[:300]) + gzip.compress(LINES[300:]), ROWS),
    ("packed.jsonl.zst", zstandard.compress(LINES), ROWS),
    ("two-frames.jsonl.zst", zstandard.compress(LINES[:300]) + zstandard.compress(LINES[300:]), ROWS),
    ("packed-utf16.json.zst", zstandard.compress(utf16(ARRAY, "be")), ROWS),
    ("trailing-comma.json", json.dumps(ROWS).encode()[:-1] + b",\n]\n", ROWS),
    ("one-conversation.json", json.dumps(ROWS[0]).encode(), ROWS[:1]),
    ("one-pretty.json", json.dumps(ROWS[0], indent=2).encode(), ROWS[:1]),
    ("pretty-objects.json", "\n".join(json.dumps(row, indent=2) for row in ROWS).encode(), ROWS),
    ("objects-on-a-line.json", "".join(json.dumps(row) for row in ROWS).encode(), ROWS),
    ("one-row-array.json", b'[\n{"a": 1}\n]\n', [{"a": 1}]),
    ("data.json", json.dumps({"data": ROWS}).encode(), ROWS),
    ("instances.json", json.dumps({"type": "text2text", "n": 5, "instances": ROWS, "x": 1}).encode(), ROWS),
    ("members-behind.json", json.dumps({"data": ROWS, "x": "]}", "y": None, "z": True}).encode(), ROWS),
    ("a-data-list-a-line.jsonl", b'{"data": ["q", "a"]}\n', [{"data": ["q", "a"]}]),
    ("object.json", b"{}", [{}]),
    ("scalars.jsonl", b'"text"\n7\nnull\n[1]\n', ["text", 7, None, [1]]),
    ("scalars.json", b'["text", 7, null, [1], 1.5e3, true]', ["text", 7, None, [1], 1500.0, True]),
    ("duplicate-keys.jsonl", b'{"a": 1, "a": 2}\n', [{"a": 2}]),
    ("lone-surrogate.jsonl", b'{"a": "\\ud800"}\n', [{"a": "\ud800"}]),
    ("lone-surrogate.json", b'[{"a": "\\ud800", "b": "\xc3\xa9"}]', [{"a": "\ud800", "b": "é"}]),
    ("infinity.jsonl", b'{"score": -Infinity}\n', [{"score": float("-inf")}]),
    ("infinity.json", b'[{"score": Infinity}]', [{"score": float("inf")}]),
    ("other-line-separators.jsonl", '{"a": "\u2028\x85"}\n'.encode(), [{"a": "\u2028\x85"}]),
    ("table.csv", csv_text(), TABLE),
    ("unix.csv", csv_text(newline="\n"), TABLE),
    ("bom.csv", BOM + csv_text(), TABLE),
    ("excel-unicode.csv", utf16(csv_text("\t"), "le"), TABLE),
    ("semicolons.csv", csv_text(";"), TABLE),
    ("table.tsv", csv_text("\t"), TABLE),
    ("packed.csv.gz", gzip.compress(csv_text()), TABLE),
    ("packed.tsv.zst", zstandard.compress(csv_text("\t")), TABLE),
    ("blank-lines.csv", b"\n\n" + csv_text() + b"\n\n", TABLE),
    ("index.csv", b",text\n0,hello\n", [{"": "0", "text": "hello"}]),
    ("one-column.csv", b"text\nhello\n", [{"text": "hello"}]),
    ("empty-fields.csv", b"a,b\n,\n", [{"a": "", "b": ""}]),
    ("table.parquet", parquet_bytes(ROWS), ROWS),
    ("groups.parquet", parquet_bytes(ROWS, row_group_size=2), ROWS),
    ("nulls.parquet", parquet_bytes([{"a": None, "b": [1]}, {"a": "x", "b": None}]),
     [{"a": None, "b": [1]}, {"a": "x", "b": None}]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "values"), WHOLE, ids=[case[0] for case in WHOLE])
def test_a_whole_file_gives_its_rows(tmp_path, name, content, values):
    source, rows = read(tmp_path, name, content)
    assert rows == [Row(number, value) for number, value in enumerate(values, start=1)]
    assert source.broken is None
    assert list(source.rows()) == rows  # from the start each time


DAMAGED_ROWS = [
    ("not-json.jsonl", LINES.replace(b'{"conv', b"{conv", 1), 1,
     "line 1: not valid JSON (Expecting property name enclosed in double quotes at character 2)"),
    ("not-json-in.json", LINES.replace(b'{"conv', b"{conv", 1), 1, "line 1: not valid JSON"),
    ("second-of-two.jsonl", b'{"a": 1}\n\n{"a": 2\n', 2, "line 3: not valid JSON (Expecting ',' delimiter"),
    ("cut.jsonl", LINES[:-20], 5, "line 5: not valid JSON (Unterminated string"),
    ("text.jsonl", b"hello\n" + LINES, 1, "line 1: not valid JSON (Expecting value"),
    ("latin-1.jsonl", '{"a": "é"}\n{"a": "e"}'.encode("latin-1"), 1, "line 1: byte 8 is not UTF-8 text"),
    ("latin-1.json", '[{"a": "é"}, {"a": "e"}]'.encode("latin-1"), 1, "character 9 is not UTF-8 text"),
    ("latin-1.csv", "a\né\ne\n".encode("latin-1"), 1, "line 2: not UTF-8 text"),
    ("utf16-lone.jsonl", b"\xff\xfe" + '{"a": "\ud800"}\n1'.encode("utf-16-le", "surrogatepass"), 1,
     "line 1: byte 8 is not UTF-8 text"),
    ("nul.jsonl", b'{"a": "\0"}\n' + LINES, 1, "perhaps UTF-16 without a byte-order mark"),
    ("nul.csv", b"a,b\n1,\0\n1,2\n", 1, "line 2: not csv; it holds NUL bytes"),
    ("deep.jsonl", b"[" * 100_000 + b"]" * 100_000 + b"\n" + LINES, 1, "nested too deeply"),
    ("digits.jsonl", b'{"a": ' + b"9" * 5000 + b"}\n" + LINES, 1, "not valid JSON"),
    ("two-on-a-line.jsonl", b'{"a": 1} {"a": 2}\n' + LINES, 1, "Extra data at character 10"),
    ("comment.jsonl", b"// made by hand\n" + LINES, 1, "Expecting value"),
    ("bom-inside.jsonl", LINES + BOM + LINES, 6, "line 6: not valid JSON (Unexpected UTF-8 BOM"),
    ("too-few.csv", b"a,b\n1\n1,2\n", 1, "line 2: 1 fields where the header names 2"),
    ("too-many.csv", b"a,b\n1,2\n\n1,2,3\n1,2\n", 2, "line 4: 3 fields where the header names 2"),
    ("quote-inside.csv", b'a,b\n1,"so" he said\n1,2\n', 1, "line 2: ',' expected after '\"'"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "content", "number", "said"), DAMAGED_ROWS, ids=[c[0] for c in DAMAGED_ROWS]
)
def test_a_damaged_row_is_lost_alone(tmp_path, name, content, number, said):
    source, rows = read(tmp_path, name, content)
    assert [row.number for row in rows] == list(range(1, len(rows) + 1))
    assert [row.number for row in rows if row.error] == [number]
    assert said in rows[number - 1].error
    assert len(rows[number - 1].value or "") <= 2000
    assert len(rows) > 1
    assert source.broken is None


BROKEN = [
    ("cut.json", CUT, 3, f"the JSON breaks off at character {len(CUT.decode())}, in row 4"),
    ("no-end.json", ARRAY.rstrip()[:-1], 5, "the JSON breaks off"),
    ("cut-after-comma.json", b'[{"a": 1}, ', 1, "the JSON breaks off at character 12, in row 2"),
    ("not-json.json", b'[{"a": 1}, {b: 2}, {"a": 3}]', 1,
     "not valid JSON from character 12 on (Expecting property name enclosed in double quotes at "
     "character 13), in row 2"),
    ("comment.json", b'[{"a": 1}, // one\n {"a": 2}]', 1, "not valid JSON from character 12 on"),
    ("missing-quote.json", b'[{"a": 1}, {"a": "x, "b": 1}, {"a": 3}]', 1, "Expecting ',' delimiter"),
    ("deep.json", b'[{"a": 1}, ' + b"[" * 100_000, 1, "nested too deeply"),
    ("digits.json", b'[{"a": 1}, ' + b"9" * 5000 + b"]", 1, "not valid JSON from character 12 on"),
    ("two-arrays.json", b'[{"a": 1}]\n[{"a": 2}]', 1,
     "text follows the JSON at character 12, in row 2"),
    ("text-behind.json", b'[{"a": 1}] and so on', 1, "text follows the JSON at character 12"),
    ("cut-object.json", b'{"a":\n 1}\n{"a":\n ', 1, "the JSON breaks off"),
    ("cut-data.json", b'{"data": [{"a": 1}, {"a"', 1, "the JSON breaks off at character 24, in row 2"),
    ("no-end-of-data.json", b'{"data": [{"a": 1}], "n": 1', 1, "the JSON breaks off at character 28"),
    ("two-lists.json", b'{"version": "1", "train": [{"a": 1}], "n": -1.5e3, "test": [{"a": 2}]}', 1,
     "a second list or object follows at character 60 and is not read, in row 2"),
    ("two-data-objects.json", b'{"data": [{"a": 1}]} {"data": [{"a": 2}]}', 1,
     "text follows the JSON at character 22, in row 2"),
    ("cut.jsonl.gz", gzip.compress(LINES)[:-20], 3, "the gzip stream breaks off after"),
    ("cut.jsonl.zst", zstandard.compress(LINES)[:-3], 0, "the zstd stream breaks off after"),
    ("crc.jsonl.gz", crc_flipped(LINES), 0, "incorrect data check"),
    ("garbage-behind.jsonl.gz", gzip.compress(LINES) + b"garbage", 5, "in row 6"),
    ("garbage-behind.json.gz", gzip.compress(ARRAY) + b"garbage", 5, "in row 6"),
    ("unclosed.csv", b'a,b\n1,2\n3,"4\n5,6\n7,8\n', 1, "a quote opened in line 3 is never closed, in row 2"),
    ("damaged.parquet", parquet_with_a_damaged_group(), 2, "the parquet data cannot be read"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "whole", "said"), BROKEN, ids=[case[0] for case in BROKEN])
def test_a_file_that_breaks_off_is_read_as_far_as_it_is_whole(tmp_path, name, content, whole, said):
    source = open_source(write(tmp_path, name, content))
    rows = list(itertools.islice(source.rows(), whole))
    assert len(rows) == whole
    assert source.broken is None  # not known yet
    if whole:
        assert list(source.rows()) == rows
    else:
        with pytest.raises(LabError, match=re.escape(name)):
            list(source.rows())
    assert all(row.error is None for row in rows)
    assert said in source.broken
    assert f"in row {whole + 1}" in source.broken


@pytest.mark.parametrize("name", ["cut.json", "cut.jsonl.gz", "cut.json.gz", "cut.jsonl.zst", "cut.json.zst"])
def test_wherever_a_file_is_cut_the_rows_before_are_given(tmp_path, name):
    text = LINES if ".jsonl" in name else ARRAY
    pack = {".gz": gzip.compress, ".zst": zstandard.compress}.get(Path(name).suffix, bytes)
    whole = pack(text)
    for end in range(1, len(whole)):
        source = open_source(write(tmp_path, name, whole[:end]))
        rows = []
        try:
            rows.extend(source.rows())
        except LabError as error:
            assert name in str(error)
        assert [row.value for row in rows] == ROWS[: len(rows)]
        assert source.broken
        assert f"in row {len(rows) + 1}" in source.broken


UNUSABLE = [
    ("blank.json", b" \n\t\n ", "no rows in it"),
    ("blank.jsonl", b"\n\n", "no rows in it"),
    ("bom-only.jsonl", BOM, "no rows in it"),
    ("empty-array.json", b"[]", "no rows in it"),
    ("empty-data.json", b'{"data": []}', "no rows in it"),
    ("null.json", b"null", "expected a JSON array or JSON objects, found 'n'"),
    ("number.json", b"12", "expected a JSON array or JSON objects, found '1'"),
    ("string.json", b'"text"', "expected a JSON array or JSON objects, found '\"'"),
    ("words.json", b"hello", "expected a JSON array or JSON objects, found 'h'"),
    ("comment.json", b"// rows\n[1]", "expected a JSON array or JSON objects, found '/'"),
    ("single-quotes.json", b"[{'a': 1}]", "not valid JSON from character 2 on"),
    ("cut-at-once.json", b'[{"a', "the JSON breaks off at character 4, in row 1"),
    ("cut-object.json", b'{"a": ', "the JSON breaks off at character 6, in row 1"),
    ("no-mark-utf16le.json", ARRAY.decode().encode("utf-16-le"), "perhaps UTF-16 without a byte-order mark"),
    ("no-mark-utf16le.jsonl", LINES.decode().encode("utf-16-le"), "perhaps UTF-16 without a byte-order mark"),
    ("no-mark-utf16be.jsonl", LINES.decode().encode("utf-16-be"), "perhaps UTF-16 without a byte-order mark"),
    (
        "no-mark-utf16le.csv",
        b"a,b\n1,2\n".decode().encode("utf-16-le"),
        "perhaps UTF-16 without a byte-order",
    ),
    ("zeros.jsonl", bytes(3000), "it holds NUL bytes"),
    ("pretty.jsonl", json.dumps({"a": {"b": 1}}, indent=2).encode(), "name the file .json"),
    ("all-latin.jsonl", "{'é'}".encode("latin-1"), "line 1: byte 3 is not UTF-8 text"),
    ("really-gzip.jsonl", gzip.compress(LINES), "it holds .gz data; end the file's name in .gz"),
    ("really-zst.csv", zstandard.compress(LINES), "it holds .zst data"),
    ("really-parquet.json", parquet_bytes(ROWS), "it holds .parquet data"),
    ("not-gzip.jsonl.gz", LINES, "breaks off after 0 bytes of text"),
    ("not-zst.jsonl.zst", LINES, "breaks off after 0 bytes of text"),
    ("cut-header.jsonl.gz", gzip.compress(LINES)[:5], "the gzip stream breaks off after 0 bytes"),
    ("cut-header.jsonl.zst", zstandard.compress(LINES)[:5], "the zstd stream breaks off after 0 bytes"),
    ("nothing.jsonl.gz", gzip.compress(b""), "no rows in it"),
    ("garbage.parquet", b"no parquet at all", "not a whole parquet file"),
    ("magic-only.parquet", b"PAR1", "not a whole parquet file"),
    ("cut.parquet", parquet_bytes(ROWS)[:-9], "not a whole parquet file"),
    ("no-rows.parquet", parquet_of(("a", [])), "no rows in it"),
    ("twice.parquet", parquet_of(("a", [1]), ("a", [2])), "two columns are named 'a'"),
    ("header-only.csv", b"a,b\n", "no rows in it"),
    ("blank.csv", b"\n\n", "no rows in it"),
    ("twice.csv", b"a,b,a\n1,2,3\n", "the header cannot be used: two columns are named 'a'"),
    ("nameless.csv", b" \n1\n", "the header cannot be used: no column has a name"),
    ("commas.csv", b",,\n1,2,3\n", "the header cannot be used: no column has a name"),
    ("nul-header.csv", b"a,\0\n1,2\n", "the header cannot be used: not csv; it holds NUL bytes"),
    ("latin-header.csv", "é\n1\n".encode("latin-1"), "the header cannot be used: not UTF-8 text"),
    ("quote-in-header.csv", b'"a"b\n1\n', "the header cannot be used: ',' expected after '\"'"),
    ("old-mac.csv", b"a,b\r1,2\r", "the header cannot be used: a carriage return alone stands in it; save"),
    ("all-ragged.csv", b"a,b\n1\n2\n", "line 2: 1 fields where the header names 2"),
]


@pytest.mark.parametrize(("name", "content", "said"), UNUSABLE, ids=[case[0] for case in UNUSABLE])
def test_a_file_without_one_readable_row_is_named_with_the_reason(tmp_path, name, content, said):
    source = open_source(write(tmp_path, name, content))
    with pytest.raises(LabError) as error:
        list(source.rows())
    assert name in str(error.value)
    assert said in str(error.value)


@pytest.mark.parametrize(
    "name", ["table.xlsx", "noending", "rows.gz", "rows.parquet.gz", "rows.txt", ".json"]
)
def test_an_unknown_kind_names_the_known_ones(tmp_path, name):
    with pytest.raises(LabError) as error:
        open_source(write(tmp_path, name, LINES))
    assert name in str(error.value)
    for kind in (".json", ".jsonl", ".csv", ".tsv", ".parquet", ".gz", ".zst"):
        assert kind in str(error.value)


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.csv", "a.parquet", "a.jsonl.gz"])
def test_an_empty_file_is_refused_at_once(tmp_path, name):
    with pytest.raises(LabError, match=rf"{name} is empty"):
        open_source(write(tmp_path, name, b""))


@pytest.mark.parametrize(
    "text",
    ["nowhere.json", "owner/name.parquet", "./name", "../owner/name", "/owner/name", "a/b/c", "name",
     r"C:\x\y.json", r"C:\x\y", r".\x\y.csv", "C:/y", "C:/x/y.jsonl", "a b/c", "owner/", "/name", "name@main",
     "bad\0name"],
)  # fmt: skip
def test_a_path_that_does_not_exist_is_no_hub_data_set(text, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LabError, match="does not exist"):
        open_source(text)


def test_a_folder_is_refused(tmp_path, monkeypatch):
    (tmp_path / "owner" / "name").mkdir(parents=True)
    (tmp_path / "folder.jsonl").mkdir()
    monkeypatch.chdir(tmp_path)
    for text in ("owner/name", "folder.jsonl", str(tmp_path)):
        with pytest.raises(LabError, match="is not a file"):
            open_source(text)


def test_a_file_with_a_hub_like_name_is_the_file(tmp_path, monkeypatch):
    (tmp_path / "owner").mkdir()
    write(tmp_path, "owner/name@v1.jsonl", LINES)
    monkeypatch.chdir(tmp_path)
    assert [row.value for row in open_source("owner/name@v1.jsonl").rows()] == ROWS


@pytest.mark.skipif(os.name == "nt" or getattr(os, "geteuid", int)() == 0, reason="root may read everything")
def test_a_file_without_permission_is_named(tmp_path):
    path = write(tmp_path, "secret.jsonl", LINES)
    Path(path).chmod(0)
    with pytest.raises(LabError, match=r"cannot read .*secret.jsonl: Permission denied"):
        open_source(path)


def test_a_name_that_is_not_utf8_is_refused(tmp_path):
    path = tmp_path / "b\udcff.jsonl"
    with pytest.raises(LabError, match=r"b\\udcff.jsonl': its name is not UTF-8 text; rename it"):
        open_source(str(path))


def test_a_file_that_vanishes_is_named(tmp_path):
    path = write(tmp_path, "short-lived.jsonl", LINES)
    source = open_source(path)
    Path(path).unlink()
    with pytest.raises(LabError, match=r"cannot read .*short-lived.jsonl: No such file"):
        list(source.rows())


def test_the_embedded_data_are_whole():
    source = open_source("embedded")
    rows = list(source.rows())
    assert (source.name, source.revision, source.broken) == ("embedded", "", None)
    assert len(rows) >= 400
    assert all(row.error is None for row in rows)


def test_the_name_is_what_was_written_and_the_hash_follows_the_bytes(tmp_path):
    first, again, other = (
        open_source(write(tmp_path, name, content))
        for name, content in (("a.jsonl", LINES), ("b.jsonl", LINES), ("c.jsonl", LINES + b"\n"))
    )
    assert first.name == str(tmp_path / "a.jsonl")
    assert first.sha256 == again.sha256 != other.sha256
    assert first.revision == ""


def test_a_row_and_a_source_can_be_sent_to_another_process(tmp_path):
    source, rows = read(tmp_path, "a.jsonl.gz", gzip.compress(LINES))
    assert pickle.loads(pickle.dumps(rows)) == rows
    assert list(pickle.loads(pickle.dumps(source)).rows()) == rows


def test_arrow_rows_that_python_cannot_hold_are_lost_alone(tmp_path):
    texts = pyarrow.array([b"good", b"b\xe9d", b"fine"]).cast(pyarrow.binary())
    column = pyarrow.Array.from_buffers(pyarrow.utf8(), 3, texts.buffers())
    parquet.write_table(pyarrow.table({"text": column}), tmp_path / "a.parquet")
    rows = list(open_source(str(tmp_path / "a.parquet")).rows())
    assert [row.value for row in rows] == [{"text": "good"}, None, {"text": "fine"}]
    assert "can't decode byte 0xe9" in rows[1].error


def test_a_parquet_file_gives_its_json_parsed_and_no_member_that_is_there_for_another_row(tmp_path):
    rows = [
        {"turns": [{"text": "a", "call": {"x": 1}}, {"text": None, "call": {"y": [None]}}], "score": 1},
        {"turns": None, "score": None},
        {"turns": None, "score": None},
    ]
    said = pyarrow.array(['["a", {"x": null}]', None, "no JSON"], pyarrow.json_())
    table = pyarrow.Table.from_pylist(rows).append_column("said", said)
    parquet.write_table(table, tmp_path / "a.parquet")
    first, second, third = open_source(str(tmp_path / "a.parquet")).rows()
    assert first.value == {
        "turns": [{"text": "a", "call": {"x": 1}}, {"call": {"y": [None]}}],
        "score": 1,
        "said": ["a", {"x": None}],
    }
    assert second.value == {"turns": None, "score": None, "said": None}
    assert "Expecting value" in third.error


def test_an_overlong_line_is_lost_alone(tmp_path, monkeypatch):
    for module in (files_text, files_json):
        monkeypatch.setattr(module, "LONGEST_ROW", 1000)
        monkeypatch.setattr(files_text, "CHUNK", 300)
    long = json.dumps({"a": "x" * 5000}).encode() + b"\n"
    _, rows = read(tmp_path, "a.jsonl", LINES + long + LINES + long.rstrip())
    assert [row.number for row in rows if row.error] == [6, 12]
    assert rows[5].error == "line 6: longer than 64 MB"
    assert rows[5].value.startswith('{"a": "xxx')
    assert [row.value for row in rows if not row.error] == ROWS + ROWS


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (
            "a.json",
            b'[{"a": 1}, {"a": "' + b"x" * 5000 + b'"}]',
            "the JSON value at character 12 is longer than",
        ),
        ("a.csv", b"a\n1\n" + b"x" * 5000 + b"\n", "line 3 is longer than 64 MB"),
        ("b.csv", b'a\n1\n"' + b"x\n" * 5000, "a quote opened in line 3 is never closed"),
    ],
)
def test_an_overlong_element_ends_the_reading(tmp_path, monkeypatch, name, content, said):
    for module in (files_text, files_window, files_table):
        monkeypatch.setattr(module, "LONGEST_ROW", 1000)
        monkeypatch.setattr(files_text, "CHUNK", 300)
    source, rows = read(tmp_path, name, content)
    assert len(rows) == 1
    assert said in source.broken
    assert "in row 2" in source.broken


json_values_of_any_kind = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


@given(st.lists(json_values_of_any_kind), st.sampled_from([None, 0, 2]), st.booleans(), st.integers(1, 40))
@example([1, 1.5, 1e300, -1.5e-9], None, True, 1)
def test_chunks_of_any_size_give_what_json_gives(values, indent, ascii_only, size):
    text = json.dumps(values, indent=indent, ensure_ascii=ascii_only)
    data = text.encode()
    parsed = list(json_values(data[i : i + size] for i in range(0, len(data), size)))
    assert parsed == [(value, None) for value in values]


@given(st.lists(json_values_of_any_kind), st.integers(1, 40))
def test_lines_in_chunks_of_any_size_give_what_json_gives(values, size):
    data = "\n".join(json.dumps(value) for value in values).encode()
    parsed = list(jsonl_values(data[i : i + size] for i in range(0, len(data), size)))
    assert parsed == [(value, None) for value in values]


KINDS = {
    "a.json": ARRAY,
    "a.jsonl": LINES,
    "a.csv": csv_text(),
    "a.jsonl.gz": gzip.compress(LINES),
    "a.json.zst": zstandard.compress(ARRAY),
    "a.parquet": parquet_bytes(ROWS),
}


@given(
    st.sampled_from(sorted(KINDS)),
    st.floats(0, 1),
    st.integers(0, 50),
    st.binary(max_size=50) | st.sampled_from([b"\0", b'"', b"[", b"}", b"\xff\xfe", b"\n", b",", b"\\"]),
)
def test_no_damage_ends_in_a_traceback(tmp_path_factory, name, where, cut, put):
    content = KINDS[name]
    at = int(where * len(content))
    path = tmp_path_factory.getbasetemp() / name
    path.write_bytes(content[:at] + put + content[at + cut :])
    try:
        source = open_source(str(path))
        for number, row in enumerate(source.rows(), start=1):
            assert row.number == number
    except LabError as error:
        assert name in str(error)
        assert "\n" not in str(error)


GROWTH = r"""
import re, sys
from pathlib import Path
from finelab.data.read import open_source
import pyarrow.parquet, zstandard

def peak():
    if (status := Path("/proc/self/status")).exists():
        # not ru_maxrss here: Linux starts it at the peak of the process that started this one
        return int(re.search(r"VmHWM:\s+(\d+)", status.read_text())[1]) / 2**10
    import resource
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20

before = peak()
rows = errors = 0
for row in open_source(sys.argv[1]).rows():
    rows += 1
    errors += row.error is not None
print(rows, errors, peak() - before)
"""


def growth(path):
    """The rows and errors in a file, and by how many MB a process grew at most to read it."""
    done = subprocess.run(
        [sys.executable, "-c", GROWTH, str(path)], capture_output=True, text=True, check=True
    )
    rows, errors, megabytes = done.stdout.split()
    return int(rows), int(errors), float(megabytes)


@pytest.fixture
def big_file(tmp_path):
    """Writes a file of any size from parts, and takes it away afterwards."""

    def create(name, parts):
        with (tmp_path / name).open("wb") as file:
            file.writelines(parts)
        return tmp_path / name

    yield create
    for path in tmp_path.iterdir():
        path.unlink()


def packed(parts, suffix):
    """The parts, compressed as the suffix says."""
    if not suffix:
        yield from parts
        return
    stream = zlib.compressobj(1, wbits=31) if suffix == ".gz" else zstandard.ZstdCompressor().compressobj()
    yield from map(stream.compress, parts)
    yield stream.flush()


ROW = json.dumps({"conversations": [{"from": "human", "value": "x é" * 1000}]}, ensure_ascii=False).encode()
MANY = 100 * 2**20 // len(ROW)


BIG_FILES = {
    "big.jsonl": (b"", ROW + b"\n", b""),
    "big.json": (b"[", ROW + b",\n", b"]"),
    "big.csv": (b"text,more\n", b'"' + b"x,y" * 1300 + b'",z\n', b""),
}


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows does not tell the peak")
@pytest.mark.parametrize("name", BIG_FILES)
def test_100_mb_are_read_in_little_memory(big_file, name):
    start, row, end = BIG_FILES[name]
    rows, errors, megabytes = growth(big_file(name, [start, *itertools.repeat(row, MANY), end]))
    assert (rows, errors) == (MANY, 0)
    assert megabytes < 50  # measured: 13


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows does not tell the peak")
def test_a_parquet_file_of_one_row_group_is_not_read_whole(big_file):
    noise = random.Random(0)
    texts = pyarrow.array([noise.randbytes(2000).hex() for _ in range(50_000)])
    path = big_file("one-group.parquet", [])
    parquet.write_table(pyarrow.table({"text": texts}), path)
    assert path.stat().st_size > 190e6
    rows, errors, megabytes = growth(path)
    assert (rows, errors) == (50_000, 0)
    assert megabytes < 120  # measured: 55


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows does not tell the peak")
@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_a_line_of_512_mb_is_lost_alone_in_little_memory(big_file, suffix):
    parts = itertools.chain([ROW, b'\n{"a": "'], itertools.repeat(b"x" * 2**20, 512), [b'"}\n', ROW])
    rows, errors, megabytes = growth(big_file("long.jsonl" + suffix, packed(parts, suffix)))
    assert (rows, errors) == (3, 1)
    assert megabytes < 300  # measured: 130


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows does not tell the peak")
def test_an_element_of_512_mb_ends_the_reading_in_little_memory(big_file):
    parts = itertools.chain([b"[", ROW, b', {"a": "'], itertools.repeat(b"x" * 2**20, 512), [b'"}]'])
    rows, errors, megabytes = growth(big_file("long.json", parts))
    assert (rows, errors) == (1, 0)
    assert megabytes < 300  # measured: 130
