"""Trainings in several processes, for the tests: runs whose data stage is done, and their launches.

As a script this file is the driver of those tests: it imports everything once and forks a child for each
rank, with the variables that torchrun sets.
"""

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import traceback
from pathlib import Path

from finelab import recipe
from finelab.run import create_run

ROOT = Path(__file__).parents[2]
ADAPTER = "adapter_model.safetensors"
SMALL = {"OMP_NUM_THREADS": "1", "FINELAB_MACHINE": "dtype=float32", "PYTHONPATH": str(ROOT)}
BASE = ("training.tune=false", "training.max_first_loss=100", "training.save_steps=2")
TWENTY = ("training.num_train_epochs=4", "training.learning_rate=0.01")
AUTOGRAD = "training.fast_cpu_step=false"
GROUPED = 'training.train_sampling_strategy="group_by_length"'
ZEN = """Beautiful is better than ugly. Explicit is better than implicit. Simple is better than complex.
Complex is better than complicated. Flat is better than nested. Sparse is better than dense. Readability
counts. Special cases aren't special enough to break the rules, although practicality beats purity. Errors
should never pass silently, unless explicitly silenced. In the face of ambiguity, refuse to guess."""
SETTINGS = {  # an epoch of 35 rows is 5 steps of 8 rows, of which the last has 3
    "hand": TWENTY,
    "grouped": ("training.max_steps=7", AUTOGRAD, GROUPED),
    "packed": ("training.max_steps=4", "training.packing=true", "model.max_seq_length=64"),
    "looked": ("training.max_steps=2", "training.eval_steps=1"),
    "looked-autograd": ("training.max_steps=2", "training.eval_steps=1", AUTOGRAD),
}


def environment(folder):
    """That of a launch: runs in `folder`, float32, one thread for each process."""
    return os.environ | SMALL | {"FINELAB_RUNS": str(folder)}


def rows(count, tokens=None, seed=0, unlabelled=()):
    """Rows of 4 to 30 tokens: at random below 256, or pieces of `tokens` of up to 12; a third has no label.

    Those in `unlabelled` have one on their first token only, which nothing predicts: TRL leaves out others.
    """
    dice, made = random.Random(seed), []
    for i in range(count):
        if tokens:
            first = dice.randrange(len(tokens) - 12)
            ids = tokens[first : first + dice.randint(4, 12)]
        else:
            ids = [dice.randrange(256) for _ in range(dice.randint(4, 30))]
        ignored = len(ids) // 3
        labels = [ids[0]] + [-100] * (len(ids) - 1) if i in unlabelled else [-100] * ignored + ids[ignored:]
        names = {"id": f"row {i}", "heldout": "row", "source": "test"}
        names["messages"] = [{"role": "user", "content": f"question {i}"}]
        made.append({"input_ids": ids, "labels": labels, **names})
    return made


def prepared(folder, model, *changes, tokens=None):
    """A run over 35 rows, some of them without labels."""
    from datasets import Dataset

    assignments = [f'model.model_name="{model}"', *BASE, *changes]
    run = create_run(folder, recipe.override(recipe.load_preset("smollm2-135m"), assignments))
    train_rows, heldout = rows(35, tokens=tokens, unlabelled=(3, 4, 11)), rows(5, seed=1, tokens=tokens)
    Dataset.from_list(train_rows).save_to_disk(str(run.train_data))
    Dataset.from_list(heldout).save_to_disk(str(run.heldout_data))
    run.record("data", {"sha256": "of the test"})
    return run


def tiny_model(folder):
    """A tiny random Llama and a tokenizer, as files."""
    from tests.tiny import base_model, tokenizer

    base_model(vocab_size=512).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def drive(scenario, folder):
    """What a scenario of this file gives back, in a process of its own."""
    command = [sys.executable, __file__, scenario, str(folder)]
    done = subprocess.run(command, env=environment(folder), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


# In the driver


def in_ranks(size, act):
    """Call `act(rank)` in `size` forked processes; gives how each ended, a signal as its negative number."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    numbers = [_fork(rank, size, port, act) for rank in range(size)]
    ends = [os.waitpid(number, 0)[1] for number in numbers]
    return [-os.WTERMSIG(end) if os.WIFSIGNALED(end) else os.WEXITSTATUS(end) for end in ends]


def _fork(rank, size, port, act):
    number = os.fork()
    if number:
        return number
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in (place | address).items() if size > 1})
    code = 1
    try:
        code = act(rank)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def train(run, size, act=None, at=None):
    """Train with `size` processes, `act(rank)` at the beginning of step `at`; gives what the run left."""

    def rank_of(rank):
        from finelab.train.__main__ import main

        with (run.folder / f"said-{rank}.txt").open("ab") as said:
            os.dup2(said.fileno(), 1)
            os.dup2(said.fileno(), 2)
        _spy(run, rank, act, at)
        return main(["--run", run.name])

    ends = in_ranks(size, rank_of)
    noted = [json.loads(path.read_text()) for path in sorted(run.folder.glob("noted-*.json"))]
    said = [path.read_text(encoding="utf-8") for path in sorted(run.folder.glob("said-*.txt"))]
    return {"ends": ends, "noted": noted[:size], "said": said, "training": run.evidence().get("training")}


def _spy(run, rank, act, at):
    """Let `act` have its step, and note what the trainer really was."""
    from finelab.train import Session
    from finelab.train.cpu_llama import Llama
    from tests.train.sittings import at_step

    callbacks, sitting, score, scored = Session.callbacks, Session.sitting, Llama.score, []
    Llama.score = lambda llama, batch: scored.append(batch) or score(llama, batch)

    @contextlib.contextmanager
    def noting(self, trainer):
        with sitting(self, trainer):
            yield
        found = {
            "type": trainer.accelerator.distributed_type.name,
            "processes": trainer.accelerator.num_processes,
            "wrapped": type(trainer.model_wrapped).__name__,
            "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
            "looks": [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry],
            "looked_by_hand": len(scored),
        }
        (run.folder / f"noted-{rank}.json").write_text(json.dumps(found), encoding="utf-8")

    Session.sitting = noting
    if act:
        Session.callbacks = lambda self: [at_step(at, lambda: act(rank)), *callbacks(self)]


def kill(*ranks):
    """An act that ends these ranks at once."""
    return lambda rank: os.kill(os.getpid(), signal.SIGKILL) if rank in ranks else None


def terminate(only):
    """An act that asks one rank alone to end."""
    return lambda rank: signal.raise_signal(signal.SIGTERM) if rank == only else None


def break_down(rank):
    """An act with a mistake that only rank 1 meets."""
    from finelab import LabError

    if rank == 1:
        raise LabError("the disk of this rank is full.")


def tiny(folder):
    """Every training of the tests with the tiny model."""
    model, found = tiny_model(folder / "model"), {}
    for name, changes in SETTINGS.items():
        for size in (1, 2):
            found[f"{name}-{size}"] = train(prepared(folder / f"{name}-{size}", model, *changes), size)
    killed, stopped, broken = (
        prepared(folder / name, model, *TWENTY) for name in ("killed", "stopped", "broken")
    )
    found["one killed"] = train(killed, 2, kill(1), 8)
    found["all killed"] = train(killed, 2, kill(0, 1), 14)
    found["killed"] = train(killed, 2)
    found["stopping"] = train(stopped, 2, terminate(1), 9)
    found["stopped"] = train(stopped, 1)
    found["broken"] = train(broken, 2, break_down, 3)
    return found


def resumed(folder):
    """By hand in each dtype: a run that was never stopped, and one that was killed and then asked to end."""
    model, found = tiny_model(folder / "model"), {}
    for dtype in ("float32", "bfloat16"):
        os.environ["FINELAB_MACHINE"] = f"dtype={dtype}"
        straight, broken = (
            prepared(
                folder / f"{name}-{dtype}", model, "training.max_steps=12", "training.learning_rate=0.01"
            )
            for name in ("straight", "broken")
        )
        sittings = [train(broken, 1, kill(0), 8), train(broken, 1, terminate(0), 9), train(broken, 1)]
        found[dtype] = [train(straight, 1), *sittings]
    return found


def embedded(folder):
    """The embedded model in one process and in two, on the lines of the Zen of Python."""
    from transformers import AutoTokenizer

    from finelab.embedded.model import embedded_model

    tokens = AutoTokenizer.from_pretrained(embedded_model())(ZEN)["input_ids"]
    changes = ("training.max_steps=5", "training.gradient_accumulation_steps=2")
    runs = {size: prepared(folder / str(size), "embedded", *changes, tokens=tokens) for size in (1, 2)}
    return {size: train(run, size) for size, run in runs.items()}


def sharded(folder):
    """Three steps of the tiny model whole in one process, and in two with torch's own `fully_shard`."""
    import torch

    torch.save(_steps(*_model_and_rows(0, 1)), folder / "whole.pt")

    def rank_of(rank):
        import torch.distributed as dist
        from torch.distributed.fsdp import fully_shard

        dist.init_process_group("gloo")
        model, own = _model_and_rows(rank, 2)
        for layer in model.get_base_model().model.layers:
            fully_shard(layer)
        fully_shard(model)
        torch.save(_steps(model, own), folder / f"rank-{rank}.pt")
        dist.destroy_process_group()
        return 0

    return in_ranks(2, rank_of)


def _model_and_rows(rank, size):
    from tests.tiny import base_model, with_adapter

    return with_adapter(base_model(vocab_size=256)).train(), rows(8)[rank::size]


def _steps(model, own):
    """Losses, and after each step the gradients and the weights, put together; tokens weighed alike."""
    import torch
    from torch.distributed.tensor import DTensor

    from finelab.train import distributed

    trained = {name: each for name, each in model.named_parameters() if each.requires_grad}
    optimizer, found = torch.optim.AdamW(trained.values(), lr=1e-2), []
    tokens = sum(sum(label != -100 for label in row["labels"][1:]) for row in own)
    total = torch.tensor(sum(distributed.gather(tokens)))
    for _ in range(3):
        loss = 0.0
        for row in own:
            batch = {name: torch.tensor([row[name]]) for name in ("input_ids", "labels")}
            part = model(**batch, num_items_in_batch=total).loss
            (part * distributed.world().size).backward()  # as transformers does: the ranks' mean is their sum
            loss += float(part.detach())
        gradients = {name: each.grad for name, each in trained.items()}
        optimizer.step()
        kept = [
            {name: (each.full_tensor() if isinstance(each, DTensor) else each).clone() for name, each in some}
            for some in (gradients.items(), ((name, each.detach()) for name, each in trained.items()))
        ]
        found.append([sum(distributed.gather(loss)), *kept])
        optimizer.zero_grad()
    in_shards = all(isinstance(each, DTensor) for each in model.parameters())
    return {"steps": found, "sharded": in_shards}


def main(scenario, folder):
    if scenario != "sharded":
        import unsloth  # noqa: F401  # once, for all children
        from trl import SFTTrainer  # noqa: F401

        import finelab.train.__main__  # noqa: F401

    scenarios = {"tiny": tiny, "embedded": embedded, "sharded": sharded, "resumed": resumed}
    print(json.dumps(scenarios[scenario](folder)))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
