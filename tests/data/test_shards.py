"""The data stage in shards: the same rows as in one piece, and after a kill no more than one shard again."""

import errno
import gc
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import datasets
import pyarrow as pa
import pytest

from finelab import LabError, data, recipe
from finelab.data import pipeline, shards
from finelab.train.batches import token_counts

WORDS = ["code", "is", "orbit", "of", "stone", "light", "the", "Größe", "Привет", "你好", "½", "café"]
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="a process with threads cannot be forked")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch, embedded_folder):
    monkeypatch.setenv("FINELAB_CACHE", str(tmp_path / "cache"))


def synthetic(count):
    """Rows of every kind: repeated, repaired, of other dialects, and of no use."""
    draw = random.Random(1)

    def text(words):
        return " ".join(draw.choices(WORDS, k=words))

    rows = []
    for n in range(count):
        turns = [{"from": "human", "value": f"{n}: {text(9)}?"}, {"from": "gpt", "value": " " + text(60)}]
        kinds = [{"conversations": turns, "source": f"s{n % 3}"}] * 12
        kinds += [rows[-1] if rows else {}, {"instruction": text(8), "output": text(9)}, {"text": "?"}]
        rows.append(draw.choice(kinds))
    return rows


def chosen(preset, path, *assignments):
    texts = [f"data.sources={json.dumps([str(path), 'embedded'])}", "data.heldout_sources=[]"]
    return recipe.override(preset, [*texts, *assignments])


def everything(prepared):
    lost = (prepared.folder / "dropped.jsonl").read_text("utf-8").splitlines()
    return [prepared.split(name).to_list() for name in ("train", "heldout")], prepared.report, sorted(lost)


def in_a_fork(function, *arguments, wait=True):
    """A process that calls the function, as patched as this one is."""
    process = multiprocessing.get_context("fork").Process(target=function, args=arguments)
    process.start()
    if wait:
        process.join()
    return process


@pytest.mark.parametrize(
    "assignments",
    [
        [],
        ['data.duplicates="near"', "data.limit=450"],
        ["data.weights=[0.5,0.5]", 'data.languages=["en","fr","de"]'],
    ],
    ids=["as it is", "near and limit", "mix and filter"],
)
@pytest.mark.slow
def test_shards_hold_the_rows_that_one_piece_holds(
    preset, tokenizer, write_rows, tmp_path, monkeypatch, assignments
):
    mixed = chosen(preset, write_rows(synthetic(1250)), *assignments)
    whole = everything(data.prepare(mixed, tokenizer))
    monkeypatch.setenv("FINELAB_CACHE", str(tmp_path / "other"))
    monkeypatch.setattr(shards, "SHARD", 150)
    monkeypatch.setattr(shards, "CHUNK", 35)
    sharded = data.prepare(mixed, tokenizer, workers=2)
    assert len(list((sharded.folder / "train").glob("*.arrow"))) > 3
    assert everything(sharded) == whole


@on_linux
@pytest.mark.slow
@pytest.mark.parametrize("which", ["_write_conversations", "_write_tokens"])
def test_a_kill_costs_one_shard(preset, tokenizer, write_rows, tmp_path, monkeypatch, capsys, which):
    mixed = chosen(preset, write_rows(synthetic(750)))
    write, made = getattr(shards, which), []

    def killed(stage, results, bar):
        write(stage, results, bar)
        made.append(stage)
        if len(made) == 3:
            os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(shards, "SHARD", 150)
    monkeypatch.setattr(shards, which, killed)
    assert in_a_fork(data.prepare, mixed, tokenizer, 2).exitcode == -signal.SIGKILL

    monkeypatch.setattr(shards, which, lambda stage, *rest: made.append(stage) or write(stage, *rest))
    resumed = data.prepare(mixed, tokenizer)
    assert "goes on behind the last shard that is whole" in capsys.readouterr().out
    assert len(made) == 9 - 2  # 5 shards of the file and 4 of the embedded rows; 2 were whole
    assert [path.name for path in resumed.folder.parent.iterdir()] == [resumed.folder.name]
    monkeypatch.setenv("FINELAB_CACHE", str(tmp_path / "other"))
    assert everything(resumed) == everything(data.prepare(mixed, tokenizer))


def test_reading_a_split_and_counting_its_tokens_loads_no_rows(
    run, tokenizer, preset, write_rows, monkeypatch
):
    monkeypatch.setattr(shards, "SHARD", 250)
    data.save(run, data.prepare(chosen(preset, write_rows(synthetic(1000))), tokenizer))
    gc.collect()
    before = pa.total_allocated_bytes()
    rows = data.load_split(run, "train")
    assert len(rows.cache_files) > 3
    assert pa.total_allocated_bytes() == before
    lengths, trained = token_counts(rows)
    assert pa.total_allocated_bytes() == before
    assert (sum(lengths), sum(trained)) == (sum(rows["length"]), sum(rows["trained_tokens"]))


def test_what_was_stopped_long_ago_is_forgotten(preset, tokenizer, write_rows, tmp_path):
    folder = tmp_path / "cache" / "data"
    for name, age_s in ((".old", 8 * 24 * 3600), (".new", 3600)):
        (folder / name / "conversations").mkdir(parents=True)
        os.utime(folder / name, (time.time() - age_s,) * 2)
    made = data.prepare(chosen(preset, write_rows(synthetic(200))), tokenizer)
    assert {path.name for path in folder.iterdir()} == {".new", made.folder.name}


def test_a_kill_while_an_old_data_set_is_deleted_leaves_no_half_of_it(
    preset, tokenizer, write_rows, monkeypatch
):
    monkeypatch.setattr(pipeline, "KEPT", 1)
    first, second = (chosen(preset, write_rows(synthetic(200)), f"training.seed={n}") for n in (1, 2))
    old, rmtree = data.prepare(first, tokenizer), shutil.rmtree
    whole = everything(old)

    def killed(path, **options):
        if not (path / "report.json").exists():
            return rmtree(path, **options)
        rmtree(path / "train")
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(shutil, "rmtree", killed)
        data.prepare(second, tokenizer)
    assert everything(data.prepare(first, tokenizer)) == whole


@on_linux
def test_two_that_prepare_the_same_do_it_once(preset, tokenizer, write_rows, monkeypatch):
    """The second waits for the first, and takes what it has made."""
    same = chosen(preset, write_rows(synthetic(200)))
    fill, others = pipeline._fill, []

    def beside_another(*arguments):
        monkeypatch.setattr(pipeline, "_fill", lambda *_: os._exit(9))
        others.append(in_a_fork(data.prepare, same, tokenizer, wait=False))
        fill(*arguments)

    monkeypatch.setattr(pipeline, "_fill", beside_another)
    data.prepare(same, tokenizer)
    others[0].join()
    assert others[0].exitcode == 0


def test_a_full_disk_keeps_the_shards_that_are_whole(preset, tokenizer, write_rows, monkeypatch, tmp_path):
    mixed = chosen(preset, write_rows(synthetic(450)))
    monkeypatch.setattr(shards, "SHARD", 150)
    write, made = shards._write_tokens, []

    def full(stage, results, bar):
        if made:
            raise OSError(errno.ENOSPC, "No space left on device")
        made.append(stage)
        write(stage, results, bar)

    monkeypatch.setattr(shards, "_write_tokens", full)
    with pytest.raises(LabError, match="the disk is full"):
        data.prepare(mixed, tokenizer)
    monkeypatch.setattr(shards, "_write_tokens", lambda *each: made.append(each) or write(*each))
    data.prepare(mixed, tokenizer)
    assert len(made) == 1 + 6  # 3 shards of the file and 4 of the embedded rows, one of them whole


def test_threads_of_a_sweep_load_one_after_the_other(run, tokenizer, preset, write_rows, monkeypatch):
    """datasets.load_from_disk fails now and then when two threads are in it: tqdm's lock is gone."""
    data.save(run, data.prepare(chosen(preset, write_rows(synthetic(200))), tokenizer))
    load, inside, most = datasets.load_from_disk, [], []

    def counted(path):
        inside.append(path)
        most.append(len(inside))
        try:
            return load(path)
        finally:
            inside.pop()

    monkeypatch.setattr(datasets, "load_from_disk", counted)
    with ThreadPoolExecutor(8) as pool:
        rows = set(pool.map(lambda _: len(data.load_split(run, "train")), range(50)))
    assert (len(rows), max(most)) == (1, 1)
