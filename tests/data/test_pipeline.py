"""The whole data stage over real files."""

import copy
import json

import pytest

from finelab import LabError, data, recipe
from finelab.data import pipeline


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch, embedded_folder):
    monkeypatch.setenv("FINELAB_CACHE", str(tmp_path / "cache"))


def row(question, answer="an answer", **columns):
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"conversations": turns, **columns}


def many(count, **columns):
    return [row(f"What is question number {n}?", f"It is answer {n}.", **columns) for n in range(count)]


def changed(preset, *files, **values):
    texts = [f"data.sources={json.dumps([str(file) for file in files])}", "data.heldout_sources=[]"]
    return recipe.override(
        preset, texts + [f"data.{key}={json.dumps(value)}" for key, value in values.items()]
    )


@pytest.fixture
def prepared(preset, tokenizer):
    def run(*files, workers=1, **values):
        return data.prepare(changed(preset, *files, **values), tokenizer, workers)

    return run


@pytest.fixture(scope="module")
def chats(tokenizer):
    return data.ChatTokenizer(tokenizer, "26 Jul 2024", 2048, "cut_turn")


def ids(prepared, name):
    return prepared.split(name)["id"][:]


def test_the_numbers_add_up_and_every_row_is_somewhere(prepared, write_rows, preset):
    rows = [*many(200), *many(3), row("q", ""), {"text": "?"}, row("long " * 3000)]
    made = prepared(write_rows(rows))
    report = made.report
    assert (report["rows_in"], report["rows_chosen"], report["rows_kept"]) == (206, 201, 200)
    assert report["dropped"] == {
        "no answer to a question": 1,
        "no conversation column among: 'text'": 1,
        "duplicate of another row": 3,
        "the first answer ends behind max_seq_length": 1,
    }
    assert report["train_rows"] + report["heldout_rows"] == 200
    assert not set(ids(made, "train")) & set(ids(made, "heldout"))
    lost = [json.loads(line) for line in (made.folder / "dropped.jsonl").read_text("utf-8").splitlines()]
    assert sorted(each["row"] for each in lost) == [201, 202, 203, 204, 205, 206]
    assert all(check.passed for check in data.checks(report, preset.data))


@pytest.mark.parametrize(("rows", "few"), [(30, True), (200, False)])
def test_the_summary_says_where_a_small_file_leaves_too_few_rows_for_a_verdict(
    prepared, write_rows, rows, few
):
    report = prepared(write_rows(many(rows))).report
    assert (report["heldout_rows"] < 8) is few
    assert ("fewer than 8 held-out rows give no verdict" in data.summary(report)) is few


def test_tokens_are_counted_as_they_stand_in_the_rows(prepared, write_rows):
    made = prepared(write_rows(many(60)))
    rows = [each for name in ("train", "heldout") for each in made.split(name)]
    assert made.report["tokens_total"] == sum(len(each["input_ids"]) for each in rows)
    trained = sum(label != data.IGNORE for each in rows for label in each["labels"])
    assert made.report["tokens_trained"] == trained == sum(each["trained_tokens"] for each in rows)


def test_two_workers_make_the_same_as_one(prepared, write_rows, monkeypatch, tmp_path):
    path = write_rows(many(1700))
    one = prepared(path, workers=1)
    monkeypatch.setenv("FINELAB_CACHE", str(tmp_path / "other"))
    two = prepared(path, workers=2)
    assert one.folder != two.folder
    for name in ("train", "heldout"):
        assert one.split(name).to_list() == two.split(name).to_list()
    assert one.report == two.report


def test_an_unchanged_input_is_not_processed_twice_and_a_changed_one_is(prepared, write_rows, capsys):
    path = write_rows(many(60))
    first = prepared(path)
    assert "nothing changed" not in capsys.readouterr().out
    assert prepared(path).folder == first.folder
    assert "nothing changed" in capsys.readouterr().out
    assert prepared(path, date_string="1 Jan 2025").folder != first.folder
    assert prepared(write_rows(many(61))).folder != first.folder
    assert "nothing changed" not in capsys.readouterr().out


def test_the_rows_hash_follows_their_tokens_and_nothing_else(prepared, write_rows, tokenizer, preset):
    path = write_rows(many(60))
    made = prepared(path).report
    again = prepared(path, max_leaked_share=0.5).report
    assert (again["sha256"], again["rows_sha256"]) == (made["sha256"], made["rows_sha256"])
    other = copy.copy(tokenizer)
    other.chat_template = tokenizer.chat_template.replace("You are a helpful", "You are a")
    assert other.chat_template != tokenizer.chat_template
    changed_rows = data.prepare(changed(preset, path), other).report
    assert changed_rows["sha256"] == made["sha256"]
    assert changed_rows["rows_sha256"] != made["rows_sha256"]


def test_another_end_token_is_prepared_anew(preset, tokenizer):
    other = copy.deepcopy(tokenizer)
    other.eos_token = "<|endoftext|>"
    sources = [data.open_source("embedded")]
    keys = [pipeline.cache_key(preset, sources, each) for each in (tokenizer, copy.copy(tokenizer), other)]
    assert keys[0] == keys[1] != keys[2]


def test_rows_stay_on_their_side_when_others_are_added(prepared, write_rows):
    few = set(ids(prepared(write_rows(many(80))), "heldout"))
    more = set(ids(prepared(write_rows(many(120))), "heldout"))
    assert few < more


def test_a_limit_keeps_so_many_rows_and_the_others_are_told(prepared, write_rows):
    report = prepared(write_rows([*many(200), {"text": "?"}]), limit=100).report
    assert report["rows_kept"] == 100
    lost, not_picked = data.left_out(report).splitlines()
    assert lost.endswith("rows.jsonl, row 201)")
    assert not_picked == "     100  not picked by data.limit or data.weights"


@pytest.mark.parametrize("values", [{}, {"limit": 100}], ids=["all", "some"])
def test_the_share_of_lost_rows_is_that_of_the_rows_that_were_tried(prepared, write_rows, preset, values):
    too_long = [row(f"Question {n}?", f"{n} " + "long " * 3000) for n in range(180)]
    report = prepared(write_rows([*many(120), *too_long, *[{"text": "?"}] * 40]), **values).report
    lost_of_chosen = 1 - report["rows_kept"] / report["rows_chosen"]
    assert lost_of_chosen == pytest.approx(0.6, abs=0.2)
    assert report["dropped_share"] == pytest.approx(40 / 340 + 300 / 340 * lost_of_chosen)
    with pytest.raises(LabError, match="dropped_share"):
        data.require(data.checks(report, preset.data))


def test_a_file_that_breaks_off_is_told_each_time(prepared, tmp_path):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(many(60))[:-1] + ", oops]", encoding="utf-8")
    for _ in range(2):
        report = prepared(path).report
        assert report["rows_kept"] == 60
        assert "rows.json: not valid JSON" in data.left_out(report)
        assert "in row 61; nothing behind it is read" in data.left_out(report)


CALLING = {
    "messages": [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": None, "tool_calls": [{"name": "f", "arguments": "{}"}]},
        {"role": "tool", "content": "r"},
        {"role": "assistant", "content": "a"},
    ]
}


@pytest.mark.parametrize(
    ("rows", "answer"),
    [
        ([{"text": "?"}, row("q", "long " * 3000), row("q", "good")], "good"),
        ([CALLING], '{"name": "f", "arguments": {}}'),
    ],
    ids=["behind a row that is too long", "a call for a template without calls"],
)
def test_the_example_is_the_first_row_that_can_be_trained_on(write_rows, chats, tokenizer, rows, answer):
    found = data.example(data.open_source(str(write_rows(rows))), chats)
    assert found.conversation.messages[1]["content"] == answer
    learned = tokenizer.decode(found.input_ids[found.labels != data.IGNORE])
    assert learned.startswith(f"{answer}<|im_end|>")


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (
            [{"text": "?"}, *[row("q", "long " * 3000)] * 2],
            "(2 x the first answer ends behind max_seq_length, 1 x no conversation column among: 'text'); "
            "raise model.max_seq_length = 2048, or mend the rows.",
        ),
        (
            [{"text": "?"}, {"text": "!"}, row("long " * 3000, "short")],
            "(2 x no conversation column among: 'text', 1 x the first answer ends behind max_seq_length); "
            "expected turns in `conversations` or `messages`, or a question and an answer",
        ),
    ],
    ids=["too long", "no column"],
)
def test_without_an_example_the_reasons_are_told_and_what_to_do(write_rows, chats, rows, said):
    with pytest.raises(LabError) as error:
        data.example(data.open_source(str(write_rows(rows))), chats)
    assert f"none of 3 rows can be used {said}" in str(error.value)


def test_sources_are_mixed_by_their_weights(prepared, write_rows):
    first = write_rows(many(100, source="first"), "first.jsonl")
    other = [row(f"Another question {n}?", source="second") for n in range(300)]
    second = write_rows(other, "second.jsonl")
    by_source = prepared(first, second, weights=[0.75, 0.25]).report["by_source"]
    assert [(each["source"], each["rows"]) for each in by_source] == [("first", 100), ("second", 33)]


def test_filters_leave_rows_out_with_a_reason(prepared, write_rows):
    german = row("Wie heißt die Hauptstadt von Österreich?", "Die Hauptstadt von Österreich heißt Wien. " * 4)
    rows = [*many(60, score=5.0), row("Is this row any good?", "No.", score=1.0), german]
    report = prepared(write_rows(rows), min_score=3.0, languages=["en"], min_trained_tokens=5).report
    assert report["dropped"]["score below data.min_score"] == 1
    assert report["dropped"]["language de is not in data.languages"] == 1
    assert report["dropped_share"] == 0
    assert report["rows_kept"] == 60


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (
            {"min_score": 4.5},
            "the filters of [data] leave out every row (60 x score below data.min_score); loosen them",
        ),
        ({"min_score": 4.5, "weights": [1]}, "the filters of [data] leave out every row (60 x score below"),
        ({"min_trained_tokens": 500}, "data.min_trained_tokens); lower data.min_trained_tokens, or mend"),
    ],
    ids=["score", "score and weights", "trained tokens"],
)
def test_filters_that_leave_nothing_are_named(prepared, write_rows, values, said):
    with pytest.raises(LabError) as error:
        prepared(write_rows(many(60, score=1.0)), **values)
    assert said in str(error.value)
    assert "max_seq_length" not in str(error.value)


def test_rows_that_are_all_too_long_are_told_what_to_raise(prepared, write_rows):
    with pytest.raises(LabError, match=r"none of 2 rows .*; raise model\.max_seq_length = 2048, or mend"):
        prepared(write_rows([*[row("q", "long " * 3000)] * 5, row("r", "long " * 3000)]))


def test_rows_with_one_question_are_told_so(prepared, write_rows):
    rows = [row("Classify.", f"kind {n}") for n in range(60)]
    with pytest.raises(LabError, match="all 60 rows have the same first question"):
        prepared(write_rows(rows))
    with pytest.raises(LabError, match=r"of 4 rows .* raise data\.limit where it is set"):
        prepared(write_rows(many(60)), limit=4)


def test_near_duplicates_go_when_they_are_asked_to(prepared, write_rows):
    text = " ".join(f"word{n}" for n in range(100))
    rows = [*many(60), row("Say it.", text), row("Say it.", text + " more")]
    assert prepared(write_rows(rows)).report["rows_kept"] == 62
    report = prepared(write_rows(rows), duplicates="near").report
    assert report["dropped"] == {"nearly a duplicate of another row": 1}


@pytest.mark.parametrize("again", ["an answer as it is", "an answer as it was"])
def test_a_good_row_is_not_lost_to_a_bad_one_that_says_the_same(prepared, write_rows, again):
    said = " ".join(f"word{n}" for n in range(100))
    bad, good = (
        row("What?", f"{said} {again}", score=2.0),
        row("What?", f"{said} an answer as it is", score=5.0),
    )
    made = prepared(write_rows([*many(60, score=5.0), bad, good]), min_score=4.5, duplicates="near")
    assert made.report["rows_kept"] == 61
    assert made.report["dropped"] == {"score below data.min_score": 1}


def test_validation_rows_are_no_leaks(prepared, write_rows):
    text = " ".join(f"word{n}" for n in range(100))
    rows = [*many(60), *(row(f"Say it, {n}!", text) for n in range(40))]
    report = prepared(write_rows(rows), heldout_share=0.05, validation_share=0.5).report
    assert report["validation_rows"] > 30
    assert report["leaked_rows"] <= report["heldout_rows"] < 15


def test_a_leak_between_the_sides_is_counted(prepared, write_rows):
    text = " ".join(f"word{n}" for n in range(100))
    rows = [*many(60), *(row(f"Say it, {n}!", text) for n in range(40))]
    report = prepared(write_rows(rows), max_leaked_share=0.05).report
    assert report["leaked_rows"] > 0
    assert report["leaked_share"] > 0.05


def test_too_many_lost_rows_stop_it_and_leave_nothing(prepared, write_rows, tmp_path):
    with pytest.raises(LabError, match=r"20 of 40 rows cannot be used.*\n.*\n.*rows\.jsonl, row 21"):
        prepared(write_rows([*many(20), *[{"text": "?"}] * 20]))
    assert not list((tmp_path / "cache").glob("data/*"))


def test_a_row_is_found_again_as_it_was_read(prepared, write_rows):
    made = prepared(write_rows([{"text": "?"}, *many(60)]))
    some = made.split("train")[7]
    assert made.raw(some)["conversations"][0]["value"] == data.conversation(some).messages[0]["content"]


def test_a_run_holds_on_to_its_rows(prepared, write_rows, run, tmp_path):
    import shutil

    data.save(run, prepared(write_rows(many(60))))
    shutil.rmtree(tmp_path / "cache" / "data")
    assert len(data.load_split(run, "train")) == run.evidence()["data"]["train_rows"]
    assert (run.folder / "data" / "dropped.jsonl").exists()
