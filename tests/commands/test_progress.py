"""The runner's progress: few lines in a log, one renewed line on a terminal."""

import io

from rich.console import Console

from finelab.commands.progress import Progress


def printed(progress):
    return progress.console.file.getvalue()


def test_a_log_gets_the_first_line_and_then_one_at_most_every_few_seconds(console):
    progress = Progress(console, every_s=3600)
    with progress.stage("03_train", 14):
        progress.cell(7)
        for step in range(1, 41):
            progress.say(f"step {step}/40  loss 1.5")
    lines = printed(progress).splitlines()
    assert lines[0] == "03_train: started, 14 cells"
    assert lines[1] == "03_train: cell 7/14, 0:00  step 1/40  loss 1.5"
    assert lines[2].startswith("03_train: done in 0:0")
    assert lines[2].endswith("step 40/40  loss 1.5")
    assert len(lines) == 3


def test_a_line_that_did_not_change_is_not_repeated(console):
    progress = Progress(console, every_s=0)
    with progress.stage("03_train", 1):
        progress.say("step 1/2")
        progress.say("noise\nstep 1/2\nmore noise")
        progress.say("step 1/2\rstep 2/2\r")
    assert sum("cell" in line and "step" in line for line in printed(progress).splitlines()) == 2


def test_what_a_user_has_to_know_is_shown_once(console):
    progress = Progress(console, every_s=3600)
    slow = "Slow: 333 tok/s, where 1,000 was usual. Likely another program"
    plan = "steps     80\ntime      2 h 10 min (2 h to 2 h 20 min)\nfits      NO, by 3.0 GB"
    with progress.stage("03_train", 1):
        progress.say(plan)
        progress.say(f"{slow}\nstep 1/2")
        progress.say(f"{plan}\n{slow}")
    assert printed(progress).splitlines()[1:-1] == [
        "time      2 h 10 min (2 h to 2 h 20 min)",
        "fits      NO, by 3.0 GB",
        slow,
        "03_train: cell 0/1, 0:00  step 1/2",
    ]


def test_one_stage_does_not_show_the_lines_of_another(console):
    progress = Progress(console)
    with progress.stage("03_train", 1):
        progress.say("step 40/40")
    with progress.stage("04_publish", 1):
        pass
    assert printed(progress).splitlines()[-1].startswith("04_publish: done in 0:0")
    assert "step" not in printed(progress).splitlines()[-1]


def test_a_terminal_shows_the_newest_line_and_keeps_the_last():
    progress = Progress(Console(file=io.StringIO(), width=80, force_terminal=True))
    with progress.stage("03_train", 14):
        progress.cell(7)
        progress.say("step 1/2  loss 2.0")
    shown = printed(progress)
    assert "cell 7/14" in shown
    assert "03_train: done in 0:0" in shown.splitlines()[-1]
