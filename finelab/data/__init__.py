"""Stage 1: conversations -> messages -> tokens and labels -> splits."""

from finelab.data.columns import conversation
from finelab.data.conversation import Conversation
from finelab.data.gate import checks, require
from finelab.data.pipeline import Prepared, example, prepare
from finelab.data.read import Row, Source, open_source
from finelab.data.report import left_out, repairs, repairs_of, summary
from finelab.data.save import load_split, save
from finelab.data.split import MIN_ROWS, question_key
from finelab.data.standardize import Standardized, control_pattern, control_tokens, standardize
from finelab.data.template import render, with_date
from finelab.data.tokens import ChatTokenizer, Tokenized, tokenize
from finelab.data.xray import IGNORE

__all__ = [
    "IGNORE",
    "MIN_ROWS",
    "ChatTokenizer",
    "Conversation",
    "Prepared",
    "Row",
    "Source",
    "Standardized",
    "Tokenized",
    "checks",
    "control_pattern",
    "control_tokens",
    "conversation",
    "example",
    "left_out",
    "load_split",
    "open_source",
    "prepare",
    "question_key",
    "render",
    "repairs",
    "repairs_of",
    "require",
    "save",
    "standardize",
    "summary",
    "tokenize",
    "with_date",
]
