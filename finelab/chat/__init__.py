"""Stage 5: talking to the base and the tuned model, both out of one loaded model."""

from finelab.chat.compare import Answers, first_of_each_source, show_answers, side_by_side
from finelab.chat.local import LocalServer, start_server
from finelab.chat.model import ChatModel, load
from finelab.chat.prompt import plain_rows

__all__ = [
    "Answers",
    "ChatModel",
    "LocalServer",
    "first_of_each_source",
    "load",
    "plain_rows",
    "show_answers",
    "side_by_side",
    "start_server",
]
