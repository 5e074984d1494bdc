"""The live line and its picture, in a real kernel and on a plain stream."""

import base64

import nbformat
from nbclient import NotebookClient

from finelab.show import Live


def executed(source):
    cell = nbformat.v4.new_code_cell("from finelab.show import Live\n" + source)
    return NotebookClient(nbformat.v4.new_notebook(cells=[cell]), timeout=120).execute().cells[0].outputs


def test_a_notebook_has_one_picture_with_its_line_renewed_in_place():
    outputs = executed(
        "live = Live(every_s=0)\n"
        "for step in range(1, 4):\n"
        "    live.show(f'step {step}/3', lambda: b'picture %d' % step, last=step == 3)\n"
    )
    assert [output["output_type"] for output in outputs] == ["display_data"]
    assert outputs[0]["data"]["text/plain"] == "step 3/3"
    assert base64.b64decode(outputs[0]["data"]["image/png"]) == b"picture 3"


def test_a_slow_picture_is_drawn_less_often_than_its_line_and_at_the_end():
    outputs = executed(
        "import time\n"
        "live = Live(every_s=0)\n"
        "def draw(step):\n"
        "    began = time.monotonic()\n"
        "    while time.monotonic() < began + 1:\n"
        "        pass\n"
        "    print(step)\n"
        "    return b'picture %d' % step\n"
        "for step in range(1, 4):\n"
        "    live.show(f'step {step}/4', lambda: draw(step))\n"
        "live.show('step 4/4', lambda: draw(4), last=True)\n"
    )
    assert "".join(output["text"] for output in outputs if output["output_type"] == "stream") == "1\n4\n"
    shown = [output["data"] for output in outputs if output["output_type"] == "display_data"]
    assert base64.b64decode(shown[0]["image/png"]) == b"picture 4"
    assert shown[0]["text/plain"] == "step 4/4"


def test_a_picture_that_cannot_be_drawn_is_told_once_and_the_line_goes_on():
    outputs = executed(
        "live = Live(every_s=0)\nfor step in range(1, 4):\n    live.show(f'step {step}/3', lambda: 1 / 0)\n"
    )
    streams = [output["text"] for output in outputs if output["output_type"] == "stream"]
    assert streams == [
        "The live picture cannot be drawn (ZeroDivisionError('division by zero')); its line goes on.\n"
    ]
    shown = [output["data"] for output in outputs if output["output_type"] == "display_data"]
    assert shown == [{"text/plain": "step 3/3"}]


def test_elsewhere_lines_are_printed_and_nothing_is_drawn(capsys):
    drawn = []
    live = Live(every_s=0)
    live.show("step 1/2", lambda: drawn.append(1) or b"")
    live.show("step 2/2", lambda: drawn.append(2) or b"")
    assert capsys.readouterr().out == "step 1/2\nstep 2/2\n"
    assert drawn == []


def test_between_two_lines_some_time_passes_but_the_last_one_shows(capsys):
    live = Live(every_s=3600)
    for step in range(1, 9):
        live.show(f"step {step}/8")
    live.show("step 8/8", last=True)
    live.show("step 8/8", last=True)
    assert capsys.readouterr().out == "step 1/8\nstep 8/8\n"


def test_a_terminal_that_was_closed_stops_nothing(monkeypatch, tmp_path):
    with (tmp_path / "closed").open("w", encoding="utf-8") as stream:
        monkeypatch.setattr("sys.stdout", stream)
    live = Live(every_s=0)
    live.show("step 1/2")
    live.show("step 2/2", last=True)
