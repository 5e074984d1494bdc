"""Answers for several clients out of one loaded model: each step computes one token for all of them at once.

Continuous batching (Yu et al. 2022, "Orca"): an answer joins and leaves between two steps. Each has a row of
the cache; a prompt is read in pieces, so that the answers under way go on meanwhile.
"""

from __future__ import annotations

import threading
import traceback
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finelab.chat.rows import Rows
from finelab.chat.sampling import Sampler, Sampling, Token
from finelab.chat.text import Text

BASE, PEFT_BASE = "base", "__base__"  # the base model's id here, and PEFT's name for a row without adapter
# Prompt tokens per forward, for so long the others wait: 0.3 s of a 135M model on two cores. With 64
# a prompt of 500 tokens took 1.25 times as long.
PIECE = {"cpu": 192, "cuda": 512}


@dataclass(frozen=True)
class Piece:
    """What came of an answer: text, its tokens, and at the end why it ended ("stop", "length") or failed."""

    text: str = ""
    tokens: tuple[Token, ...] = ()
    finish: str | None = None
    error: str | None = None


@dataclass(eq=False)
class Answer:
    """One answer to be made; `emit` is called with its pieces from the engine's thread."""

    model: str
    prompt: list[int]
    sampling: Sampling
    max_tokens: int
    stop: Sequence[str] = ()
    key: bytes = b""  # the client's, digested: it shares what was computed with no other's
    emit: Callable[[Piece], None] = lambda piece: None
    cancelled: bool = False
    cached: int = 0  # prompt tokens that had been computed before
    generated: int = 0


class QueueFull(Exception):
    """More answers are waiting than the server allows."""


class Engine:
    """Makes answers in a thread of its own; `with Engine(...) as engine: engine.submit([answer])`."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        max_concurrency: int = 4,
        max_queue: int = 16,
        adapters: Mapping[str, str] | None = None,  # PEFT's name of each, by model id
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.max_concurrency = max_concurrency
        self.max_queue = max_queue
        self.eos = end_tokens(model, tokenizer)
        self._peft_names = {**(adapters or {}), BASE: PEFT_BASE}
        self._names: list[str] = []  # of each row's adapter, in the forward that is running
        self.piece = PIECE.get(model.device.type, 64)
        self.alive = True
        self._rows = Rows(max_concurrency)
        self._waiting: deque[Answer] = deque()
        self._running: list[_Running] = []
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._loop, name="engine", daemon=True)

    def __enter__(self) -> Engine:
        layers = adapted_layers(self.model)
        self._hooks = [layer.register_forward_pre_hook(self._name_rows, with_kwargs=True) for layer in layers]
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()
        for hook in self._hooks:
            hook.remove()

    @property
    def running(self) -> int:
        """Answers that have a row."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Answers in the queue."""
        return len(self._waiting)

    def submit(self, answers: Sequence[Answer]) -> None:
        """Queue all of them, or none: QueueFull when they do not fit."""
        with self._changed:
            places = self.max_concurrency + self.max_queue - self.running - self.waiting
            if len(answers) > places:
                raise QueueFull
            self._waiting.extend(answers)
            self._changed.notify()

    def cancel(self, answers: Sequence[Answer]) -> None:
        """End them before the next step; they emit nothing more."""
        with self._changed:
            for answer in answers:
                answer.cancelled = True
            self._changed.notify()

    def _loop(self) -> None:
        import torch

        try:
            with torch.inference_mode():
                while self._wait():
                    try:
                        self._turn()
                    except Exception as error:  # out of memory, say: these fail, the next may not
                        self._fail(error)
                        traceback.print_exc()
        finally:
            self.alive = False

    def _wait(self) -> bool:
        """Sleep until there is something to do; False when there never will be."""
        with self._changed:
            self._changed.wait_for(lambda: self._closing or self._waiting or self._running)
            return not self._closing

    def _turn(self) -> None:
        """Let answers come and go, read a piece of one prompt, and draw a token for each of the others."""
        self._come_and_go()
        if reading := [each for each in self._running if each.unread]:
            self._read(reading[0])
        if drawing := [each for each in self._running if not each.unread]:
            self._step(sorted(drawing, key=lambda each: each.row))

    def _come_and_go(self) -> None:
        for running in [each for each in self._running if each.answer.cancelled]:
            self._running.remove(running)
        joined = None
        with self._changed:
            self._waiting = deque(answer for answer in self._waiting if not answer.cancelled)
            if self._waiting and len(self._running) < self.max_concurrency:
                joined = _Running(self._waiting.popleft(), self.eos)
                self._running.append(joined)
        if joined:  # and where that fails, the answer fails with those that are running
            joined.begin(self.tokenizer, self.model.device)
            self._seat(joined)

    def _seat(self, running: _Running) -> None:
        """Give a new answer the free row that holds most of its prompt; of equal ones the shortest."""
        answer = running.answer
        owner = (answer.model, answer.key)
        taken = {each.row for each in self._running}
        last = len(answer.prompt) - 1  # the last token is always computed: its logits are needed
        shared = {
            row: min(self._rows.common(row, owner, answer.prompt), last)
            for row in range(self.max_concurrency)
            if row not in taken
        }
        row = max(shared, key=lambda each: (shared[each], -len(self._rows.tokens[each])))
        del self._rows.tokens[row][shared[row] :]
        self._rows.owner[row] = owner
        answer.cached = shared[row]
        running.row, running.unread = row, answer.prompt[answer.cached :]

    def _read(self, running: _Running) -> None:
        ids, running.unread = running.unread[: self.piece], running.unread[self.piece :]
        logits = self._forward([running], [ids])
        if not running.unread:
            self._draw(running, logits[0])

    def _step(self, running: list[_Running]) -> None:
        for each, logits in zip(
            running, self._forward(running, [[each.last] for each in running]), strict=True
        ):
            self._draw(each, logits)

    def _draw(self, running: _Running, logits: Any) -> None:
        piece = running.draw(logits)
        if piece.finish:
            self._running.remove(running)
        if not running.answer.cancelled:
            running.answer.emit(piece)

    def _forward(self, running: list[_Running], ids: list[list[int]]) -> Any:
        """The logits behind the last of each answer's new ids: (answers, vocabulary)."""
        import torch

        rows = [each.row for each in running]
        tokens, positions, mask = self._rows.look(rows, ids)
        models = dict(zip(rows, (each.answer.model for each in running), strict=True))
        span = range(rows[0], rows[-1] + 1)
        self._names = [self._peft_names[models.get(row, BASE)] for row in span]
        device = self.model.device
        output = self.model(
            input_ids=torch.tensor(tokens, device=device),
            position_ids=torch.tensor(positions, device=device),
            attention_mask=None if mask is None else mask.to(device),
            past_key_values=self._rows,
            use_cache=True,
            logits_to_keep=1,
        )
        return output.logits[[row - rows[0] for row in rows], -1]

    def _name_rows(self, _: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """PEFT's `adapter_names`; given to the model itself, it adds and removes 210 hooks at each step."""
        return args, {**kwargs, "adapter_names": self._names}

    def _fail(self, error: Exception) -> None:
        with self._changed:
            failed, self._running = self._running, []
            self._rows = Rows(self.max_concurrency)
        for each in failed:
            each.answer.emit(Piece(error=f"the model failed with {type(error).__name__}"))


class _Running:
    """An answer with a row: what of its prompt is unread, its sampler, its text."""

    text: Text
    sampler: Sampler

    def __init__(self, answer: Answer, eos: frozenset[int]) -> None:
        self.answer = answer
        self.row = -1
        self.unread = answer.prompt
        self.last = 0
        self.eos = eos

    def begin(self, tokenizer: Any, device: Any) -> None:
        """Take what its tokens are drawn and read with; the sampler has memory on the device."""
        self.text = Text(tokenizer, self.answer.stop)
        self.sampler = Sampler(self.answer.sampling, self.answer.prompt, self.eos, device)

    def draw(self, logits: Any) -> Piece:
        """Draw the next token and say what it adds."""
        token = self.sampler.draw(logits)
        self.last = token.id
        self.answer.generated += 1
        if token.id in self.eos and not self.answer.sampling.ignore_eos:
            return Piece(self.text.end(), finish="stop")
        text = self.text.add(token.id)
        if self.text.stopped:
            return Piece(text, (token,), finish="stop")
        if self.answer.generated == self.answer.max_tokens:
            text += self.text.end()
            return Piece(text, (token,), finish="stop" if self.text.stopped else "length")
        return Piece(text, (token,))


def end_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    """The ids that end an answer: the generation config's, and the tokenizer's."""
    found = model.generation_config.eos_token_id
    ids = found if isinstance(found, list) else [found]
    return frozenset(id_ for id_ in (*ids, tokenizer.eos_token_id) if id_ is not None)


def adapted_layers(model: Any) -> list[Any]:
    """The layers in which PEFT chooses an adapter for each row."""
    from peft.tuners.lora import LoraLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    return [module for module in model.modules() if isinstance(module, LoraLayer | AuxiliaryTrainingWrapper)]
