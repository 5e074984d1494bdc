"""Stage 3: a run of steps that shows where it is and survives an interruption."""

from finelab.train.curve import curve, first_and_last
from finelab.train.session import Session, trained_share

__all__ = ["Session", "curve", "first_and_last", "trained_share"]
