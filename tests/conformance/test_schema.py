"""schemathesis tries the OpenAPI document: what it says of requests and answers is true."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import needs
from tests.conformance.conftest import EXTERNAL
from tests.conformance.server import KEYS, Server

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(EXTERNAL is not None, reason="needs a short context, so that no answer is long"),
    pytest.mark.skipif(
        importlib.util.find_spec("schemathesis") is None,
        reason=needs.lacking(
            "schemathesis",
            "werkzeug",
            "graphql-core",
            "harfile",
            "hypothesis-graphql",
            "jsonschema-rs",
            "pyrate-limiter",
        ),
    ),
]
ASKED = [
    "--phases=examples,coverage,fuzzing",
    "--max-examples=15",
    "--seed=1",
    "--checks=all",
    # A schema cannot say which tokens there are, how long the context is, or that tools are not offered.
    "--exclude-checks=positive_data_acceptance",
    "--no-color",
    "--request-timeout=90",  # some of it is spoken, on a busy machine
    "--max-response-time=90",
]


def test_the_openapi_document_is_true(tiny_base, tmp_path):
    environment = os.environ | {"SCHEMATHESIS_HOOKS": str(Path(__file__).with_name("hooks.py"))}
    key = f"--header=Authorization:Bearer {KEYS[0]}"
    with Server("--model", tiny_base, "--dtype=float32", "--max-model-len=64", keys=KEYS) as server:
        document = f"{server.address.url}/openapi.json"
        run = [sys.executable, "-m", "schemathesis.cli", "run", document, key, *ASKED]
        ended = subprocess.run(
            run, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
    assert ended.returncode == 0, ended.stdout[-6000:] + ended.stderr[-2000:]
