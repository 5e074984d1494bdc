"""Stage 1: conversations -> messages -> tokens and labels -> splits."""

from finelab.data.conversation import Conversation
from finelab.data.template import render
from finelab.data.xray import IGNORE

__all__ = ["IGNORE", "Conversation", "render"]
