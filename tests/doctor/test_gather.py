"""Reading this machine: every field is filled, and a probe that fails is a default, never an error."""

import dataclasses
import json
import os
import subprocess
import sys
import typing
from importlib import metadata
from pathlib import Path

import pytest

import lab
from finelab import recipe, resources
from finelab.doctor import Facts, gather
from finelab.doctor.gather import capacity, packages, system
from finelab.doctor.gather.attempt import attempt, said

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def here():
    return gather(recipe.load_preset("smollm2-135m"))


def test_every_field_is_of_its_type(here):
    hints = typing.get_type_hints(Facts)
    for name, value in dataclasses.asdict(here).items():
        kinds = [typing.get_origin(kind) or kind for kind in typing.get_args(hints[name]) or [hints[name]]]
        if typing.get_origin(hints[name]) is tuple:
            kinds = [tuple]
        assert isinstance(value, tuple(kinds)), (name, value)


def test_this_machine(here):
    assert here.root == str(ROOT)
    assert here.program == sys.executable
    assert here.pythons == (lab.OLDEST, lab.NEWEST)
    assert packages.STAMP == lab.STAMP
    assert here.torch == metadata.version("torch")
    assert here.needed_memory_bytes + here.needed_gpu_bytes > 10**9
    assert 0 < here.memory_available_bytes <= here.memory_bytes
    assert here.runs_free_bytes > 0
    assert here.published < here.clock
    assert here.long_paths or here.system == "Windows"


def test_a_larger_recipe_needs_more():
    small, large = (
        capacity.needs(preset, capacity.profile_for(preset)[0])
        for preset in map(recipe.load_preset, ("llama-3.2-1b", "llama-3.2-3b"))
    )
    assert small["needed_run_bytes"] < large["needed_run_bytes"]
    assert small["merge_bytes"] < large["merge_bytes"]
    for needed in (small, large):
        assert needed["needed_gpu_bytes"] + needed["needed_memory_bytes"] > 2 * 10**9


def test_the_facts_need_no_package():
    """With a bare Python every probe falls back: `python -m finelab doctor` helps where set-up failed."""
    told = subprocess.run(
        [sys.executable, "-S", "-m", "finelab", "doctor", "--json"],
        cwd=ROOT,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert told.returncode == 1, told.stderr
    assert "Traceback" not in told.stderr
    report = json.loads(told.stdout)
    assert report["facts"]["torch"] is None
    assert report["facts"]["memory_bytes"] is None
    assert report["findings"][0]["rule"] == "broken_torch"
    assert "unreachable" not in [finding["rule"] for finding in report["findings"]]


def test_a_machine_override_that_is_wrong_is_a_fact(monkeypatch):
    monkeypatch.setenv("FINELAB_MACHINE", "dtpye=float32")
    told = gather(recipe.load_preset("smollm2-135m"))
    assert "dtpye" in told.override_problem
    assert told.needed_memory_bytes == 0


def test_workers_are_those_that_are_forced(monkeypatch):
    monkeypatch.setenv("UNSLOTH_DATASET_NUM_PROC", "99")
    assert system.workers(None) == 99


@pytest.mark.parametrize(
    ("variable", "host", "hours"),
    [
        ("PAPERSPACE_METRIC_URL", "Paperspace", 6),
        ("COLAB_RELEASE_TAG", "Colab", 12),
        ("KAGGLE_KERNEL_RUN_TYPE", "Kaggle", 12),
    ],
)
def test_rented_hosts_are_known_by_their_variables(monkeypatch, variable, host, hours):
    monkeypatch.setenv(variable, "x")
    told = system.facts(None)
    assert (told["host"], told["host_hours"]) == (host, hours)


def test_openmp_of_an_active_conda_environment(tmp_path, monkeypatch):
    name = {"win32": "libiomp5md.dll", "darwin": "libomp.dylib"}.get(sys.platform, "libiomp5.so")
    before = system.openmp_libraries()
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / name).touch()
    monkeypatch.setenv("CONDA_PREFIX", str(tmp_path))
    assert system.openmp_libraries() == (*before, str(tmp_path / "lib" / name))


def test_a_package_on_pythonpath_is_foreign(tmp_path):
    (tmp_path / "trl").mkdir()
    (tmp_path / "trl" / "__init__.py").touch()
    code = "from finelab.doctor.gather.packages import foreign_packages; print(*foreign_packages())"
    told = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    assert told.stdout.split() == ["trl"]


@pytest.mark.parametrize(
    ("program", "foreign", "registered"),
    [
        ("python", "", False),
        (sys.executable, "", True),
        ("/usr/bin/python3.9", "/usr/bin/python3.9", False),
    ],
)
def test_the_kernel_python3_that_jupyter_finds_first(tmp_path, monkeypatch, program, foreign, registered):
    spec = tmp_path / "kernels" / "python3" / "kernel.json"
    spec.parent.mkdir(parents=True)
    spec.write_text(json.dumps({"argv": [program, "-m", "ipykernel"], "display_name": "x"}), "utf-8")
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    assert packages.foreign_kernel() == foreign
    assert packages.is_registered() == registered


def test_packages_out_of_step_are_named():
    pins = f"""
# a comment
pytest=={metadata.version("pytest")}
rich==0.0.1
no-such-package==1.0
appnope==1.0 ; sys_platform == "nowhere"
"""
    assert packages.out_of_step(pins) == [
        f"rich {metadata.version('rich')} instead of ==0.0.1",
        "no-such-package is missing",
    ]


def test_a_containers_limit_of_memory(tmp_path):
    assert resources.container_memory(tmp_path) == (2**63, 0)
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("1500000000\n")
    (tmp_path / "memory.stat").write_text("anon 7\ninactive_file 400000000\nactive_file 100000000\n")
    assert resources.container_memory(tmp_path) == (2**63, 0)
    (tmp_path / "memory.max").write_text("4000000000\n")
    assert resources.container_memory(tmp_path) == (4 * 10**9, 10**9)


def test_a_folder_is_writable_when_it_can_be_made(tmp_path):
    assert capacity.is_writable(tmp_path / "a" / "b")
    assert not (tmp_path / "a").exists()
    (tmp_path / "file").touch()
    assert not capacity.is_writable(tmp_path / "file")


def test_a_folder_on_a_disk_that_is_not_there_is_not_writable(tmp_path, monkeypatch):
    monkeypatch.setattr("os.path.exists", lambda path: False)
    assert not capacity.is_writable(tmp_path)


def test_a_probe_that_fails_is_its_default():
    assert attempt(lambda: 1 // 0, 7) == 7
    assert said(["no-such-program-at-all"])[0] == -1
    assert said([sys.executable, "-c", "import time; time.sleep(60)"], timeout_s=0.2)[0] == -1
