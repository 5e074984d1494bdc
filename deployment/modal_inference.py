"""Serve a base model and its adapters on one GPU at Modal, with the OpenAI API.

    modal run deployment/modal_inference.py        # for an hour, or until Ctrl-C
    modal deploy deployment/modal_inference.py     # until `modal app stop finelab`

The models come from the volume that modal_download_model.py fills, the key from the secret
`finelab-api-key` (VLLM_API_KEY). Settings are environment variables, read where the command is given:
    FINELAB_SERVE            NAME=OWNER/MODEL[@COMMIT], several with commas: one base model and any number of
                             adapters of it; default: what the newest run pushed, else Llama 3.2 1B
    FINELAB_GPU              L4 by default
    FINELAB_ALLOWED_ORIGINS  pages that may call it from a browser, with commas: https://me-chat.hf.space
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import modal

VOLUME = "finelab-models"
MODELS = os.environ.get("FINELAB_MODELS_DIR", "/models")  # inside a container; tests have another place
SECRET = "finelab-api-key"
HERE, NAME = Path(__file__).parent, Path(__file__).name
PORT = 8000

# What a request may cost. A longer context needs more GPU memory; more at once make each one slower.
MAX_MODEL_LEN = 4096
TARGET_CONCURRENCY, MAX_CONCURRENCY = 16, 32  # beyond the second Modal answers 429
MAX_CONTAINERS = 1  # never more than one GPU is billed, however many ask

# What a cold start may cost. Nothing is billed while no container runs.
SCALEDOWN_WINDOW_S = 300  # idle seconds before the GPU is given back, billed; less: more cold starts
MIN_CONTAINERS = 0  # 1: never a cold start, and the GPU is billed all day
ENFORCE_EAGER = True  # no torch.compile: starts sooner; False: more tokens/s once it is up
SNAPSHOT = False  # True: restore from a GPU snapshot (alpha at Modal, only deployed); opens /sleep to the key
STARTUP_TIMEOUT_S = 600
USUAL_START_S = 90  # only for the line that says how long to wait; the first start also builds the image
NOT_UP_YET = (502, 503, 504)  # what Modal's proxy answers while there is no container
DRAIN_S = 60  # for requests that run when the container is stopped


def what_to_serve() -> str:
    """FINELAB_SERVE, else what the newest run pushed: its adapter (beside its base) or its merged model."""
    if not modal.is_local() or os.environ.get("FINELAB_SERVE"):
        return os.environ.get("FINELAB_SERVE", "")
    from modal_download_model import DEFAULT, newest_run

    if (run := newest_run()) is None:
        return f"base={DEFAULT}"
    pushed = run[1]["publish"].get("adapter") or run[1]["publish"]
    return f"tuned={pushed['repo_id']}@{pushed['commit']}"


SETTINGS = {
    "FINELAB_SERVE": what_to_serve(),
    "FINELAB_GPU": os.environ.get("FINELAB_GPU", "L4").strip().upper(),
    "FINELAB_ALLOWED_ORIGINS": os.environ.get("FINELAB_ALLOWED_ORIGINS", ""),
}

app = modal.App("finelab")
volume = modal.Volume.from_name(VOLUME, create_if_missing=True).with_mount_options(read_only=True)
key = modal.Secret.from_name(SECRET, required_keys=["VLLM_API_KEY"])
plain = modal.Image.debian_slim("3.12")
image = (
    plain.uv_pip_install("vllm==0.33.0", uv_version="0.13.9")
    .env({"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"})
    .env({"VLLM_USE_FLASHINFER_SAMPLER": "0"})  # it would be compiled at the first start, with nvcc
    .add_local_file(HERE / "gate.py", "/root/gate.py")
    .add_local_file(HERE / "models_on_volume.py", "/root/models_on_volume.py")
)
plain = plain.add_local_file(HERE / "models_on_volume.py", "/root/models_on_volume.py")


def vllm_command(serve: str) -> list[str]:
    """`vllm serve` with everything it needs but the key, which is in the environment."""
    from models_on_volume import model_arguments

    command = ["vllm", "serve", *model_arguments(serve, MAX_MODEL_LEN), "--port", str(PORT)]
    command += ["--dtype", "half" if SETTINGS["FINELAB_GPU"].startswith("T4") else "auto"]  # T4: no bf16
    command += ["--max-num-seqs", str(MAX_CONCURRENCY), "--shutdown-timeout", str(DRAIN_S)]
    command += ["--middleware", "gate.Gate", "--enable-request-id-headers", "--enable-prompt-tokens-details"]
    command += ["--sse-keep-alive-interval", "15"]
    return command + ["--enforce-eager"] * ENFORCE_EAGER + ["--enable-sleep-mode"] * SNAPSHOT


@app.function(image=plain, volumes={MODELS: volume}, secrets=[key])
def check(serve: str) -> dict[str, Any]:
    """What the server will find, before a GPU is asked for: {"models": ...} or {"refused": why}."""
    from models_on_volume import Refused, choose

    if len(secret_key()) < 16:
        return {"refused": f"the VLLM_API_KEY in the secret {SECRET} is shorter than 16 characters."}
    try:
        vllm_command(serve)
        (name, base), adapters = choose(serve)
    except Refused as refused:
        return {"refused": str(refused)}
    return {"models": {name: base} | adapters}


@app.server(
    image=image,
    gpu=SETTINGS["FINELAB_GPU"],
    env=SETTINGS,
    secrets=[key],
    volumes={MODELS: volume},
    port=PORT,
    target_concurrency=TARGET_CONCURRENCY,
    max_concurrency=MAX_CONCURRENCY,
    min_containers=MIN_CONTAINERS,
    max_containers=MAX_CONTAINERS,
    scaledown_window=SCALEDOWN_WINDOW_S,
    startup_timeout=STARTUP_TIMEOUT_S,
    exit_grace_period=DRAIN_S + 15,
    unauthenticated=True,  # gate.py asks for the key; Modal's own headers would keep browsers out
    enable_memory_snapshot=SNAPSHOT,
    experimental_options={"enable_gpu_snapshot": True} if SNAPSHOT else None,
)
class Server:
    """One container: vLLM as a child process. Modal sends requests as soon as its port is open."""

    @modal.enter(snap=SNAPSHOT)
    def start(self) -> None:
        """Start vLLM; for a snapshot also wait for it and put its weights to sleep in the memory."""
        environment = os.environ | {"PYTHONPATH": str(HERE), "VLLM_API_KEY": secret_key()}
        if SNAPSHOT:
            environment["VLLM_SERVER_DEV_MODE"] = "1"  # of its routes gate.py lets two through
        self.process = subprocess.Popen(vllm_command(SETTINGS["FINELAB_SERVE"]), env=environment)
        self.stopping = False
        threading.Thread(target=self.watch, daemon=True).start()
        if SNAPSHOT:
            wait_until_up(f"http://127.0.0.1:{PORT}")
            post(f"http://127.0.0.1:{PORT}/sleep?level=1", {})

    @modal.enter(snap=False)
    def wake(self) -> None:
        """After a restore."""
        if SNAPSHOT:
            post(f"http://127.0.0.1:{PORT}/wake_up", {})

    def watch(self) -> None:
        """End the container when vLLM ends by itself, so that no GPU is billed for nothing."""
        code = self.process.wait()
        if not self.stopping:
            print(f"vLLM ended with code {code}; its last lines are above.", flush=True)
            os._exit(1)

    @modal.exit()
    def stop(self) -> None:
        """Let running requests end, for DRAIN_S at most."""
        self.stopping = True
        self.process.terminate()
        self.process.wait(DRAIN_S + 10)


@app.function(image=plain, secrets=[key], timeout=600)
def read_logprobs(url: str, model: str, answers: list[dict[str, Any]]) -> list[list[dict[str, float]]]:
    """For every token of every answer, the served model's 20 likeliest tokens {id: log probability}."""
    found = []
    for answer in answers:
        prompt = answer["prompt_token_ids"] + answer["token_ids"]
        body = {"model": model, "prompt": prompt, "max_tokens": 1, "temperature": 0, "prompt_logprobs": 20}
        rows = post(f"{url}/v1/completions", body)["choices"][0]["prompt_logprobs"]
        rows = rows[len(answer["prompt_token_ids"]) :]
        found.append([{token: each["logprob"] for token, each in row.items()} for row in rows])
    return found


def secret_key() -> str:
    """The key; made from a file, the secret ends with the end of a line, which vLLM would ask for too."""
    return os.environ["VLLM_API_KEY"].strip()


def post(url: str, body: dict[str, Any]) -> Any:
    """POST JSON with the key of the secret, which only a container has."""
    headers = {"Authorization": f"Bearer {secret_key()}", "Content-Type": "application/json"}
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=300) as response:
        return json.loads(response.read() or b"null")


def wait_until_up(url: str) -> None:
    """Ask GET /health until it answers 200, which the first request makes a container start for.

    SystemExit when it answers that it will not, or says nothing for STARTUP_TIMEOUT_S.
    """
    started = time.monotonic()
    while (waited_s := time.monotonic() - started) < STARTUP_TIMEOUT_S:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=60):
                return
        except OSError as error:  # no connection, too, is no container yet
            if isinstance(error, urllib.error.HTTPError) and error.code not in NOT_UP_YET:
                raise SystemExit(
                    f"{url}/health answered {error.code} {error.reason}, expected 200 once vLLM is up; "
                    "the log above says what runs there."
                ) from None
        print(f"Starting: {waited_s:.0f} s, {how_long(waited_s)}.", flush=True)
        time.sleep(min(1 + waited_s / 5, 10))
    raise SystemExit(f"the server did not answer within {STARTUP_TIMEOUT_S} s; its log above says why.")


def how_long(waited_s: float) -> str:
    """What somebody who waits may expect."""
    if waited_s < USUAL_START_S:
        return f"usually about {USUAL_START_S - waited_s:.0f} s more"
    return f"longer than the usual {USUAL_START_S} s; the log above says what it is at"


def check_identity(url: str, models: dict[str, dict[str, Any]]) -> None:
    """Hold what is served against what the newest run's merged model says, and record it in the run."""
    from modal_download_model import newest_run
    from served_identity import compare, record

    folder, evidence = newest_run() or (Path(), {})
    publish = evidence.get("publish", {})
    pushed = [(each["repo_id"], each["commit"]) for each in (publish, publish.get("adapter")) if each]
    names = [name for name, each in models.items() if (each["repo_id"], each["revision"]) in pushed]
    path = folder / "served-check.json"
    if not names or not path.exists():
        why = f"{path} is not there" if names else "no model here is what the newest run here pushed"
        print(f"Served against merged: not compared, {why}.")
        return
    expected = json.loads(path.read_text(encoding="utf-8"))["answers"]
    link = compare(expected, read_logprobs.remote(url, names[0], expected))
    record(folder, link)
    print(
        f"merged -> served as {names[0]}: mean KL {link['mean_kl']:.1e}, same next token "
        f"{link['top1_agreement_share']:.1%}, same answer {link['greedy_match_share']:.0%}, "
        f"{'passed' if link['passed'] else 'FAILED'}; kept in {folder / 'evidence.json'}."
    )


HOW_TO = """
Server   {url}/v1   (GET /health, GET /v1/models, POST /v1/chat/completions, POST /v1/completions)
Models   {models}   (GET /v1/models names all)
Manual   deployment/README.md; all fields: https://docs.vllm.ai/en/v0.33.0/serving/openai_compatible_server/
Page     {pages}

curl {url}/v1/chat/completions -H "Content-Type: application/json" -H "Authorization: Bearer $FINELAB_API_KEY" {body}

import os, openai
client = openai.OpenAI(base_url="{url}/v1", api_key=os.environ["FINELAB_API_KEY"])
reply = client.chat.completions.create(model="{first}", messages=[{{"role": "user", "content": "Hello"}}])
print(reply.choices[0].message.content)

FINELAB_API_KEY stands for the VLLM_API_KEY of the secret {secret}.
A server that sleeps gives 503 for a minute or two, then answers.
"""  # noqa: E501 - one line, so that it can be pasted into any shell


def how_to(url: str, names: list[str]) -> str:
    """How to call the server, to copy and paste."""
    pages = SETTINGS["FINELAB_ALLOWED_ORIGINS"].replace(",", ", ")
    pages = pages or "no page may call it from a browser yet: set FINELAB_ALLOWED_ORIGINS"
    message = {"model": names[-1], "messages": [{"role": "user", "content": "Hello"}]}
    body = f"-d '{json.dumps(message)}'"
    models = ", ".join(names)
    return HOW_TO.format(url=url, secret=SECRET, models=models, first=names[-1], pages=pages, body=body)


@app.local_entrypoint()
def main(minutes: int = 60) -> None:
    """Start the server, say how to call it, and stop it after so many minutes."""
    found = check.remote(SETTINGS["FINELAB_SERVE"])
    if "refused" in found:
        raise SystemExit(found["refused"])
    url = Server.get_url()
    wait_until_up(url)
    check_identity(url, found["models"])
    print(how_to(url, list(found["models"])))
    print(f"It stops in {minutes} minutes, or with Ctrl-C. To keep it: modal deploy deployment/{NAME}")
    time.sleep(60 * minutes)


def after_deploy() -> None:
    """`modal deploy` runs nothing of ours behind the deployment but this, as the interpreter ends."""
    with contextlib.suppress(modal.exception.ExecutionError):  # not deployed, and the reason was printed
        named = (item.strip().rpartition("=") for item in SETTINGS["FINELAB_SERVE"].split(","))
        names = [name or repo.partition("@")[0].partition("/")[2] for name, _, repo in named]
        print(how_to(Server.get_url(), names))


if modal.is_local() and "deploy" in sys.argv[:3]:
    atexit.register(after_deploy)
