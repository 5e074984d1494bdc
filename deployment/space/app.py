"""Base and tuned side by side; FINELAB_URL and FINELAB_API_KEY say which finelab server to ask."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import gradio as gr
from openai import APIStatusError, OpenAI, OpenAIError

url = os.environ.get("FINELAB_URL", "http://127.0.0.1:8000").rstrip("/")
client = OpenAI(base_url=f"{url}/v1", api_key=os.environ.get("FINELAB_API_KEY") or "none", timeout=300)


def answer(model: str, prompt: str, temperature: float, seed: int) -> Iterator[str]:
    """The answer so far, each time some of it has come; an error is said in its place."""
    text = ""
    try:
        with client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": prompt}],
            temperature=temperature,
            seed=int(seed),
            stream=True,
        ) as stream:
            for chunk in stream:
                if chunk.choices and chunk.choices[0].delta.content:
                    text += chunk.choices[0].delta.content
                    yield text
    except OpenAIError as error:
        print(f"{url}: {error!r}", file=sys.stderr)  # the Space's log, which its owner alone sees
        # Not the error's own text: it may hold the address, which a visitor must not have.
        what = f"status {error.status_code}" if isinstance(error, APIStatusError) else type(error).__name__
        yield f"{text}\n\n[The server did not answer to the end: {what}]"


def both(prompt: str, temperature: float, seed: int) -> Iterator[tuple[str, str]]:
    """Base first, then tuned, with the same prompt, temperature and seed."""
    base = ""
    for base in answer("base", prompt, temperature, seed):
        yield base, ""
    for tuned in answer("tuned", prompt, temperature, seed):
        yield base, tuned


with gr.Blocks(title="finelab chat") as demo:
    gr.Markdown("# What did the fine-tune change?\nOne prompt, two models, the same seed and temperature.")
    prompt = gr.Textbox(label="Prompt", lines=2)
    with gr.Row():
        temperature = gr.Slider(0, 2, 0.7, step=0.05, label="temperature")
        seed = gr.Number(3407, precision=0, label="seed")
        ask = gr.Button("Ask both", variant="primary")
    with gr.Row():
        # Plain text: what a model says is never rendered as HTML.
        columns = [gr.Textbox(label=name, lines=12, interactive=False) for name in ("base", "tuned")]
    gr.on([ask.click, prompt.submit], both, [prompt, temperature, seed], columns)

if __name__ == "__main__":
    demo.launch()
