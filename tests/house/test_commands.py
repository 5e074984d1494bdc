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
    "python lab.py run --run small --data chats.jsonl --set data.limit=200 --set data.heldout_share=0.2": (
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
    "python lab.py": "lab/test_lab.py::test_help_installs_nothing",
    "python lab.py notebooks": "commands/test_notebooks.py::test_the_notebooks_open_the_run_that_is_named",
    "FINELAB_LOCK=cuda python lab.py doctor": (
        "lab/test_lab.py::test_a_lock_may_be_forced_and_else_the_installed_one_stays"
    ),
    '$env:FINELAB_LOCK="windows"; python lab.py doctor': (
        "lab/test_lab.py::test_a_lock_may_be_forced_and_else_the_installed_one_stays"
    ),
    "python lab.py plan": "commands/test_plan.py::test_a_run_that_does_not_fit",
    "python -m finelab doctor": "doctor/test_gather.py::test_the_facts_need_no_package",
    "python -m finelab.adapter.parameters --readme": (
        "adapter/test_parameters.py::test_the_script_writes_between_the_markers_and_nowhere_else"
    ),
    "python benchmarks/report.py": (
        "house/test_readme.py::test_the_tables_of_models_and_times_are_those_of_their_sources"
    ),
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
    "python benchmarks/sweep.py settings": "an hour; tests/improve/test_sweep.py runs a short one",
    "python benchmarks/sweep.py data": "17 minutes; tests/improve/test_sweep.py runs a short one",
    "python benchmarks/sweep.py models --gemma FOLDER": "15 minutes, and the model of benchmarks/gemma.py",
    "python benchmarks/main_job.py": "is `python lab.py run` with a clock, on all rows",
    "python benchmarks/merged_dtype.py RUN": "needs the run of the whole main job",
    "python benchmarks/screenshots.py http://127.0.0.1:8000": "needs the served run of the whole main job",
    "python benchmarks/report.py --add RUN": "writes into the results that the README shows",
    "python benchmarks/data.py": "minutes, beside TRL; tests/data has its data stage",
    "python benchmarks/shards.py": "a quarter of an hour; tests/data/test_shards.py checks what is made",
    "python benchmarks/plan.py": "40 minutes; notebooks/test_main_job.py makes a plan and its run",
    "python benchmarks/train.py": "an hour, with peers that are downloaded",
    "python benchmarks/train.py --steps 12": "needs peers that are downloaded",
    "python benchmarks/card.py": "needs an NVIDIA card",
    "python benchmarks/latency.py": "minutes; the tests see the same happen, without a clock",
    "python lab.py plan --recipe NAME --gpu CARD": "stands for the two above that are executed",
    "python lab.py run --recipe llama-3.2-3b": "needs an NVIDIA card and the Hub",
    "CUDA_VISIBLE_DEVICES=-1 python lab.py run --run llama-3.2-3b --stages publish": "needs the Hub",
    "python lab.py run --run r64 --set lora.r=64 --set lora.use_rslora=true": "benchmarks/sweep.py trains it",
    "python lab.py run --run r64 --from publish": "tests/commands/test_run.py sets aside what it does again",
    "python lab.py test": "is what runs this",
    'python lab.py test -m "not slow"': "is a part of what runs this",
    r"powershell -ExecutionPolicy Bypass -File environment\setup-windows.ps1": "needs Windows; it is parsed",
}


def shown():
    """The commands in the README's shell blocks, without what is said of them, and those within its text.

    One that ends in `...` stands for many.
    """
    blocks = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    lines = [line.partition(" #")[0].strip() for block in blocks for line in block.splitlines()]
    text = re.sub(r"```.*?```", "", README, flags=re.DOTALL)
    inline = [span for span in re.findall(r"`([^`\n]+)`", text) if re.search(r"\bpython [\w-]", span)]
    return sorted(set(filter(None, [*lines, *(span for span in inline if not span.endswith("..."))])))


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


@pytest.mark.parametrize(
    "command", [line for line, test in EXECUTED.items() if test.endswith("::test_a_plan_is_made")]
)
def test_a_plan_is_made(command, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FINELAB_CACHE", str(tmp_path))  # without this machine's ledger
    assert main(shlex.split(command)[2:]) == 0
    assert "steps" in capsys.readouterr().out
