"""The table of differences names tests that exist."""

import re
from pathlib import Path

from tests.conformance.differences import VLLM


def test_every_difference_is_a_tests():
    files = Path(__file__).parent.glob("test_*.py")
    names = {name for file in files for name in re.findall(r"def (test_\w+)", file.read_text("utf-8"))}
    assert set(VLLM) <= names
