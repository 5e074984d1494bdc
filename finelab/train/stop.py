"""What ends a sitting before its run is trained: the hours it was given, or the user; both save first."""

from __future__ import annotations

import dataclasses
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

from finelab.train.plan import duration

ASSUMED_SAVE_S = (
    60.0  # until a save was measured: 0.1 s for the embedded model, minutes on a slow network disk
)
SIGNALS: dict[int, str] = {
    getattr(signal, name): f"{what} ({name})"
    for name, what in (
        ("SIGINT", "it was interrupted"),
        ("SIGTERM", "the system asked it to end"),
        ("SIGBREAK", "it was interrupted"),  # Windows, Ctrl-Break
        ("SIGHUP", "its terminal was closed"),
    )
    if hasattr(signal, name)
}


@dataclass(frozen=True)
class Longest:
    """The seconds of the longest step so far, with a look and a save in it, of the longest look and save.

    A look is the measurement on the validation rows; `save_s` is None before the first save.
    """

    step_s: float = 0.0
    look_s: float = 0.0
    save_s: float | None = None


class Stop:
    """Asks the trainer to save and stop, for a signal or because `session_hours` since its making are over.

    What is still to be done by then is subtracted: one more step, a look and a save, each as long as the
    `longest` so far, earlier sittings included. `reason` says what ended the sitting; `obeyed` is whether the
    trainer was asked.
    """

    def __init__(self, session_hours: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        self.reason: str | None = None
        self.obeyed = False
        self.longest = Longest()
        self._hours = session_hours
        self._clock = clock
        self._made = clock()
        self._step_ended = self._marked = self._made
        self._signal: int | None = None

    def begin(self, known: Longest = Longest()) -> None:
        """Training begins, and so does the first step; `known` is from earlier sittings."""
        self.longest = known
        self._step_ended = self._marked = self._clock()

    def shortage(self, planned_step_s: float = 0.0) -> str | None:
        """A warning where the hours that are left are less than one step and a save are known to take."""
        needed_s = max(self.longest.step_s, planned_step_s) + (self.longest.save_s or 0.0)
        left_s = self._left_s()
        if needed_s <= left_s:
            return None
        return (
            f"session_hours = {self._hours:g} leaves {duration(left_s)} for training, and a step and its "
            f"save take up to {duration(needed_s)} here: this sitting may end too late; give it more hours."
        )

    def step_ended(self) -> None:
        """Time the step, look and save included; is there time for one more?"""
        now = self._clock()
        self._lengthen(step_s=now - self._step_ended)
        self._step_ended = self._marked = now
        save_s = ASSUMED_SAVE_S if self.longest.save_s is None else self.longest.save_s
        if not self.reason and self.longest.step_s + self.longest.look_s + save_s >= self._left_s():
            self.reason = f"the {self._hours:g} hours of this sitting are over"

    def evaluated(self) -> None:
        """Time the look that came after the step."""
        self._marked = self._clock()
        self._lengthen(look_s=self._marked - self._step_ended)

    def saved(self) -> None:
        """Time the save that just ended."""
        self._lengthen(save_s=self._clock() - self._marked)

    def _lengthen(self, **seconds: float) -> None:
        longer = {name: max(getattr(self.longest, name) or 0.0, each) for name, each in seconds.items()}
        self.longest = dataclasses.replace(self.longest, **longer)

    def _left_s(self) -> float:
        """The seconds until the hours are over."""
        if self._hours is None:
            return math.inf
        return max(0.0, self._made + 3600 * self._hours - self._clock())

    def ask(self, state: Any, control: Any) -> None:
        """Have the trainer save and stop, if there is a reason and the run is not at its last step anyway."""
        if self.reason and state.global_step < state.max_steps:
            control.should_save = control.should_training_stop = self.obeyed = True

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take the signals that end a program, in the main thread; the handlers from before come back.

        A second signal does what it did before. So does one that training could not obey because it was
        ending anyway: it is sent again.
        """
        self.reason, self.obeyed, self._signal = None, False, None
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        found = {number: signal.getsignal(number) for number in SIGNALS}
        before = {n: handler for n, handler in found.items() if handler not in (None, signal.SIG_IGN)}

        def asked(number: int, _frame: FrameType | None) -> None:
            self.reason, self._signal = SIGNALS[number], number
            signal.signal(number, before[number])

        for number in before:
            signal.signal(number, asked)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        if self._signal is not None and not self.obeyed:
            signal.raise_signal(self._signal)
