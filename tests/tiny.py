"""A tiny random Llama with an adapter that moved, made with the real libraries."""

import json
import subprocess
import sys

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def base_model(dtype=torch.float32, **config):
    torch.manual_seed(0)
    values = {
        "vocab_size": 128,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    }
    return LlamaForCausalLM(LlamaConfig(**values | config)).to(dtype).eval()


def with_adapter(model, use_rslora=False, moved=True, **config):
    values = {"r": 4, "lora_alpha": 8, "target_modules": MODULES, "use_rslora": use_rslora}
    model = get_peft_model(model, LoraConfig(**values | config))
    if moved:
        _move(model)
    return model.eval()


def _move(model):
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.6)
        elif parameter.requires_grad and "lora_A" not in name and "embedding_B" not in name:
            parameter.data += 0.1 * torch.randn_like(parameter)


def tokenizer():
    """A byte-level BPE with two merges, the special tokens of ChatML and its template."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: id_ for id_, token in enumerate([*letters, "th", "the"])}
    fast = Tokenizer(models.BPE(vocabulary, [("t", "h"), ("th", "e")]))
    fast.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    fast.decoder = decoders.ByteLevel()
    fast.add_special_tokens(
        [AddedToken("<|im_start|>", special=True), AddedToken("<|im_end|>", special=True)]
    )
    made = PreTrainedTokenizerFast(
        tokenizer_object=fast, bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|im_end|>"
    )
    made.chat_template = TEMPLATE
    return made


def write_run(folder, dtype=torch.float32, base=None, max_shard_size="5GB", moved=True, **adapter):
    """Base and adapter as files, the adapter with its tokenizer as a run leaves it; gives both folders."""
    model = base_model(dtype, **(base or {}))
    model.save_pretrained(folder / "base", max_shard_size=max_shard_size)
    with_adapter(model, moved=moved, **adapter).save_pretrained(folder / "adapter")
    tokenizer().save_pretrained(folder / "adapter")
    return folder / "base", folder / "adapter"


def through_unsloth(script, folder):
    """What a script of a process of its own prints as JSON behind "OUT"; a base is in its folder's `base`."""
    base_model(vocab_size=320).save_pretrained(folder / "base")
    tokenizer().save_pretrained(folder / "base")
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder)], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("OUT ")]
    return json.loads(line.removeprefix("OUT "))
