"""Stage 6: what the fine-tune changed, on rows it never saw."""

from finelab.evaluate.adapter import update_rms
from finelab.evaluate.answers import answer, answers_evidence, keep_answers, prompts
from finelab.evaluate.base import base_losses
from finelab.evaluate.compare import (
    Comparison,
    batch_losses,
    bits_per_byte,
    by_group,
    by_kind,
    by_length,
    compare,
    gain_kept,
    questions_of,
)
from finelab.evaluate.evidence import evidence
from finelab.evaluate.generate import Answer, generate
from finelab.evaluate.harness import harness
from finelab.evaluate.heldout import base_and_tuned, response_nll, row_totals, token_nll
from finelab.evaluate.judge import Judged, Prices, judge
from finelab.evaluate.neutral import forgetting, neutral_rows
from finelab.evaluate.runs import SideBySide, compare_runs, keep_losses
from finelab.evaluate.tokens import answer_bytes, by_token_class, format_share, most_changed, token_changes

__all__ = [
    "Answer",
    "Comparison",
    "Judged",
    "Prices",
    "SideBySide",
    "answer",
    "answer_bytes",
    "answers_evidence",
    "base_and_tuned",
    "base_losses",
    "batch_losses",
    "bits_per_byte",
    "by_group",
    "by_kind",
    "by_length",
    "by_token_class",
    "compare",
    "compare_runs",
    "evidence",
    "forgetting",
    "format_share",
    "gain_kept",
    "generate",
    "harness",
    "judge",
    "keep_answers",
    "keep_losses",
    "most_changed",
    "neutral_rows",
    "prompts",
    "questions_of",
    "response_nll",
    "row_totals",
    "token_changes",
    "token_nll",
    "update_rms",
]
