import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_nothing_tracked_looks_like_a_token():
    tracked = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\0")
    for name in filter(None, tracked):
        text = (ROOT / name).read_bytes() if (ROOT / name).is_file() else b""
        assert not re.search(rb"\bhf_[A-Za-z0-9]{34,}", text), name


def test_token_files_are_ignored_by_git():
    for name in ("notebooks/.hftoken", "notebooks/token.txt", "runs/a/evidence.json"):
        ignored = subprocess.run(["git", "check-ignore", "-q", name], cwd=ROOT, check=False)
        assert ignored.returncode == 0, name
