"""A stand-in for `vllm serve` in a test's container: its flags, its routes, its key, scripted answers.

It refuses any flag that vllm_flags.json does not have, puts --middleware in front as vLLM does, and listens
on STAND_IN_PORT in place of --port, so that tests do not meet on one port. As on vLLM, /invocations
and /tokenize answer without a key unless a middleware stops them.
"""

import argparse
import importlib
import json
import os
import sys
from functools import partial
from pathlib import Path

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

FLAGS = json.loads((Path(__file__).parent / "vllm_flags.json").read_text(encoding="utf-8"))["flags"]


def parse(arguments):
    """The command line by the same rules as vLLM's own parser, as far as vllm_flags.json knows them."""
    parser = argparse.ArgumentParser("vllm serve", allow_abbrev=False)
    parser.add_argument("model")
    kinds = {"flag": {"action": "store_true"}, "append": {"action": "append"}, "list": {"nargs": "+"}}
    kinds |= {"integer": {"type": int}, "text": {}}
    for name, flag in FLAGS.items():
        options = dict(kinds[flag["kind"]])
        if "choices" in flag:
            options["choices"] = flag["choices"]
        parser.add_argument(name, **options)
    return parser.parse_args(arguments)


def application(arguments, key=None):
    app = FastAPI()
    if key is not None:
        app.middleware("http")(partial(ask_for, key))
    loras = [item.partition("=") for item in arguments.lora_modules or []]
    models = [arguments.served_model_name[0], *(name for name, _, _ in loras)]

    @app.get("/health")
    def health():
        return None

    @app.get("/v1/models")
    def list_models():
        data = [{"id": name, "object": "model", "root": arguments.model} for name in models]
        return {"object": "list", "data": data}

    @app.post("/v1/chat/completions")
    @app.post("/invocations")
    async def chat(request: Request):
        asked = await request.json()
        message = {
            "role": "assistant",
            "content": f"{asked['model']} hears {asked['messages'][-1]['content']}",
        }
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return {
            "id": "1",
            "object": "chat.completion",
            "created": 0,
            "model": asked["model"],
            "choices": [choice],
        }

    @app.post("/v1/completions")
    async def complete(request: Request):
        """Every prompt token is the likeliest one, but for 99, which the model would not have said."""
        prompt = (await request.json())["prompt"]
        rows = [None, *({str(token): {"logprob": -0.1}, "7": {"logprob": -5.0}} for token in prompt[1:])]
        for row in rows[1:]:
            if "99" in row:
                row["99"], row["7"] = {"logprob": -3.0}, {"logprob": -0.2}
        return {"choices": [{"index": 0, "text": "", "prompt_logprobs": rows}]}

    @app.post("/tokenize")
    @app.post("/sleep")
    @app.post("/wake_up")
    def anybody():
        return {}

    for path in arguments.middleware or []:
        module, _, name = path.rpartition(".")
        app.add_middleware(getattr(importlib.import_module(module), name))
    return app


async def ask_for(key, request, call_next):
    """vLLM's own key, compared as the environment has it."""
    if request.url.path.startswith("/v1") and request.headers.get("Authorization") != f"Bearer {key}":
        return JSONResponse({"error": "Unauthorized"}, 401)
    return await call_next(request)


class Drained(uvicorn.Server):
    """Says when the last request has ended."""

    async def shutdown(self, sockets=None):
        await super().shutdown(sockets)
        print("vllm drained", flush=True)


if __name__ == "__main__":
    assert sys.argv[1] == "serve", sys.argv
    arguments = parse(sys.argv[2:])
    print("vllm " + " ".join(sys.argv[1:]), flush=True)
    if os.environ.get("STAND_IN_FAILS"):
        sys.exit("out of memory")
    config = uvicorn.Config(
        application(arguments, os.environ["VLLM_API_KEY"]),
        port=int(os.environ["STAND_IN_PORT"]),
        log_level="warning",
    )
    Drained(config).run()
