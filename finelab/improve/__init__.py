"""Stage 7: settings compared at equal trained tokens, over several seeds, on the same held-out rows."""

from finelab.improve.definition import Sweep, Trial, create_sweep, grid, open_sweep
from finelab.improve.report import report, table
from finelab.improve.statistics import Difference, differences
from finelab.improve.sweep import left_of, run_sweep
from finelab.improve.trial import Outcome, outcome, run_trial, steps_for

__all__ = [
    "Difference",
    "Outcome",
    "Sweep",
    "Trial",
    "create_sweep",
    "differences",
    "grid",
    "left_of",
    "open_sweep",
    "outcome",
    "report",
    "run_sweep",
    "run_trial",
    "steps_for",
    "table",
]
