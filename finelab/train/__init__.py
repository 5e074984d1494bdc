"""Stage 3: a plan that is checked, and a run of steps that survives an interruption."""

from finelab.train.curve import curve, first_and_last
from finelab.train.ledger import settle
from finelab.train.plan import plan_training
from finelab.train.session import Session, trained_share

__all__ = ["Session", "curve", "first_and_last", "plan_training", "settle", "trained_share"]
