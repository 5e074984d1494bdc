"""The doctor's report: the machine, what is wrong with it, its exit code, and never the token itself."""

import json
from dataclasses import replace

import pytest
import torch

from finelab.__main__ import main
from finelab.commands import doctor
from finelab.doctor import Finding
from tests.doctor.machines import CPU, HEALTHY, TURING

CANARY = "hf_" + "secret" * 6


@pytest.fixture
def machine(monkeypatch):
    """Let the command meet another machine than this one."""

    def put(facts):
        monkeypatch.setattr(doctor, "gather", lambda recipe: facts)

    return put


def test_the_report_covers_the_machine_and_the_profile(capsys, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", CANARY)
    assert main(["doctor"]) == 0
    told = capsys.readouterr().out
    for label in ("lock", "packages", "card", "memory", "disk", "Hub token     found", "dtype"):
        assert label in told
    assert "secret" not in told


def test_json_is_one_object_without_a_token(capsys, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", CANARY)
    assert main(["doctor", "--json"]) == 0
    told = capsys.readouterr()
    report = json.loads(told.out)
    assert set(report) == {"facts", "findings"}
    assert report["facts"]["tokens"][0] == "HF_TOKEN"
    assert "secret" not in told.out + told.err
    for finding in report["findings"]:
        assert set(finding) == {"severity", "found", "consequence", "mend", "rule"}


def test_another_recipe_is_looked_at(capsys):
    assert main(["doctor", "--json", "--recipe", "llama-3.2-3b"]) == 0
    assert json.loads(capsys.readouterr().out)["facts"]["recipe"] == "llama-3.2-3b"


def test_an_unknown_recipe_is_one_sentence(capsys):
    assert main(["doctor", "--recipe", "llama-9"]) == 2
    assert "llama-9" in capsys.readouterr().err


def test_nothing_wrong_is_said(machine, capsys):
    machine(CPU)
    assert main(["doctor"]) == 0
    assert capsys.readouterr().out.endswith("\nNothing found that is wrong.\n")


def test_a_finding_that_stops_the_lab_is_the_exit_code(machine, capsys):
    machine(replace(HEALTHY, cards=(TURING,), runs_free_bytes=0))
    assert main(["doctor"]) == 1
    stop, note = capsys.readouterr().out.split("\n\n")[-2:]
    assert stop.startswith("stop: 0.0 GB are free")
    assert note.startswith("note: NVIDIA GeForce RTX 2060 SUPER has no bfloat16")


def test_the_mending_command_stands_alone_on_its_line():
    finding = Finding("warning", "a is b", "so c", "python lab.py doctor")
    assert doctor.findings_text([finding]).splitlines()[-1].strip() == finding.mend


def test_torch_of_the_cuda_locks_that_sees_no_card(capsys, monkeypatch):
    """torch 2.10 has no `get_capabilities`, which the later ones answer these two with."""
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert main(["doctor"]) == 0
    told = capsys.readouterr().out
    assert "this processor has bfloat16 instructions" in told


def test_a_card_that_does_not_answer_leaves_the_findings(capsys, monkeypatch):
    def gone(index):
        raise RuntimeError("CUDA error: device unavailable")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", gone)
    main(["doctor", "--recipe", "smollm2-135m"])
    told = capsys.readouterr().out
    assert "torch failed: RuntimeError('CUDA error: device unavailable')" in told


def test_without_torch_the_report_still_comes(machine, capsys, monkeypatch):
    def no_torch():
        raise ImportError("No module named 'torch'")

    monkeypatch.setattr(doctor, "default_recipe", no_torch)
    machine(replace(CPU, torch=None, torch_error="No module named 'torch'"))
    assert main(["doctor"]) == 1
    assert "torch cannot be imported" in capsys.readouterr().out
