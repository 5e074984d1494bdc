"""Tokens and labels: one BOS, answers and their end tokens trained, nothing longer than the model takes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finelab.data.conversation import Conversation, Message
from finelab.data.dialects import Unusable
from finelab.data.dropped import none_usable
from finelab.data.encoder import Encoder, Tokens
from finelab.data.template import PROBES, ChatTemplate, Span
from finelab.data.xray import IGNORE
from finelab.errors import LabError

# Behind a line, behind a sentence that white space follows, or that needs none in Chinese and Japanese.
SENTENCE_END = re.compile(r"\n|[。！？]|[.!?…](?=\s|\Z)")


@dataclass(frozen=True)
class Row:
    """A conversation as int32 `input_ids` and `labels`, which are the id where it is learned, else -100.

    A `truncated` row ends before its conversation does; with `cut_answer`, inside its last answer.
    """

    conversation: Conversation
    input_ids: NDArray[np.int32]
    labels: NDArray[np.int32]
    truncated: bool
    cut_answer: bool


@dataclass
class Tokenized:
    """The rows, and the number and reason of each row that was left out."""

    rows: list[Row] = field(default_factory=list)
    dropped: list[tuple[int, str]] = field(default_factory=list)

    @property
    def dropped_counts(self) -> Counter[str]:
        """How many rows were left out for each reason."""
        return Counter(reason for _, reason in self.dropped)


class ChatTokenizer:
    """Tokenises conversations with a model's own chat template, cut to `max_seq_length` tokens.

    `truncation` says what becomes of a longer one: "drop" leaves it out, "cut_turn" ends it behind
    the last answer that fits, "cut" inside the first that does not, behind a sentence and without
    an end token. LabError for a tokenizer whose template is of no use for training.
    """

    def __init__(self, tokenizer: Any, date_string: str, max_seq_length: int, truncation: str) -> None:
        self.template = ChatTemplate(tokenizer, date_string)
        self.encoder = Encoder(tokenizer)
        self.max_seq_length = max_seq_length
        self.truncation = truncation
        text, _ = self.template.spans(PROBES[0])
        bos = tokenizer.bos_token_id
        if bos is not None and self.encoder.encode(text, 2).ids[:2].tolist() == [bos, bos]:
            raise LabError("the template and the tokenizer both add a BOS token: rows begin with two.")

    def tokenize(self, conversations: Iterable[Conversation]) -> Tokenized:
        """The rows of all conversations that can be used; never raises for one that cannot."""
        result = Tokenized()
        for conversation in conversations:
            try:
                result.rows.append(self.row(conversation))
            except Unusable as reason:
                result.dropped.append((conversation.number, str(reason)))
        return result

    def row(self, conversation: Conversation) -> Row:
        """A conversation's tokens; Unusable when nothing to learn would be left of it."""
        text, spans = self.template.spans(conversation.messages, conversation.tools)
        tokens = self.encoder.encode(text, self.max_seq_length)
        answers = token_spans(tokens, spans)
        length, cut_answer = len(tokens.ids), False
        truncated = length > self.max_seq_length
        if truncated:
            length, cut_answer = self._cut(conversation.messages, text, spans, tokens, answers)
        input_ids = tokens.ids[:length]
        labels = np.full_like(input_ids, IGNORE)
        for start, end in answers:
            labels[start:end] = input_ids[start:end]
        return Row(conversation, input_ids, labels, truncated, cut_answer)

    def _cut(
        self,
        messages: list[Message],
        text: str,
        spans: list[Span],
        tokens: Tokens,
        answers: list[Span],
    ) -> tuple[int, bool]:
        """How many tokens are kept of a row that is too long, and whether that is inside an answer."""
        if self.truncation == "drop":
            raise Unusable("longer than max_seq_length")
        fitting = sum(end <= self.max_seq_length for _, end in answers)
        if self.truncation == "cut" and fitting < len(answers):
            first_too_long = [each for each in messages if each["role"] == "assistant"][fitting]
            start, end = spans[fitting]
            content = start, end - len(self.template.end_token)
            length = sentence_cut(text, content, tokens, self.max_seq_length)
            if length and "tool_calls" not in first_too_long:
                return length, True
        if not fitting:
            raise Unusable("the first answer ends behind max_seq_length")
        return answers[fitting - 1][1], False


def tokenize(
    tokenizer: Any,
    conversations: Sequence[Conversation],
    max_seq_length: int,
    date_string: str,
    truncation: str = "cut_turn",
) -> Tokenized:
    """All conversations through a `ChatTokenizer`, with a progress bar; LabError when no row is left."""
    from tqdm import tqdm

    chats = ChatTokenizer(tokenizer, date_string, max_seq_length, truncation)
    result = chats.tokenize(tqdm(conversations, "tokenise", unit=" rows", delay=2))
    if not result.rows:
        raise none_usable(len(conversations), result.dropped_counts, max_seq_length)
    return result


def token_spans(tokens: Tokens, spans: Sequence[Span]) -> list[Span]:
    """For each span of characters the tokens, from and to, that lie wholly inside it."""
    first = np.searchsorted(tokens.starts, [start for start, _ in spans])
    behind = np.searchsorted(tokens.ends, [end for _, end in spans], side="right")
    return list(zip(first.tolist(), behind.tolist(), strict=True))


def sentence_cut(text: str, content: Span, tokens: Tokens, limit: int) -> int:
    """The most tokens, `limit` at most, that end behind a sentence of the answer `content`; 0 for none.

    `tokens` are more than `limit`.
    """
    start, end = content
    seen = min(end, int(tokens.ends[limit]))
    sentences = [found.end() for found in SENTENCE_END.finditer(text, start, seen)]
    ends = tokens.ends[:limit]
    whole = tokens.starts[1 : limit + 1] >= ends  # a character may be several tokens
    fitting = np.flatnonzero(whole & np.isin(ends, sentences))
    return int(fitting[-1]) + 1 if fitting.size else 0
