"""Resumed equals uninterrupted: running digests of a run that two sittings continue as one would.

Every optimizer step adds the rows it trains on and its learning rate; every checkpoint adds the random
states and the trained weights. On a CPU the digests of a run that was stopped and resumed are those of a
run that never was, bit for bit. The rows are those of all ranks, in the order in which one would take them.
"""

from __future__ import annotations

import hashlib
import random
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from finelab.data import IGNORE
from finelab.errors import LabError
from finelab.train import distributed
from finelab.train.checkpoint import Checkpoint

HASHES = ("data_order_sha256", "learning_rate_sha256", "rng_sha256", "weights_sha256")
START = "_finelab_start_sha256"  # kept on the model, as a trainer is soon made anew


class Chain:
    """The digests up to this step, begun anew or where a checkpoint's ended.

    A resumed trainer that does not hold what the checkpoint was sealed with is a LabError, or with
    `accept_changes` a certificate that says so.
    """

    def __init__(self, start: Checkpoint | None, accept_changes: bool) -> None:
        sealed = start.certificate if start else {}
        self.start = start
        self.accept_changes = accept_changes
        self.resumes = [*sealed.get("resumes", []), *([start.step] if start else [])]
        self.restored_exactly = bool(sealed.get("restored_exactly", True))
        self.trained_tokens = int(sealed.get("trained_tokens", 0))
        self._data_order = str(sealed.get("data_order_sha256", ""))
        self._learning_rate = str(sealed.get("learning_rate_sha256", ""))

    def add_batches(self, batches: Sequence[dict[str, Any]]) -> None:
        """This rank's micro-batches of one optimizer step, as the trainer is about to compute them."""
        own = [[document(ids, labels) for ids, labels in documents(batch)] for batch in batches]
        taken = distributed.interleaved(distributed.gather(own))
        rows = [each for batch in taken for each in batch if each[1]]
        self.trained_tokens += sum(trained for _, trained in rows)
        self._data_order = _hash(self._data_order, *(digest for digest, _ in rows))

    def add_learning_rate(self, optimizer: Any) -> None:
        """The learning rates that the coming optimizer step uses."""
        rates = [float(group["lr"]) for group in optimizer.param_groups]
        self._learning_rate = _hash(self._learning_rate, struct.pack(f"<{len(rates)}d", *rates))

    def sealed(self, model: Any) -> dict[str, Any]:
        """What a checkpoint made now is sealed with."""
        return {
            "data_order_sha256": self._data_order,
            "learning_rate_sha256": self._learning_rate,
            "rng_sha256": rng_sha256(),
            "weights_sha256": weights_sha256(model),
            "trained_tokens": self.trained_tokens,
            "resumes": self.resumes,
            "restored_exactly": self.restored_exactly,
            "processes": distributed.world().size,
        }

    def check_model(self, model: Any, optimizer: Any) -> None:
        """The resumed model holds the checkpoint's weights, and its optimizer is not a fresh one."""
        self._check("weights", weights_sha256(model), "weights_sha256")
        if self.start and not optimizer.state_dict()["state"]:
            self._refuse("optimizer")

    def check_rng(self) -> None:
        """The resumed random generators go on where the checkpoint's stood, those of the rank that seals."""
        if distributed.world().first:
            self._check("random states", rng_sha256(), "rng_sha256")

    def _check(self, what: str, found: str, key: str) -> None:
        if self.start and found != self.start.certificate[key]:
            self._refuse(what)

    def _refuse(self, what: str) -> None:
        step = self.start.step if self.start else 0
        fault = f"the {what} restored from checkpoint-{step} are not what it was sealed with"
        if not self.accept_changes:
            raise LabError(
                f"{fault}, so going on would be another run: do the stage again with --from train, "
                "or accept it with --accept-changes."
            )
        self.restored_exactly = False
        print(f"Accepted: {fault}.")


@contextmanager
def watching(trainer: Any, chain: Chain) -> Iterator[None]:
    """Let `chain` see each step's batches and the restored random states, which no callback is shown.

    The two methods are laid over this trainer only, and taken away at the end. The batches are those that
    the loop computes next, not what a data loader prefetched.
    """

    def get_batch_samples(*args: Any, **kwargs: Any) -> Any:
        batches, count = type(trainer).get_batch_samples(trainer, *args, **kwargs)
        chain.add_batches(batches)
        return batches, count

    def load_rng_state(checkpoint: str | None) -> None:
        type(trainer)._load_rng_state(trainer, checkpoint)
        chain.check_rng()

    trainer.get_batch_samples, trainer._load_rng_state = get_batch_samples, load_rng_state
    try:
        yield
    finally:
        del trainer.get_batch_samples, trainer._load_rng_state


def compare(first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    """The hashes in which two runs' certificates differ; none when both did the same, bit for bit."""
    return [name for name in HASHES if first[name] != second[name]]


def documents(batch: dict[str, Any]) -> Iterator[tuple[Any, Any]]:
    """The tokens and labels of each row, without padding, also of rows that lie flat one after another."""
    for i, (ids, labels) in enumerate(zip(batch["input_ids"], batch["labels"], strict=True)):
        if "attention_mask" in batch:
            real = batch["attention_mask"][i].bool()
            yield ids[real], labels[real]
        elif "position_ids" in batch:
            starts = (batch["position_ids"][i] == 0).nonzero()[1:, 0].tolist()
            yield from zip(ids.tensor_split(starts), labels.tensor_split(starts), strict=True)
        else:
            yield ids, labels


def document(ids: Any, labels: Any) -> tuple[str, int]:
    """The hash of a row's tokens and how many are trained; a row that trains none may be a filler."""
    return _hash(_bytes(ids)), int((labels != IGNORE).sum())


def rng_sha256() -> str:
    """The states of the generators that training draws from: Python's, NumPy's, torch's, the card's."""
    import torch

    states = [_bytes(torch.get_rng_state())]
    if torch.cuda.is_available():
        states.append(_bytes(torch.cuda.get_rng_state()))
    numpy = np.random.get_state(legacy=False)
    place = (numpy["state"]["pos"], numpy["has_gauss"], numpy["gauss"])
    return _hash(repr(random.getstate()), numpy["state"]["key"].tobytes(), repr(place), *states)


def trained_before(trainer: Any) -> bool:
    """Whether steps were made in this process since its first call for the trainer's model.

    The optimizer is asked too: with warm-up the first step's learning rate is 0, which moves no weight.
    """
    found = weights_sha256(trainer.model)
    moved = vars(trainer.model).setdefault(START, found) != found
    return moved or bool(trainer.optimizer is not None and trainer.optimizer.state_dict()["state"])


def weights_sha256(model: Any) -> str:
    """The trained parameters, by name."""
    trained = sorted((name, each) for name, each in model.named_parameters() if each.requires_grad)
    parts = [part for name, each in trained for part in (name, _bytes(each.detach()))]
    return _hash(*parts)


def _bytes(tensor: Any) -> bytes:
    """A tensor's bytes, of any dtype and device; of a sharded one, which all ranks ask for, the whole's."""
    import torch

    tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return bytes(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())


def _hash(*parts: str | bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode() if isinstance(part, str) else part)
    return digest.hexdigest()
