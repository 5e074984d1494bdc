"""Every command that the README shows: the test that executes it, or why none does. lab.py's are parsed."""

import re
import shlex
from pathlib import Path

import pytest

from finelab.__main__ import build_parser

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
MAIN_JOB = "tests/notebooks/test_main_job.py"  # its lines there are run through lab.py's own entry
CLUSTERS = "tests/train/test_cluster.py"
EXECUTED = {
    "python lab.py run": MAIN_JOB,
    "python lab.py run --run mine --data chats.jsonl": MAIN_JOB,
    "python lab.py run --run mine-small --data chats.jsonl --set data.limit=200": MAIN_JOB,
    "python lab.py run --run r64 --from publish": "tests/commands/test_run.py",
    "python lab.py run --run mine --stages data": "tests/commands/test_run.py",
    "torchrun --nproc_per_node 2 -m finelab.train mine": "tests/train/test_distributed.py",
    "python lab.py serve": "tests/conformance/server.py",
    "python lab.py serve --also r64": "tests/commands/test_serve.py",
    "python lab.py chat": "tests/commands/test_chat.py",
    "python lab.py plan --recipe llama-3.2-3b --gpu rtx-2060s": "tests/commands/test_plan.py",
    "python lab.py plan --recipe llama-3.2-3b --gpu a100-80gb --gpus 8 --shard": CLUSTERS,
    "modal run deployment/modal_train.py --run mine --gpu l4 --spend 5": "tests/deployment/test_train.py",
    "python lab.py doctor": "tests/commands/test_doctor.py",
    "bash environment/setup-paperspace.sh": "tests/environment/test_setup.py",
    "modal run deployment/modal_download_model.py": "tests/deployment/test_download.py",
    "modal run deployment/modal_inference.py": "tests/deployment/test_inference.py",
    "modal deploy deployment/modal_inference.py": "tests/deployment/test_inference.py",
}
NOT_EXECUTED = {
    "python benchmarks/sweep.py settings": "half an hour; tests/improve/test_sweep.py runs a short one",
    "python lab.py run --recipe llama-3.2-3b": "needs an NVIDIA card and the Hub",
    "python lab.py run --run r64 --set lora.r=64 --set lora.use_rslora=true": "benchmarks/sweep.py trains it",
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
    assert command in NOT_EXECUTED or (ROOT / EXECUTED[command]).is_file()


def test_nothing_is_listed_that_the_readme_does_not_show():
    assert {*EXECUTED, *NOT_EXECUTED} == set(shown())


@pytest.mark.parametrize("command", [line for line in shown() if line.startswith("python lab.py ")])
def test_lab_py_takes_it(command):
    arguments = shlex.split(command)[2:]
    parsed, rest = build_parser().parse_known_args(arguments)
    assert rest == [] or "rest" in parsed
