"""What ends a sitting: the clock, with what is still to be done subtracted, and signals."""

import signal
import threading
from types import SimpleNamespace

import pytest

from finelab.train.stop import ASSUMED_SAVE_S, Longest, Stop


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def step(stop, clock, seconds):
    clock.now += seconds
    stop.step_ended()
    return stop.reason is not None


def asked(stop, step, of):
    control = SimpleNamespace(should_save=False, should_training_stop=False)
    stop.ask(SimpleNamespace(global_step=step, max_steps=of), control)
    return control.should_save and control.should_training_stop


def test_without_hours_nothing_is_stopped(clock):
    stop = Stop(None, clock)
    stop.begin()
    assert not any(step(stop, clock, 10_000) for _ in range(5))
    assert not asked(stop, 5, 10)


def test_before_a_save_was_measured_a_long_one_is_assumed(clock):
    stop = Stop(1.0, clock)
    clock.now += 600  # the plan, the loss before
    stop.begin()
    steps = 0
    while not step(stop, clock, 10):
        steps += 1
    assert 600 + (steps + 1) * 10 + 10 + ASSUMED_SAVE_S >= 3600 > 600 + steps * 10 + 10 + ASSUMED_SAVE_S
    assert asked(stop, steps, 10_000)
    assert "1 hours of this sitting" in stop.reason


@pytest.mark.parametrize("save_s", [2, 300])
def test_it_stops_while_one_more_step_and_a_save_still_fit(clock, save_s):
    stop = Stop(1.0, clock)
    stop.begin()
    assert not step(stop, clock, 10)
    clock.now += save_s
    stop.saved()
    while not step(stop, clock, 10):
        pass
    clock.now += save_s  # the save that the stop asks for
    assert 3600 - 10 - save_s - 20 <= clock.now - 1000 <= 3600


def test_a_measurement_that_comes_before_the_save_has_its_time(clock):
    stop = Stop(1.0, clock)
    stop.begin()
    while True:
        if step(stop, clock, 10):
            break
        clock.now += 500
        stop.evaluated()
        clock.now += 5
        stop.saved()
    assert clock.now + 500 + 5 <= 1000 + 3600


def test_a_later_sitting_keeps_the_time_that_an_earlier_one_needed(clock):
    """Its first look comes at its end: no look and no save of its own told how long they are."""
    stop = Stop(1.0, clock)
    stop.begin(Longest(step_s=20, look_s=500, save_s=90))
    while not step(stop, clock, 10):
        pass
    assert 3600 - 20 - 10 <= clock.now - 1000 + 500 + 90 <= 3600 - 20
    stop.evaluated()
    stop.saved()
    assert stop.longest == Longest(step_s=20, look_s=500, save_s=90)


def test_hours_that_are_too_short_for_one_step_are_told(clock):
    stop = Stop(0.1, clock)
    clock.now += 260  # the plan, the loss before
    stop.begin(Longest(step_s=80, save_s=21))
    assert stop.shortage() == (
        "session_hours = 0.1 leaves 1.7 min for training, and a step and its save take up to 1.7 min here: "
        "this sitting may end too late; give it more hours."
    )


@pytest.mark.parametrize(
    ("hours", "known"),
    [(0.1, Longest(step_s=300, save_s=60)), (0.1, Longest()), (1e-9, Longest()), (None, Longest(1e9))],
)
def test_hours_that_suffice_or_of_which_nothing_is_known_are_not_told(clock, hours, known):
    stop = Stop(hours, clock)
    stop.begin(known)
    assert stop.shortage() is None


def test_the_last_step_is_not_called_a_stop(clock):
    stop = Stop(1e-6, clock)
    stop.begin()
    assert step(stop, clock, 10)
    assert not asked(stop, 10, 10)
    assert not stop.obeyed


@pytest.fixture(autouse=True)
def pythons_own_handler():
    """Whatever a library that ran before has left."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_asks_and_the_handlers_come_back(name):
    number = getattr(signal, name, None)
    if number is None:
        pytest.skip("Windows has no hangup")
    before = signal.getsignal(number)
    stop = Stop(None)
    with stop.listening():
        signal.raise_signal(number)
        assert number.name in stop.reason
        assert asked(stop, 3, 10)
    assert signal.getsignal(number) is before


def test_a_second_signal_does_what_it_did_before():
    stop = Stop(None)
    with stop.listening():
        signal.raise_signal(signal.SIGINT)
        assert asked(stop, 3, 10)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_handlers_come_back_after_an_error():
    with pytest.raises(ValueError, match="loss"), Stop(None).listening():
        raise ValueError("loss")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_signal_that_training_could_not_obey_is_not_lost():
    stop = Stop(None)
    with pytest.raises(KeyboardInterrupt), stop.listening():
        signal.raise_signal(signal.SIGINT)
        assert not asked(stop, 10, 10)  # the last step


def test_a_signal_of_an_earlier_sitting_does_not_stop_the_next_one():
    stop = Stop(None)
    with stop.listening():
        signal.raise_signal(signal.SIGINT)
        assert asked(stop, 3, 10)
    with stop.listening():
        assert not asked(stop, 4, 10)


def test_a_signal_that_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        stop = Stop(None)
        with stop.listening():
            signal.raise_signal(signal.SIGTERM)
        assert stop.reason is None
    finally:
        signal.signal(signal.SIGTERM, before)


def test_outside_of_the_main_thread_signals_are_left_alone():
    seen = []

    def body():
        with Stop(None).listening():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGINT)]
