"""Generation with the trained chat template, base and tuned in one loaded model."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from finelab.chat.prompt import render_prompt
from finelab.data.conversation import Message
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
        self, messages: list[Message], tuned: bool = True, temperature: float | None = None
    ) -> Iterator[str]:
        """The answer piece by piece; closing the iterator stops the generation."""
        from transformers import StoppingCriteriaList, TextIteratorStreamer

        inputs = self.tokenizer(self.prompt(messages), add_special_tokens=False, return_tensors="pt")
        streamer = TextIteratorStreamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True)
        stopped = threading.Event()
        failure: list[BaseException] = []

        def generate() -> None:
            try:
                with nullcontext() if tuned else self.model.disable_adapter():
                    self.model.generate(
                        **inputs.to(self.model.device),
                        **self._sampling(temperature),
                        streamer=streamer,
                        stopping_criteria=StoppingCriteriaList([lambda *_: stopped.is_set()]),
                        pad_token_id=self.tokenizer.pad_token_id,
                    )
            except BaseException as error:  # raised again in the reader's thread
                failure.append(error)
                streamer.end()

        thread = threading.Thread(target=generate, daemon=True)
        thread.start()
        try:
            yield from filter(None, streamer)
        finally:
            stopped.set()
            thread.join()
        if failure:
            raise failure[0]

    def answer(self, messages: list[Message], tuned: bool = True, temperature: float | None = None) -> str:
        """The whole answer."""
        return "".join(self.stream(messages, tuned, temperature)).strip()

    def _sampling(self, temperature: float | None) -> dict[str, Any]:
        chosen = self.settings.temperature if temperature is None else temperature
        if chosen == 0:
            return {"max_new_tokens": self.settings.max_new_tokens, "do_sample": False}
        return {
            "max_new_tokens": self.settings.max_new_tokens,
            "do_sample": True,
            "temperature": chosen,
            "min_p": self.settings.min_p,
        }


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
