"""Generation with the trained chat template, base and tuned in one loaded model."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from finelab.chat.prompt import render_prompt
from finelab.chat.sampling import for_generate
from finelab.chat.text import Text
from finelab.data.conversation import Message
from finelab.errors import LabError
from finelab.recipe import Chat
from finelab.run import Run


@dataclass(frozen=True)
class ChatModel:
    """A PEFT model with its tokenizer; `tuned=False` switches the adapter off for one answer."""

    model: Any
    tokenizer: Any
    settings: Chat
    date_string: str

    def prompt(self, messages: list[Message]) -> str:
        """The text the model sees."""
        return render_prompt(self.tokenizer, messages, self.date_string)

    def stream(
        self,
        messages: list[Message],
        tuned: bool = True,
        temperature: float | None = None,
        stop: Sequence[str] = (),
        seed: int | None = None,
        **options: Any,
    ) -> Iterator[str]:
        """The answer piece by piece, up to a stop string; closing the iterator stops the generation.

        `options` go to `generate`; what is left out is the recipe's. LabError when the prompt is too long.
        """
        import torch

        inputs = self.tokenizer(self.prompt(messages), add_special_tokens=False, return_tensors="pt")
        self._require_room(inputs["input_ids"].shape[1])
        streamer = _streamer(Text(self.tokenizer, stop))
        chosen = {**self._sampling(temperature), **options}

        def generate() -> None:
            try:
                with nullcontext() if tuned else self.model.disable_adapter(), torch.random.fork_rng():
                    if seed is not None:
                        torch.manual_seed(seed)
                    self.model.generate(
                        **inputs.to(self.model.device),
                        **chosen,
                        streamer=streamer,
                        stopping_criteria=[lambda ids, _: streamer.ended(ids)],
                        pad_token_id=self.tokenizer.pad_token_id,
                    )
            except BaseException as error:  # raised again in the reader's thread
                streamer.pieces.put(error)

        thread = threading.Thread(target=generate, daemon=True)
        thread.start()
        try:
            while (piece := streamer.pieces.get()) is not None:
                if isinstance(piece, BaseException):
                    raise piece
                if piece:
                    yield piece
        finally:
            streamer.closed = True
            thread.join()

    def answer(self, messages: list[Message], tuned: bool = True, **options: Any) -> str:
        """The whole answer; `options` as for `stream`."""
        return "".join(self.stream(messages, tuned, **options)).strip()

    def _require_room(self, tokens: int) -> None:
        """LabError for what Unsloth's model on a card would cut at its end, the newest question first."""
        room = getattr(self.model, "max_seq_length", tokens)
        if self.model.device.type == "cuda" and tokens > room:
            raise LabError(
                f"the conversation has {tokens} tokens, and the model was loaded for {room}: begin a new "
                "one, or load it with a larger max_seq_length."
            )

    def _sampling(self, temperature: float | None) -> dict[str, Any]:
        chosen = self.settings.temperature if temperature is None else temperature
        options = for_generate(chosen, self.settings.min_p)
        return {"max_new_tokens": self.settings.max_new_tokens, **options}


def _streamer(text: Text) -> Any:
    """What `generate` hands its tokens to: the first call is the prompt, each later one a token."""
    from transformers.generation.streamers import BaseStreamer

    class Streamer(BaseStreamer):  # type: ignore[misc]
        def __init__(self) -> None:
            self.pieces: queue.Queue[str | BaseException | None] = queue.Queue()
            self.closed = False
            self.prompt_seen = False

        def put(self, ids: Any) -> None:
            if self.prompt_seen and not text.stopped:
                self.pieces.put("".join(text.add(id_) for id_ in ids.flatten().tolist()))
            self.prompt_seen = True

        def end(self) -> None:
            self.pieces.put(text.end())
            self.pieces.put(None)

        def ended(self, ids: Any) -> Any:
            """For each row of the batch, whether it is to end here."""
            return ids.new_full((len(ids),), self.closed or text.stopped, dtype=bool)

    return Streamer()


def load(run: Run) -> ChatModel:
    """Load a run's base model and adapter for chatting; LabError when it has no adapter yet."""
    adapter = run.require(run.adapter, "03_train")
    from unsloth import FastLanguageModel

    profile = run.profile()
    model, tokenizer = FastLanguageModel.from_pretrained(
        model_name=str(adapter),
        max_seq_length=run.recipe.model.max_seq_length,
        dtype=profile.torch_dtype(),
        load_in_4bit=profile.load_in_4bit,
    )
    FastLanguageModel.for_inference(model)
    return ChatModel(model, tokenizer, run.recipe.chat, run.recipe.data.date_string)
