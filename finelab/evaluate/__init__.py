"""Stage 6: what the fine-tune changed, on rows it never saw."""

from finelab.evaluate.compare import Comparison, by_kind, compare, evidence
from finelab.evaluate.heldout import response_nll

__all__ = ["Comparison", "by_kind", "compare", "evidence", "response_nll"]
