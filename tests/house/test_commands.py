"""Every command that the README shows: the test that executes it, or one like it, or why none does."""

import re
import shlex
from pathlib import Path

import pytest

from finelab.__main__ import build_parser, main

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXECUTED = {
    "python lab.py run": "notebooks/test_main_job.py::test_it_ends_with_a_table_and_exit_code_0",
    "python lab.py run --run mine --data chats.jsonl": (
        "notebooks/test_own_data.py::test_a_users_file_is_read_as_far_as_it_is_whole"
    ),
    "python lab.py run --run mine-small --data chats.jsonl --set data.limit=200": (
        "notebooks/test_own_data.py::test_a_users_file_is_read_as_far_as_it_is_whole"
    ),
    "python lab.py run --run mine --stages data": (
        "notebooks/test_main_job.py::test_killed_in_training_it_goes_on_and_ends_the_same"
    ),
    "torchrun --nproc_per_node 2 -m finelab.train mine": (
        "train/test_distributed.py::test_torchrun_hands_on_a_signal_and_all_ranks_save_the_same_step"
    ),
    "python lab.py serve": ("conformance/test_shutdown.py::test_a_stopping_server_finishes_what_it_took"),
    "python lab.py serve --also r64": ("commands/test_serve.py::test_two_runs_are_served_on_their_base"),
    "python lab.py chat": "commands/test_chat.py::test_a_question_on_stdin_is_answered_by_the_model",
    "python lab.py plan --recipe llama-3.2-3b --gpu rtx-2060s": "house/test_commands.py::test_a_plan_is_made",
    "python lab.py plan --recipe llama-3.2-3b --gpu a100-80gb --gpus 8 --shard": (
        "house/test_commands.py::test_a_plan_is_made"
    ),
    "modal run deployment/modal_train.py --run mine --gpu l4 --spend 5": (
        "deployment/test_train.py::test_a_run_whose_container_is_taken_back_goes_on_in_another"
    ),
    "python lab.py doctor": "commands/test_doctor.py::test_the_report_covers_the_machine_and_the_profile",
    "bash environment/setup-paperspace.sh": (
        "environment/test_setup.py::test_with_room_everything_goes_where_it_stays"
    ),
    "modal run deployment/modal_download_model.py": (
        "deployment/test_inference.py::test_the_two_commands_of_the_readme"
    ),
    "modal run deployment/modal_inference.py": (
        "deployment/test_inference.py::test_the_two_commands_of_the_readme"
    ),
    "modal deploy deployment/modal_inference.py": (
        "deployment/test_inference.py"
        "::test_modal_deploy_asks_for_what_the_readme_says_and_tells_how_to_call_it"
    ),
}
NOT_EXECUTED = {
    "python benchmarks/sweep.py settings": "half an hour; tests/improve/test_sweep.py runs a short one",
    "python lab.py run --recipe llama-3.2-3b": "needs an NVIDIA card and the Hub",
    "python lab.py run --run r64 --set lora.r=64 --set lora.use_rslora=true": "benchmarks/sweep.py trains it",
    "python lab.py run --run r64 --from publish": "tests/commands/test_run.py sets aside what it does again",
    "python lab.py test": "is what runs this",
    'python lab.py test -m "not slow"': "is a part of what runs this",
    r"powershell -ExecutionPolicy Bypass -File environment\setup-windows.ps1": "needs Windows; it is parsed",
}


def shown():
    """The commands in the README's shell blocks, without what is said of them."""
    blocks = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    lines = [line.partition(" #")[0].strip() for block in blocks for line in block.splitlines()]
    return sorted(set(filter(None, lines)))


@pytest.mark.parametrize("command", shown())
def test_a_command_is_executed_by_a_test_or_listed_with_the_reason(command):
    assert (command in EXECUTED) != (command in NOT_EXECUTED)
    if command in EXECUTED:
        path, _, test = EXECUTED[command].partition("::")
        assert f"\ndef {test}(" in (ROOT / "tests" / path).read_text(encoding="utf-8")


def test_nothing_is_listed_that_the_readme_does_not_show():
    assert {*EXECUTED, *NOT_EXECUTED} == set(shown())


@pytest.mark.parametrize("command", [line for line in shown() if line.startswith("python lab.py ")])
def test_lab_py_takes_it(command):
    arguments = shlex.split(command)[2:]
    parsed, rest = build_parser().parse_known_args(arguments)
    assert rest == [] or "rest" in parsed


@pytest.mark.parametrize("command", [line for line in shown() if line.startswith("python lab.py plan ")])
def test_a_plan_is_made(command, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FINELAB_CACHE", str(tmp_path))  # without this machine's ledger
    assert main(shlex.split(command)[2:]) == 0
    assert "steps" in capsys.readouterr().out
