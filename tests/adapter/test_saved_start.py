"""PiSSA and OLoRA end as plain LoRA on the base as published, also when they were stopped on the way."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from finelab.publish.adapter_files import require_known_kind
from tests import tiny

ROOT = Path(__file__).parents[2]
SCRIPT = """
import json, signal, sys
from pathlib import Path
import unsloth
import torch
from peft import PeftModel
from transformers import LlamaForCausalLM
from unsloth import FastLanguageModel
from finelab import adapter
from finelab.files import sha256
from finelab.recipe import load_preset, override
from finelab.run import create_run
from finelab.train import Session
from tests.train.sittings import at_step, sit, trainer_of

folder, start = Path(sys.argv[1]), sys.argv[2]
recipe = override(load_preset("smollm2-135m"), [f"lora.init_lora_weights={start}"])
interrupt = [at_step(3, lambda: signal.raise_signal(signal.SIGINT))]

def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=torch.tensor([[5, 6, 7, 8]])).logits

def sitting(run, callbacks=(), random_state=1):
    model, _ = FastLanguageModel.from_pretrained(
        str(folder / "base"), max_seq_length=64, dtype=torch.float32, load_in_4bit=False)
    model = FastLanguageModel.get_peft_model(
        model, r=4, lora_alpha=8, use_gradient_checkpointing=False, random_state=random_state,
        init_lora_weights=start)
    adapter.keep_start(model, run)
    session = Session(run)
    trainer = trainer_of(session, callbacks, model=model)
    sit(session, trainer)
    return session, trainer

def finish(run, **options):
    session, trainer = sitting(run, **options)
    session.complete(trainer)
    trained = logits(trainer.model)
    base = LlamaForCausalLM.from_pretrained(folder / "base")
    before = logits(base)
    saved = logits(PeftModel.from_pretrained(base, run.adapter))
    return {
        "moved": float((trained - before).abs().max()),
        "saved": float((saved - trained).abs().max()),
        "logits": saved.tolist(),
        "sha256": sha256(run.adapter / "adapter_model.safetensors"),
    }

straight = finish(create_run(folder / "straight", recipe))
stopped = create_run(folder / "stopped", recipe)
sitting(stopped, interrupt)
resumed, loaded = finish(stopped), finish(stopped)
other = create_run(folder / "other", recipe)
sitting(other, interrupt)
elsewhere = finish(other, random_state=2)  # the start comes out otherwise there
print(json.dumps([straight, resumed, loaded, elsewhere]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("start", ["pissa_niter_16", "olora"])
def test_what_is_saved_is_plain_lora_on_the_published_base(tmp_path, start):
    tiny.base_model().save_pretrained(tmp_path / "base")
    tiny.tokenizer().save_pretrained(tmp_path / "base")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path), start],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    straight, resumed, loaded, elsewhere = json.loads(done.stdout.splitlines()[-1])
    for each in (straight, resumed, loaded, elsewhere):
        assert each["moved"] > 0.01
        assert each["saved"] < each["moved"] / 1000
    assert straight["sha256"] == resumed["sha256"] == loaded["sha256"]
    assert elsewhere["logits"][0][-1] == pytest.approx(straight["logits"][0][-1], abs=1e-4)
    config = require_known_kind(tmp_path / "stopped" / "adapter")
    assert (config["r"], config["lora_alpha"], config["init_lora_weights"]) == (8, 16, True)
