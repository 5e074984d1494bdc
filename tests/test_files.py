import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from finelab import LabError, files
from finelab.files import clear_leftovers, sha256, staged, write_text, writing


def test_a_failed_write_leaves_the_old_file_and_no_rubbish(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    with pytest.raises(LabError, match="the disk is full"):
        write_text(path, "new")
    assert path.read_text(encoding="utf-8") == "old"
    assert [each.name for each in tmp_path.iterdir()] == ["a.txt"]


def test_a_staged_folder_appears_whole_or_not_at_all(tmp_path):
    folder = tmp_path / "merged"
    with pytest.raises(RuntimeError), staged(folder) as stage:
        (stage / "half").write_text("x", encoding="utf-8")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with staged(folder) as stage:
        (stage / "whole").write_text("x", encoding="utf-8")
        assert not folder.exists()
    assert [each.name for each in folder.iterdir()] == ["whole"]


def test_a_staged_folder_replaces_the_old_one_at_the_end(tmp_path):
    folder = tmp_path / "merged"
    for name in ("old", "new"):
        with staged(folder) as stage:
            (stage / name).write_text("x", encoding="utf-8")
    assert [each.name for each in folder.iterdir()] == ["new"]
    assert [each.name for each in tmp_path.iterdir()] == ["merged"]


def test_a_folder_that_cannot_be_replaced_comes_back(tmp_path, monkeypatch):
    folder = tmp_path / "merged"
    with staged(folder) as stage:
        (stage / "old").write_text("x", encoding="utf-8")
    replace = Path.replace

    def held(self, target):  # by another program, as Windows does it
        if (self / "new").exists():
            raise PermissionError(errno.EACCES, "in use")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", held)
    with pytest.raises(LabError, match="cannot write"), staged(folder) as stage:
        (stage / "new").write_text("x", encoding="utf-8")
    assert [each.name for each in folder.iterdir()] == ["old"]
    assert [each.name for each in tmp_path.iterdir()] == ["merged"]


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("renamed", ["old", "new"])
def test_an_interrupt_while_a_folder_is_replaced_loses_neither(tmp_path, monkeypatch, renamed, moment):
    """Ctrl-C before or after either of the two renames: the old folder or the new one is there, whole."""
    folder = tmp_path / "merged"
    with staged(folder) as stage:
        (stage / "old").write_text("x", encoding="utf-8")
    replace, pressed = Path.replace, []

    def interrupted(self, target):
        if (self / renamed).exists() and not pressed:
            pressed.append(self)
            if moment == "after":
                replace(self, target)
            raise KeyboardInterrupt
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt), staged(folder) as stage:
        (stage / "new").write_text("x", encoding="utf-8")
    assert pressed
    kept = "new" if (renamed, moment) == ("new", "after") else "old"
    assert [each.name for each in folder.iterdir()] == [kept]


def test_what_killed_processes_left_goes_and_nothing_else(tmp_path):
    left = (".merged.0a1b2c3d", ".adapter.0a1b2c3d.old", "tmp_x9y8z7w")
    kept = ("adapter", "temporary", ".cache", ".merged.of-mine", "tmp_in_use")
    for name in (*left, *kept):
        write_text(tmp_path / name / "deep" / "file", name)
        for path in (tmp_path / name, *(tmp_path / name).rglob("*")):
            os.utime(path, (0, 0))
    (tmp_path / "tmp_in_use" / "deep" / "file").touch()
    clear_leftovers(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(kept)


def test_a_folder_that_was_taken_away_and_not_replaced_comes_back(tmp_path):
    aside = tmp_path / ".merged.0a1b2c3d.old"
    write_text(aside / "weights", "x")
    for path in (aside, aside / "weights"):
        os.utime(path, (0, 0))
    clear_leftovers(tmp_path)
    assert [path.name for path in (tmp_path / "merged").iterdir()] == ["weights"]


def test_a_name_that_is_held_for_a_moment_changes_after_it(tmp_path, monkeypatch):
    replace, tries = Path.replace, []

    def held(self, target):  # by a virus scanner, as on Windows
        tries.append(self)
        if len(tries) < 3:
            raise PermissionError(errno.EACCES, "in use")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", held)
    monkeypatch.setattr(files, "HELD_S", 60.0)
    write_text(tmp_path / "a.txt", "text")
    assert (len(tries), (tmp_path / "a.txt").read_text(encoding="utf-8")) == (3, "text")


def test_a_kill_while_staging_leaves_no_folder_under_the_final_name(tmp_path):
    script = (
        "import os, signal, sys; from pathlib import Path; from finelab.files import staged\n"
        "with staged(Path(sys.argv[1])) as stage:\n"
        "    (stage / 'half').write_text('x')\n"
        "    os.kill(os.getpid(), signal.SIGKILL if hasattr(signal, 'SIGKILL') else signal.SIGTERM)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "merged")], check=False)
    assert done.returncode == (signal.SIGTERM if sys.platform == "win32" else -signal.SIGKILL)
    assert [path.name for path in tmp_path.glob(".merged.*/*")] == ["half"]
    assert not (tmp_path / "merged").exists()


def test_an_unknown_os_error_is_not_swallowed(tmp_path):
    with pytest.raises(InterruptedError), writing(tmp_path):
        raise InterruptedError(errno.EINTR, "interrupted")


def test_sha256_is_the_known_one(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    assert sha256(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
