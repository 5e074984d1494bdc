"""Stage 1: conversations -> messages -> tokens and labels -> splits."""

from finelab.data.conversation import Conversation
from finelab.data.read import Source, read_conversations
from finelab.data.report import dropped_rows, repairs_table, summary
from finelab.data.save import load_split, save_splits
from finelab.data.split import split
from finelab.data.standardize import Standardized, control_tokens, limit, standardize
from finelab.data.template import render, trained_spans
from finelab.data.tokens import IGNORE, Tokenized, padding_share, tokenize

__all__ = [
    "IGNORE",
    "Conversation",
    "Source",
    "Standardized",
    "Tokenized",
    "control_tokens",
    "dropped_rows",
    "limit",
    "load_split",
    "padding_share",
    "read_conversations",
    "render",
    "repairs_table",
    "save_splits",
    "split",
    "standardize",
    "summary",
    "tokenize",
    "trained_spans",
]
