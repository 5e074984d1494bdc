import json
import os
from pathlib import Path

import psutil
import pytest
from hypothesis import HealthCheck, settings

from finelab import recipe
from finelab.embedded.model import embedded_model
from finelab.run import create_run

# A busy machine holds any example up for longer than Hypothesis's 0.2 s now and then.
settings.register_profile(
    "lab", parent=settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("lab")

WORKER_BYTES = 6 * 2**30  # the most that one test and its children have taken is 4 GB


def pytest_xdist_auto_num_workers():
    """A process per core, as far as the memory goes."""
    return max(1, min(os.cpu_count() or 1, psutil.virtual_memory().total // WORKER_BYTES))


def pytest_collection_modifyitems(items):
    """The main job first: it is a third of the whole, and started late it keeps one core alone at the end."""
    items.sort(key=lambda item: item.path.parent.name != "notebooks")


@pytest.fixture
def preset():
    return recipe.load_preset("smollm2-135m")


@pytest.fixture
def run(tmp_path, preset):
    return create_run(tmp_path / "trial", preset)


@pytest.fixture(scope="session")
def embedded_folder() -> Path:
    return embedded_model()


@pytest.fixture(scope="session")
def tokenizer(embedded_folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(embedded_folder)


@pytest.fixture
def write_rows(tmp_path):
    """Writes rows as JSON Lines and gives the file's path."""

    def write(rows, name="rows.jsonl"):
        path = tmp_path / name
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
        return path

    return write
