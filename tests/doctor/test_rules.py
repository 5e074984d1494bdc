"""Each rule, on a machine where it fires and on one that is nearly the same where it does not."""

import shlex
from dataclasses import replace

import pytest

from finelab import recipe
from finelab.__main__ import build_parser
from finelab.doctor import RULES, diagnose
from finelab.doctor.finding import SEVERITIES
from tests.doctor.machines import CARD, CPU, GB, GIB, HEALTHY, MAC, PASCAL, TURING, WINDOWS

DEEP = "C:\\" + "x" * 60 + r"\finelab\.venv"
LAPTOP = {"driver": None, "torch_sees_card": False, "cards": ()}  # the driver does not answer
SILENT = replace(HEALTHY, **LAPTOP)

# rule: the machine, what is changed for it to fire, what is changed for it not to
CASES = {
    "python_version": (HEALTHY, {"python": (3, 14)}, {"python": (3, 13)}),
    "rosetta": (MAC, {"machine": "x86_64", "translated": True}, {}),
    "intel_mac": (MAC, {"machine": "x86_64"}, {"machine": "x86_64", "translated": True}),
    "long_paths": (
        replace(WINDOWS, environment=DEEP),
        {"long_paths": False},
        {"long_paths": False, "environment": r"C:\finelab\.venv"},
    ),
    "symlinks": (WINDOWS, {"symlinks": False}, {"symlinks": True}),
    "spawned_workers": (WINDOWS, {"workers": 4}, {"workers": 1}),
    "synced_folder": (
        WINDOWS,
        {"root": r"C:\Users\Ada\OneDrive - Lund University\finelab"},
        {"root": r"C:\Users\Ada\OneDriveless\finelab"},
    ),
    "wsl_mount": (
        replace(HEALTHY, release="5.15.167.4-microsoft-standard-WSL2"),
        {"root": "/mnt/c/Users/Ada/finelab"},
        {"root": "/home/ada/finelab"},
    ),
    "two_openmp": (WINDOWS, {"openmp": (r"C:\a\libiomp5md.dll", r"C:\b\libiomp5md.dll")}, {"openmp": ("a",)}),
    "on_battery": (WINDOWS, {"on_battery": True}, {"on_battery": False}),
    "clock": (HEALTHY, {"clock": HEALTHY.published - 100_000}, {"clock": HEALTHY.published - 1000}),
    "host_lifetime": (
        replace(HEALTHY, host="Paperspace", host_hours=6.0, kernel_registered=True),
        {},
        {"session_hours": 5.8},
    ),
    "no_runtime": (
        replace(WINDOWS, torch=None, torch_cuda=None, **LAPTOP),
        {"torch_error": "[WinError 126] The specified module could not be found"},
        {"torch_error": "[WinError 11] An attempt was made to load a program with an incorrect format"},
    ),
    "broken_torch": (CPU, {"torch": None, "torch_error": "No module named 'torch'"}, {}),
    "bad_override": (HEALTHY, {"override_problem": "FINELAB_MACHINE: no setting 'x'."}, {}),
    "out_of_step": (HEALTHY, {"out_of_step": ("trl 1.16.0 instead of ==1.15.0",)}, {}),
    "no_lock": (HEALTHY, {"lock": None}, {"lock": "cuda"}),
    "foreign_packages": (HEALTHY, {"foreign": ("torch",)}, {}),
    "foreign_kernel": (HEALTHY, {"kernel": "/usr/bin/python3"}, {"kernel": ""}),
    "unknown_kernel": (
        replace(HEALTHY, host="Paperspace", host_hours=6.0, session_hours=5.8),
        {"kernel_registered": False},
        {"kernel_registered": True},
    ),
    "no_driver": (CPU, {"nvidia_on_bus": True}, {"nvidia_on_bus": True, "container": True}),
    "hidden_card": (HEALTHY, {"visible_devices": "-1"}, {"visible_devices": "0"}),
    "cpu_torch": (
        WINDOWS,
        {"torch": "2.10.0+cpu", "torch_cuda": None, "torch_sees_card": False},
        {"torch": "2.10.0+cpu", "torch_cuda": None, "torch_sees_card": False, "nvidia": False},
    ),
    "old_driver": (
        replace(HEALTHY, torch_sees_card=False, cards=()),
        {"driver": "470.256.02"},
        {"driver": "525.60.13"},
    ),
    "card_outside": (SILENT, {"container": True}, {"container": False}),
    "silent_card": (SILENT, {}, {"torch_sees_card": True}),
    "low_capability": (HEALTHY, {"cards": (PASCAL,)}, {"cards": (TURING,)}),
    "no_compiler": (
        HEALTHY,
        {"lacking_to_compile": ("python3.12-dev",)},
        {"lacking_to_compile": ("python3.12-dev",), "system": "Windows"},
    ),
    "no_bfloat16": (HEALTHY, {"cards": (TURING,)}, {"cards": (CARD,)}),
    "small_card": (HEALTHY, {"needed_gpu_bytes": 9 * GIB}, {"needed_gpu_bytes": 7 * GIB}),
    "spill": (
        WINDOWS,
        {"cards": (replace(CARD, used_bytes=6 * GIB),)},
        {"cards": (replace(CARD, used_bytes=4 * GIB),)},
    ),
    "publish_spill": (WINDOWS, {"publish_gpu_bytes": 8 * GIB}, {"publish_gpu_bytes": 7 * GIB}),
    "several_cards": (HEALTHY, {"cards": (CARD, CARD)}, {"cards": (CARD, CARD), "visible_devices": "0"}),
    "read_only_runs": (HEALTHY, {"runs_writable": False}, {}),
    "full_disk": (HEALTHY, {"runs_free_bytes": GB}, {"runs_free_bytes": 2 * GB}),
    "short_disk": (HEALTHY, {"runs_free_bytes": 2 * GB}, {"runs_free_bytes": 3 * GB}),
    "cache_read_only": (HEALTHY, {"cache_writable": False}, {}),
    "cache_short": (HEALTHY, {"cache_free_bytes": 2 * GB}, {"cache_free_bytes": 3 * GB}),
    "low_memory": (CPU, {"memory_available_bytes": GB}, {"memory_available_bytes": 2 * GB}),
    "merge_memory": (HEALTHY, {"memory_available_bytes": GB // 5}, {"memory_available_bytes": GB // 2}),
    "no_token": (HEALTHY, {"tokens": (), "hub_role": ""}, {}),
    "unusable_token": (HEALTHY, {"tokens": (), "token_problem": ".hftoken holds no Hub token"}, {}),
    "two_tokens": (
        HEALTHY,
        {"tokens": ("HF_TOKEN", "a"), "tokens_differ": True},
        {"tokens": ("HF_TOKEN", "a")},
    ),
    "readable_token": (HEALTHY, {"token_readable": "notebooks/.hftoken"}, {}),
    "refused_token": (HEALTHY, {"hub_answer": 401, "hub_role": ""}, {"hub_answer": 200}),
    "read_only_token": (HEALTHY, {"hub_role": "read"}, {"hub_role": "write"}),
    "narrow_token": (
        HEALTHY,
        {"hub_role": "fineGrained", "hub_writes": False},
        {"hub_role": "fineGrained", "hub_writes": True},
    ),
    "offline": (HEALTHY, {"hub_offline": True, "hub_asked": False, "hub_answer": None}, {}),
    "unreachable": (HEALTHY, {"hub_answer": None}, {"hub_answer": 503}),
}


def found(facts):
    return {finding.rule for finding in diagnose(facts)}


def finding(facts, rule):
    return next(each for each in diagnose(facts) if each.rule == rule)


def test_every_rule_has_its_two_machines():
    names = [rule.__name__ for rule in RULES]
    assert sorted(names) == sorted(CASES)
    assert len(names) >= 20


@pytest.mark.parametrize("machine", [HEALTHY, WINDOWS, CPU, MAC], ids=["linux", "windows", "cpu", "mac"])
def test_a_healthy_machine_has_no_finding(machine):
    assert diagnose(machine) == []


@pytest.mark.parametrize("rule", CASES)
def test_a_rule_fires_alone_on_its_machine_and_not_on_one_nearly_the_same(rule):
    machine, fires, spares = CASES[rule]
    assert found(replace(machine, **fires)) == {rule}
    assert rule not in found(replace(machine, **spares))


@pytest.mark.parametrize("rule", CASES)
def test_a_finding_says_what_follows_and_what_to_do_in_one_line_each(rule):
    machine, fires, _ = CASES[rule]
    told = finding(replace(machine, **fires), rule)
    assert told.severity in SEVERITIES
    for text in (told.found, told.consequence, told.mend):
        assert text
        assert text == text.strip()
        assert "\n" not in text


def test_the_gravest_findings_come_first():
    sick = replace(
        WINDOWS,
        symlinks=False,
        on_battery=True,
        runs_free_bytes=0,
        tokens=(),
        out_of_step=("trl is missing",),
        cards=(PASCAL,),
    )
    told = [each.severity for each in diagnose(sick)]
    assert told == ["stop", "stop", "warning", "warning", "note", "note"]


@pytest.mark.parametrize(
    ("facts", "rule", "mend"),
    [
        (
            replace(CPU, nvidia=True, driver="535.1"),
            "cpu_torch",
            "FINELAB_LOCK=cuda python lab.py doctor",
        ),
        (
            replace(WINDOWS, lock="cpu", torch_cuda=None),
            "cpu_torch",
            '$env:FINELAB_LOCK = "windows"; python lab.py doctor',
        ),
        (
            replace(WINDOWS, torch_cuda=None),
            "cpu_torch",
            r'Remove-Item -Recurse -Force "C:\Users\Ada\finelab\.venv"; python lab.py doctor',
        ),
        (
            replace(CPU, nvidia=True, driver="535.1", host="Paperspace"),
            "cpu_torch",
            "FINELAB_LOCK=paperspace python lab.py doctor",
        ),
        (replace(HEALTHY, torch_cuda=None, lock=None), "cpu_torch", "python lab.py doctor"),
        (replace(HEALTHY, visible_devices=""), "hidden_card", "unset CUDA_VISIBLE_DEVICES"),
        (replace(WINDOWS, visible_devices="-1"), "hidden_card", "Remove-Item Env:CUDA_VISIBLE_DEVICES"),
        (
            replace(HEALTHY, environment="/home/ada/my lab/.venv", out_of_step=("trl is missing",)),
            "out_of_step",
            "rm -rf '/home/ada/my lab/.venv/finelab-lock.json' && python lab.py doctor",
        ),
        (
            replace(WINDOWS, out_of_step=("trl is missing",)),
            "out_of_step",
            r'Remove-Item -Recurse -Force "C:\Users\Ada\finelab\.venv\finelab-lock.json"; '
            "python lab.py doctor",
        ),
        (
            replace(WINDOWS, kernel=r"C:\Python312\python.exe"),
            "foreign_kernel",
            r'& "C:\Users\Ada\finelab\.venv\Scripts\python.exe" -m jupyter kernelspec remove python3',
        ),
        (
            replace(HEALTHY, cards=(CARD, replace(TURING, memory_bytes=None))),
            "several_cards",
            "CUDA_VISIBLE_DEVICES=GPU-2060 python lab.py run",
        ),
        (
            replace(HEALTHY, host="Paperspace", host_hours=6.0),
            "host_lifetime",
            "python lab.py run --set training.session_hours=5.5",
        ),
        (replace(WINDOWS, clock=0.0), "clock", "w32tm /resync"),
        (
            replace(WINDOWS, root=r"C:\Users\Ada\OneDrive\lab"),
            "synced_folder",
            r'Move-Item "C:\Users\Ada\OneDrive\lab" ~/finelab',
        ),
        (
            replace(HEALTHY, runs="/home/ada/Dropbox/runs"),
            "synced_folder",
            'mv /home/ada/Dropbox/runs ~/finelab-runs && export FINELAB_RUNS="$HOME/finelab-runs"',
        ),
        (
            replace(WINDOWS, runs=r"D:\Dropbox\runs"),
            "synced_folder",
            r'Move-Item "D:\Dropbox\runs" ~/finelab-runs; $env:FINELAB_RUNS = "$HOME/finelab-runs"',
        ),
        (
            replace(HEALTHY, tokens=("notebooks/.hftoken", "the Hub login"), tokens_differ=True),
            "two_tokens",
            "rm -rf notebooks/.hftoken && python lab.py doctor",
        ),
        (
            replace(CPU, cache_writable=False),
            "cache_read_only",
            "FINELAB_CACHE=/another/disk/finelab python lab.py doctor",
        ),
        (
            replace(WINDOWS, cache_writable=False),
            "cache_read_only",
            r'$env:HF_HOME = "D:\finelab"; python lab.py doctor',
        ),
    ],
)
def test_the_command_is_that_of_the_system_and_its_shell(facts, rule, mend):
    assert finding(facts, rule).mend == mend


def test_what_could_not_be_asked_is_no_finding():
    unknown = replace(
        HEALTHY,
        cards=(replace(CARD, capability=None, memory_bytes=None, used_bytes=None),),
        memory_bytes=None,
        memory_available_bytes=None,
        runs_free_bytes=None,
        cache_free_bytes=None,
        hub_asked=False,
        hub_answer=None,
        hub_role="",
    )
    assert diagnose(unknown) == []


def test_cuda_13_needs_a_newer_driver_than_cuda_12():
    sees_none = replace(HEALTHY, torch_sees_card=False, cards=())
    assert found(replace(sees_none, torch_cuda="13.0")) == {"old_driver"}
    assert found(replace(sees_none, torch_cuda="13.0", driver="580.65.06")) == {"silent_card"}


def test_a_hidden_card_is_not_judged():
    assert found(replace(HEALTHY, cards=(PASCAL,), visible_devices="", torch_sees_card=False)) == {
        "hidden_card"
    }


def test_no_build_of_torch_is_advised_for_a_card_that_none_serves():
    assert found(replace(CPU, nvidia=True, driver="535.1", cards=(PASCAL,))) == {"low_capability"}


@pytest.mark.parametrize("rule", CASES)
def test_a_command_of_the_lab_is_one_that_the_lab_takes(rule):
    machine, fires, _ = CASES[rule]
    _, called, arguments = finding(replace(machine, **fires), rule).mend.partition("lab.py ")
    if called:
        args = build_parser().parse_args(shlex.split(arguments))
        recipe.override(recipe.load_preset("llama-3.2-1b"), getattr(args, "assignments", []))


def test_many_packages_out_of_step_are_counted():
    told = finding(replace(HEALTHY, out_of_step=tuple(f"p{i} is missing" for i in range(9))), "out_of_step")
    assert told.found.endswith("p4 is missing; and 4 more")


def test_on_linux_a_full_card_is_out_of_memory_and_on_windows_it_spills():
    full = (replace(CARD, used_bytes=6 * GIB),)
    assert "out of memory" in finding(replace(HEALTHY, cards=full), "spill").consequence
    assert "main memory" in finding(replace(WINDOWS, cards=full), "spill").consequence
