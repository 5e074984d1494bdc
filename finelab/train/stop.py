"""What ends a sitting before its run is trained: the hours it was given, or the user; both save first."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

ASSUMED_SAVE_S = (
    60.0  # until a save was measured: 0.1 s for the embedded model, minutes on a slow network disk
)
SIGNALS: dict[int, str] = {
    getattr(signal, name): f"{what} ({name})"
    for name, what in (
        ("SIGINT", "it was interrupted"),
        ("SIGTERM", "the system asked it to end"),
        ("SIGBREAK", "it was interrupted"),  # Windows, Ctrl-Break
    )
    if hasattr(signal, name)
}


class Stop:
    """Asks the trainer to save and stop, for a signal or because `session_hours` since its making are over.

    What is still to be done by then is subtracted: one more step, a measurement and a save, each as long as
    the longest so far. `reason` says what ended the sitting; `obeyed` is whether the trainer was asked.
    """

    def __init__(self, session_hours: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        self.reason: str | None = None
        self.obeyed = False
        self._hours = session_hours
        self._clock = clock
        self._made = clock()
        self._step_ended = self._marked = self._made
        self._step_s = self._evaluation_s = 0.0
        self._save_s: float | None = None
        self._signal: int | None = None

    def begin(self) -> None:
        """Training begins, and so does the first step."""
        self._step_ended = self._marked = self._clock()

    def step_ended(self) -> None:
        """Time the step, measurement and save included; is there time for one more?"""
        now = self._clock()
        self._step_s = max(self._step_s, now - self._step_ended)
        self._step_ended = self._marked = now
        if self._hours is None or self.reason:
            return
        save_s = ASSUMED_SAVE_S if self._save_s is None else self._save_s
        if now + self._step_s + self._evaluation_s + save_s >= self._made + 3600 * self._hours:
            self.reason = f"the {self._hours:g} hours of this sitting are over"

    def evaluated(self) -> None:
        """Time the measurement on the validation rows that came after the step."""
        self._marked = self._clock()
        self._evaluation_s = max(self._evaluation_s, self._marked - self._step_ended)

    def saved(self) -> None:
        """Time the save that just ended."""
        self._save_s = max(self._save_s or 0.0, self._clock() - self._marked)

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
