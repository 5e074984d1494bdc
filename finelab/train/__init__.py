"""Stage 3: the fastest batches, a plan that is checked, and a run of steps that survives an interruption."""

from finelab.train.batches import collator, eval_rows, training_rows
from finelab.train.curve import curve, first_and_last
from finelab.train.ledger import settle
from finelab.train.plan import plan_training
from finelab.train.session import Session
from finelab.train.tuner import tune
from finelab.train.watch import reporters, watch

__all__ = [
    "Session",
    "collator",
    "curve",
    "eval_rows",
    "first_and_last",
    "plan_training",
    "reporters",
    "settle",
    "training_rows",
    "tune",
    "watch",
]
