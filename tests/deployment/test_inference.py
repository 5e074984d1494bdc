"""modal_inference.py by the real `modal run` and `modal deploy`, with a stand-in for vLLM."""

import json
import re
import signal
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import openai
import pytest

from tests.deployment import stand_in
from tests.deployment.conftest import (
    DEPLOYMENT,
    KEY,
    adapter_files,
    model_files,
    publish,
    put_on_volume,
    write_run,
)
from tests.deployment.control_plane import ControlPlane

SCRIPT = DEPLOYMENT / "modal_inference.py"
COMMIT = "c" * 40
ANSWERS = [
    {
        "prompt_token_ids": [1, 2],
        "token_ids": [11, 12],
        "top_logprobs": [{"11": -0.1, "7": -5.0}, {"12": -0.1}],
    },
    {"prompt_token_ids": [3], "token_ids": [13, 14], "top_logprobs": [{"13": -0.1}, {"14": -0.1}]},
]
on_linux = pytest.mark.skipif(sys.platform == "win32", reason="a Modal container is a Linux process")


@pytest.fixture
def modal(tmp_path):
    plane = tmp_path / "modal"
    plane.mkdir()
    environment = {
        "FINELAB_MODELS_DIR": str(plane / "volumes" / "finelab-models"),
        "FINELAB_RUNS": str(tmp_path / "runs"),
    }
    with ControlPlane(plane, environment) as modal:
        modal.add_secret("finelab-api-key", VLLM_API_KEY=f"{KEY}\n")  # as a secret made from a file has it
        yield modal


@pytest.fixture
def models(modal):
    """A base model with two adapters on the volume."""
    folder = modal.volume("finelab-models")
    put_on_volume(folder, "org/base", model_files())
    put_on_volume(folder, "me/first", adapter_files("org/base", r=16))
    put_on_volume(folder, "me/second", adapter_files("org/Base", r=48, use_rslora=True))
    return folder


def wait_for_line(process, text):
    """What was printed up to the line that holds `text`."""
    lines = []
    for line in process.stdout:
        lines.append(line)
        if text in line:
            return "".join(lines)
    raise AssertionError("".join(lines))


@on_linux
@pytest.mark.slow
def test_modal_run_serves_base_and_adapters_and_stops_them(modal, models, tmp_path):
    adapter = {"repo_id": "me/first", "commit": COMMIT}
    run = write_run(tmp_path / "runs", "mine", {"repo_id": "me/merged", "commit": COMMIT, "adapter": adapter})
    (run / "served-check.json").write_text(json.dumps({"answers": ANSWERS}))
    process = modal.start("run", SCRIPT, FINELAB_SERVE="tuned=me/first,me/second")
    output = wait_for_line(process, "It stops in 60 minutes, or with Ctrl-C.")
    url = re.search(r"Server +(http://\S+)/v1", output)[1]
    for told in ("Models   base, tuned, second", f"curl {url}/v1/chat/completions", f'base_url="{url}/v1"'):
        assert told in output
    assert "set FINELAB_ALLOWED_ORIGINS" in output
    assert "vllm serve" in output and KEY not in output  # the stand-in prints its command line

    client = openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0)
    assert [model.id for model in client.models.list()] == ["base", "tuned", "second"]
    for name in ("base", "tuned", "second"):
        reply = client.chat.completions.create(model=name, messages=[{"role": "user", "content": "Hello"}])
        assert reply.choices[0].message.content == f"{name} hears Hello"
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{url}/v1", api_key="wrong", max_retries=0).models.list()
    with pytest.raises(openai.NotFoundError):
        client.post("../invocations", cast_to=object, body={})

    (link,) = json.loads((run / "evidence.json").read_text())["identity"]
    assert link["from"] == "merged" and link["to"] == "served" and link["passed"]
    assert link["top1_agreement_share"] == link["greedy_match_share"] == 1.0
    assert "merged -> served as tuned: mean KL 0.0e+00, same next token 100.0%" in output

    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert "vllm drained" in output and modal.exit_codes["Server"] == [0]


@on_linux
@pytest.mark.slow
def test_the_two_commands_of_the_readme(modal, hub, tmp_path):
    """With no argument: what the run has pushed comes from the Hub, its adapter is served beside its base."""
    publish(hub, "org/base", model_files())
    merged = {
        "repo_id": "me/merged",
        "commit": publish(hub, "me/merged", model_files(b"merged"), private=True),
    }
    lora = {"repo_id": "me/lora", "commit": publish(hub, "me/lora", adapter_files("org/base"), private=True)}
    run = write_run(tmp_path / "runs", "mine", merged | {"adapter": lora})
    modal.environment |= {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1"}
    modal.add_secret("huggingface-secret", HF_TOKEN=hub.token("me"))
    code, output = modal.command("run", DEPLOYMENT / "modal_download_model.py")
    assert code == 0, output
    code, output = modal.command("run", SCRIPT, "--minutes", "0")
    assert code == 0, output
    assert "Models   base, tuned " in output
    assert f"not compared, {run / 'served-check.json'} is not there" in output
    assert f"--lora-modules tuned={modal.volume('finelab-models') / 'me/lora'}" in output
    assert "vllm drained" in output and modal.exit_codes["Server"] == [0]


@on_linux
def test_modal_deploy_asks_for_what_the_readme_says_and_tells_how_to_call_it(modal, models):
    code, output = modal.command(
        "deploy",
        SCRIPT,
        FINELAB_SERVE="base=org/base, me/first@c0ffee",
        FINELAB_ALLOWED_ORIGINS="https://me-chat.hf.space",
    )
    assert code == 0, output
    assert modal.app_states == ["APP_STATE_DEPLOYED"]
    url = re.search(r"Server +(http://\S+)/v1", output)[1]
    assert f"curl {url}/v1/chat/completions" in output and "Page     https://me-chat.hf.space" in output
    assert "Models   base, first   (GET /v1/models names all)" in output and "Traceback" not in output

    asked = modal.functions["Server"]
    gpu, scaling = asked.resources.gpu_config, asked.autoscaler_settings
    assert (gpu.gpu_type, gpu.count) == ("L4", 1)
    assert [(each.volume_id, each.read_only) for each in asked.volume_mounts] == [("vo-finelab-models", True)]
    assert (scaling.min_containers, scaling.max_containers, scaling.scaledown_window) == (0, 1, 300)
    assert (scaling.target_concurrency_float, asked.max_concurrent_inputs) == (16, 32)
    assert asked.startup_timeout_secs == 600 and not asked.checkpointing_enabled
    assert asked.http_config.port == 8000 and asked.http_config.unauthenticated
    assert asked.http_config.exit_grace_period > 60  # longer than vLLM's own --shutdown-timeout
    assert modal.mounted("Server") == {
        f"/root/{each}" for each in ("modal_inference.py", "gate.py", "models_on_volume.py")
    }
    lines = "\n".join(modal.image_of("Server"))
    assert "python:3.12" in lines and "astral-sh/uv:0.13.9" in lines and "vllm==0.33.0" in lines
    assert all(not modal.functions[name].resources.gpu_config.count for name in ("check", "read_logprobs"))


@on_linux
@pytest.mark.slow
def test_a_vllm_that_ends_takes_its_container_along(modal, models):
    modal.environment["STAND_IN_FAILS"] = "1"
    assert modal.command("deploy", SCRIPT, FINELAB_SERVE="base=org/base", FINELAB_GPU="A10")[0] == 0
    assert modal.functions["Server"].resources.gpu_config.gpu_type == "A10"
    assert httpx.get(modal.server_url()).status_code == 503  # which starts a container
    modal.wait_for_containers()
    assert modal.exit_codes["Server"] == [1]


def no_secret(modal):
    del modal.secrets["finelab-api-key"]


def other_key(modal):
    modal.secrets["finelab-api-key"] = {"API_KEY": KEY}


def short_key(modal):
    modal.secrets["finelab-api-key"] = {"VLLM_API_KEY": "short"}


def no_volume(modal):
    modal.volumes.clear()


def dora(modal):
    put_on_volume(modal.volume("finelab-models"), "me/first", adapter_files("org/base", use_dora=True))
    put_on_volume(modal.volume("finelab-models"), "org/base", model_files())


def other_base(modal):
    put_on_volume(modal.volume("finelab-models"), "me/first", adapter_files("org/other"))
    put_on_volume(modal.volume("finelab-models"), "org/base", model_files())


@on_linux
@pytest.mark.slow
@pytest.mark.parametrize(
    ("break_it", "sentence"),
    [
        (no_secret, "Error: Secret 'finelab-api-key' not found in environment 'main'"),
        (other_key, "Error: Secret is missing key(s): VLLM_API_KEY"),
        (short_key, "the VLLM_API_KEY in the secret finelab-api-key is shorter than 16 characters."),
        (no_volume, "org/base is not on the volume finelab-models: run `modal run deployment/modal_download"),
        (dora, "vLLM cannot serve the adapter first (use_dora): push the merged model of that run, download"),
        (other_base, "the adapter first (me/first) belongs to org/other, not to org/base."),
    ],
    ids=lambda each: getattr(each, "__name__", ""),
)
def test_a_mistake_is_one_sentence_and_asks_for_no_gpu(modal, break_it, sentence):
    break_it(modal)
    code, output = modal.command("run", SCRIPT, FINELAB_SERVE="base=org/base,first=me/first")
    assert code == 1
    assert output.strip().splitlines()[-1].startswith(sentence), output
    assert "Traceback" not in output and KEY not in output and "Server" not in modal.exit_codes


# Without a control plane: which models go together, and what vLLM is told


@pytest.fixture
def inference(script, tmp_path, monkeypatch):
    """The script with a volume in `tmp_path` and the settings that the test gives."""
    monkeypatch.setenv("FINELAB_MODELS_DIR", str(tmp_path))
    monkeypatch.setenv("FINELAB_RUNS", str(tmp_path / "runs"))

    def load(**settings):
        for name, value in settings.items():
            monkeypatch.setenv(name, value)
        return script("modal_inference")

    return load


@pytest.fixture
def answering():
    """A server whose answers to GET /health are the given statuses, one after the other."""
    statuses = []

    class Health(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(statuses.pop(0))
            self.end_headers()

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Health) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", statuses
        server.shutdown()


def test_a_server_that_is_not_up_yet_is_waited_for(inference, answering, capsys):
    url, statuses = answering
    statuses += [503, 502, 200]
    script = inference()
    script.USUAL_START_S = 0.5
    script.wait_until_up(url)
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("Starting: 0 s, usually about ")
    assert second.endswith(" s, longer than the usual 0.5 s; the log above says what it is at.")


@pytest.mark.parametrize("status", [404, 401, 500])
def test_a_server_that_will_not_answer_is_not_waited_for(inference, answering, status):
    url, statuses = answering
    statuses += [503, status]
    with pytest.raises(SystemExit, match=f"^{url}/health answered {status} .*, expected 200 once vLLM"):
        inference().wait_until_up(url)


@pytest.fixture
def on_volume(inference, script):
    inference()
    return script("models_on_volume")


def parsed(command):
    """A command line as vLLM's parser reads it; a flag that vLLM 0.33.0 does not have ends the test."""
    assert command[:2] == ["vllm", "serve"]
    return stand_in.parse(command[2:])


def test_vllm_knows_every_flag(inference, tmp_path):
    put_on_volume(tmp_path, "org/base", model_files())
    put_on_volume(tmp_path, "me/first", adapter_files("org/base", r=8))
    put_on_volume(tmp_path, "me/second", adapter_files("org/base", r=16, rank_pattern={"q_proj": 33}))
    script = inference()
    script.SNAPSHOT = True
    told = parsed(script.vllm_command("me/first,b=me/second"))
    assert told.model == str(tmp_path / "org/base") and told.served_model_name == ["base"]
    assert told.enable_lora and (told.max_loras, told.max_lora_rank) == (2, 64)
    assert told.lora_modules == [f"first={tmp_path / 'me/first'}", f"b={tmp_path / 'me/second'}"]
    assert told.chat_template is None  # the base's
    (tmp_path / "me/second" / "chat_template.jinja").write_text("trained with")
    told = parsed(script.vllm_command("me/first,b=me/second"))
    assert told.chat_template == str(tmp_path / "me/second" / "chat_template.jinja")
    assert told.max_model_len == 2048  # the model's own limit, which is under ours
    assert told.dtype == "auto" and told.enforce_eager and told.enable_sleep_mode  # the files' own dtype
    assert told.middleware == ["gate.Gate"]


@pytest.mark.parametrize("serve", ["tuned=me/first", "base=ORG/base,tuned=Me/First"])
def test_a_model_is_found_in_whatever_case_it_is_named(inference, tmp_path, serve):
    put_on_volume(tmp_path, "org/Base", model_files())
    put_on_volume(tmp_path, "me/first", adapter_files("org/base"))
    told = parsed(inference().vllm_command(serve))
    assert told.model == str(tmp_path / "org/Base")
    assert told.lora_modules == [f"tuned={tmp_path / 'me/first'}"]


@pytest.mark.parametrize("named", ["T4", "t4", " T4 ", "t4:1"])
def test_a_t4_has_no_bfloat16(inference, tmp_path, named):
    put_on_volume(tmp_path, "org/base", model_files())
    told = parsed(inference(FINELAB_GPU=named).vllm_command("tuned=org/base"))
    assert told.dtype == "half" and told.served_model_name == ["tuned"]
    assert not told.enable_lora and told.lora_modules is None


def test_the_flags_are_those_of_the_vllm_in_the_image():
    pinned = re.search(r'"vllm==([\d.]+)"', SCRIPT.read_text(encoding="utf-8"))[1]
    flags = json.loads((DEPLOYMENT.parent / "tests/deployment/vllm_flags.json").read_text(encoding="utf-8"))
    assert flags["vllm"] == pinned


@pytest.mark.parametrize(
    ("pushed", "serve"),
    [
        (None, "base=unsloth/Llama-3.2-1B-Instruct"),
        ({"repo_id": "me/merged", "commit": COMMIT}, f"tuned=me/merged@{COMMIT}"),
        (
            {"repo_id": "me/merged", "commit": COMMIT, "adapter": {"repo_id": "me/lora", "commit": COMMIT}},
            f"tuned=me/lora@{COMMIT}",
        ),
    ],
    ids=["no run", "merged", "adapter"],
)
def test_what_is_served_when_nothing_is_named(inference, tmp_path, pushed, serve):
    if pushed:
        write_run(tmp_path / "runs", "mine", pushed)
    assert inference().SETTINGS["FINELAB_SERVE"] == serve


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights=pissa_niter_4"),
        ({"init_lora_weights": "olora"}, "init_lora_weights=olora"),
        ({"init_lora_weights": "corda"}, "init_lora_weights=corda"),
        ({"init_lora_weights": "loftq"}, "init_lora_weights=loftq"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"bias": "all"}, "bias=all"),
        ({"lora_bias": True}, "lora_bias"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"r": 600}, "r=600"),
        ({"r": 0}, "r=0"),
        ({"use_dora": True, "bias": "lora_only"}, "use_dora, bias=lora_only"),
    ],
    ids=lambda each: each if isinstance(each, str) else "",
)
def test_an_adapter_that_vllm_would_refuse_or_get_wrong_is_named(on_volume, config, named):
    with pytest.raises(on_volume.Refused) as caught:
        on_volume.lora_rank("mine", {"r": 16} | config)
    assert str(caught.value).startswith(
        f"vLLM cannot serve the adapter mine ({named}): push the merged model"
    )


@pytest.mark.parametrize(
    ("config", "rank"),
    [
        ({"r": 1}, 1),
        ({"r": 4}, 8),
        ({"r": 16, "init_lora_weights": True}, 16),
        ({"r": 16, "init_lora_weights": "gaussian", "modules_to_save": None}, 16),
        ({"r": 17, "use_rslora": True}, 32),
        ({"r": 8, "rank_pattern": {"q_proj": 300}}, 320),
        ({"r": 512}, 512),
    ],
)
def test_there_is_room_for_the_rank(on_volume, config, rank):
    assert on_volume.lora_rank("mine", config) == rank


@pytest.mark.parametrize(
    ("serve", "sentence"),
    [
        ("org/absent", "org/absent is not on the volume finelab-models: run `modal run deployment/modal_"),
        ("../../etc/passwd", "is not on the volume"),
        ("org/base@" + "d" * 40, f"has org/base at ccccccc: run .* --model org/base@{'d' * 40}` first"),
        ("base=org/base,more=org/more", "one server has one base model, and org/base and org/more are two"),
        ("org/more,me/first", r"the adapter first \(me/first\) belongs to org/base, not to org/more"),
        ("a=me/first,a=me/second", "two models are called 'a'"),
        ("me/lost", "org/lost is not on the volume"),
    ],
)
def test_models_that_do_not_go_together_are_refused(on_volume, tmp_path, serve, sentence):
    for name in ("org/base", "org/more"):
        put_on_volume(tmp_path, name, model_files())
    for name, base in {"me/first": "org/base", "me/second": "org/base", "me/lost": "org/lost"}.items():
        put_on_volume(tmp_path, name, adapter_files(base))
    with pytest.raises(on_volume.Refused, match=sentence):
        on_volume.choose(serve)


def rows(answers, **changed):
    """What a server says that agrees with `answers`, but for the tokens that are changed."""
    found = [[dict(row) for row in answer["top_logprobs"]] for answer in answers]
    for token, logprobs in changed.items():
        for answer, said in zip(answers, found, strict=True):
            for place, each in enumerate(answer["token_ids"]):
                if f"t{each}" == token:
                    said[place] = logprobs
    return found


def test_a_server_that_says_the_same_passes_the_last_link(script):
    link = script("served_identity").compare(ANSWERS, rows(ANSWERS))
    assert link["passed"] and link["mean_kl"] == link["max_abs_logit_diff"] == 0.0
    assert link["top1_agreement_share"] == link["greedy_match_share"] == 1.0


def test_a_server_of_another_model_does_not(script):
    link = script("served_identity").compare(ANSWERS, rows(ANSWERS, t11={"7": -0.2, "11": -2.0}))
    assert not link["passed"]
    assert link["top1_agreement_share"] == 0.75  # three of four tokens, each read behind the right ones
    assert link["greedy_match_share"] == 0.5  # what comes behind the first difference does not count
    assert link["max_abs_logit_diff"] == pytest.approx(1.9) and link["mean_kl"] > 0.3


def test_the_link_replaces_an_older_one_and_nothing_else(script, tmp_path):
    merge = {"from": "adapter", "to": "merged", "passed": True}
    evidence = {
        "training": {"steps": 3},
        "identity": [merge, {"from": "merged", "to": "served", "passed": False}],
    }
    (tmp_path / "evidence.json").write_text(json.dumps(evidence))
    script("served_identity").record(tmp_path, {"from": "merged", "to": "served", "passed": True})
    kept = json.loads((tmp_path / "evidence.json").read_text())
    assert kept == {
        "training": {"steps": 3},
        "identity": [merge, {"from": "merged", "to": "served", "passed": True}],
    }
    assert [path.name for path in tmp_path.iterdir()] == ["evidence.json"]
