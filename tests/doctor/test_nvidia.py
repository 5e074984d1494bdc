"""What nvidia-smi says of cards, from a program of that name on the PATH."""

import os

import pytest

from finelab.doctor.facts import Card
from finelab.doctor.gather.card import Driver, ask_driver, facts
from tests.doctor.machines import CARD, TURING

MIB = 2**20
TURING_LINE = "560.94, GPU-5b0e6a4c, 8192, 1103, NVIDIA GeForce RTX 2060 SUPER, 7.5"
AMPERE_LINE = "560.94, GPU-91d0f1aa, 12288, 0, NVIDIA GeForce RTX 3060, 8.6"
MISMATCH = "Failed to initialize NVML: Driver/library version mismatch\nNVML library version: 560.35"
pytestmark = pytest.mark.skipif(os.name != "posix", reason="the stand-in for nvidia-smi is a shell script")


@pytest.fixture
def nvidia_smi(tmp_path, monkeypatch):
    """Put a program on the PATH that runs these lines of shell."""

    def write(*lines):
        path = tmp_path / "bin" / "nvidia-smi"
        path.parent.mkdir()
        path.write_text("\n".join(["#!/bin/sh", *lines]) + "\n")
        path.chmod(0o755)
        monkeypatch.setenv("PATH", str(path.parent), prepend=os.pathsep)

    return write


def say(text):
    return f"cat <<'END'\n{text}\nEND"


def test_a_turing_card_of_8_gb(nvidia_smi):
    nvidia_smi(say(TURING_LINE))
    card = Card("NVIDIA GeForce RTX 2060 SUPER", "GPU-5b0e6a4c", (7, 5), 8192 * MIB, 1103 * MIB)
    assert ask_driver() == Driver("560.94", (card,))


def test_two_cards(nvidia_smi):
    nvidia_smi(say(f"{TURING_LINE}\n{AMPERE_LINE}"))
    assert [(card.name, card.capability) for card in ask_driver().cards] == [
        ("NVIDIA GeForce RTX 2060 SUPER", (7, 5)),
        ("NVIDIA GeForce RTX 3060", (8, 6)),
    ]


@pytest.mark.parametrize("word", ["[N/A]", "[Not Supported]", "[Unknown Error]"])
def test_what_the_driver_cannot_tell_is_unknown(nvidia_smi, word):
    nvidia_smi(say(f"580.95.05, GPU-1, {word}, {word}, NVIDIA GB10, {word}"))
    assert ask_driver() == Driver("580.95.05", (Card("NVIDIA GB10", "GPU-1", None, None, None),))


def test_an_old_driver_without_the_field_compute_cap_still_tells_its_version(nvidia_smi):
    nvidia_smi(
        'case "$1" in *compute_cap*) cat <<END',
        'Field "compute_cap" is not a valid field to query.',
        "END",
        "exit 2;; esac",
        say("470.182.03, GPU-1, 8192, 12, NVIDIA GeForce RTX 2070"),
    )
    found = ask_driver()
    assert found.version == "470.182.03"
    assert found.cards[0].capability is None


def test_a_driver_that_does_not_answer_is_quoted_in_one_line(nvidia_smi):
    nvidia_smi(say(MISMATCH), "exit 18")
    assert ask_driver() == Driver(error=" ".join(MISMATCH.split()))


@pytest.mark.parametrize("text", ["No devices were found", "", "a, b"])
def test_a_text_that_is_no_list_of_cards_is_an_error(nvidia_smi, text):
    nvidia_smi(say(text))
    assert ask_driver() == Driver(error=text)


def test_without_nvidia_smi_there_is_nothing(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert ask_driver() == Driver()


def test_a_program_that_cannot_be_started_is_an_error(tmp_path, monkeypatch):
    path = tmp_path / "nvidia-smi"
    path.write_bytes(b"\x7fELF, and no more")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "nvidia-smi" in ask_driver().error


def test_the_card_that_torch_takes_stands_first():
    driver = Driver("560.94", (CARD, TURING))
    assert facts(driver, "")["cards"] == (CARD, TURING)
    assert facts(driver, TURING.uuid)["cards"] == (TURING, CARD)
    assert facts(driver, "GPU-of-a-slice")["cards"] == (CARD, TURING)


def test_a_driver_that_answers_is_one_whatever_else_is_there():
    assert facts(Driver("560.94", (CARD,)), "")["nvidia"] is True
