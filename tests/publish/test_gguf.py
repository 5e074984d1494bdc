"""GGUF files read back by transformers and, where `pip install xllamacpp` was run, by llama.cpp itself."""

import importlib.util
import json
import random
import urllib.request

import pytest
import torch
from gguf import GGUFReader
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.quantization_config import GgufConfig

from finelab import LabError
from finelab.publish.gguf import export_gguf
from tests import needs
from tests.publish.test_merge import LLAMA3_ROPE, edit_json
from tests.tiny import base_model, tokenizer

SIZES = {"vocab_size": 264, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 8}
TEXT = "<|im_start|>user\nthe theme, 123 things<|im_end|>\n<|im_start|>assistant\nthe"
# Mean nats from the safetensors; measured: 3e-8, 0, 2e-3, 0.19, and 0.47 with q and k in the wrong order.
MAX_KL = {"f16": 1e-6, "bf16": 1e-6, "q8_0": 1e-2, "q4_k_m": 0.3}
needs_libgguf = pytest.mark.skipif(
    importlib.util.find_spec("libgguf") is None, reason=needs.lacking("libgguf")
)
formats = pytest.mark.parametrize(
    "file_format", ["f16", "bf16", "q8_0", pytest.param("q4_k_m", marks=needs_libgguf)]
)


def write_model(folder, dtype=torch.bfloat16, **config):
    """A tiny Llama whose attention is sharp enough to tell positions apart."""
    model = base_model(dtype, **SIZES | config)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            parameter.data *= 5 if "q_proj" in name or "k_proj" in name else 3
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def log_probabilities(model, ids):
    with torch.no_grad():
        return model.float().eval()(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)


def read_back(path):
    return AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
    )


def kl(p, q):
    return float((p.exp() * (p - q)).sum(-1).mean())


class LlamaCpp:
    """llama.cpp's own server on a file, in this process."""

    def __init__(self, path):
        xllamacpp = pytest.importorskip("xllamacpp", reason=needs.lacking("xllamacpp"))
        parameters = xllamacpp.CommonParams()
        parameters.model.path = str(path)
        parameters.n_ctx = 512
        parameters.verbosity = -1
        self.server = xllamacpp.Server(parameters)

    def log_probabilities(self, ids, size, printable):
        """Of the token after `ids`; one that is certain to be printed is chosen, or nothing is told."""
        answer = self.server.handle_completions(
            {"prompt": ids, "n_predict": 1, "n_probs": size, "logit_bias": [[printable, 1000.0]]}
        )
        found = torch.full((size,), float("-inf"))
        for each in answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]:
            found[each["id"]] = each["logprob"]
        return found

    def tokenize(self, text):
        body = json.dumps({"content": text, "parse_special": True}).encode()
        request = urllib.request.Request(
            f"{self.server.listening_address}/tokenize", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.load(response)["tokens"]


@formats
@pytest.mark.parametrize("config", [{}, {"tie_word_embeddings": False}, {"attention_bias": True}], ids=str)
def test_transformers_reads_the_same_model(tmp_path, file_format, config):
    folder = write_model(tmp_path / "model", **config)
    export_gguf(folder, tmp_path / "model.gguf", file_format)
    ids = tokenizer()(TEXT)["input_ids"]
    expected = log_probabilities(AutoModelForCausalLM.from_pretrained(folder), ids)
    assert kl(expected, log_probabilities(read_back(tmp_path / "model.gguf"), ids)) < MAX_KL[file_format]


@formats
def test_llama_cpp_reads_the_same_model(tmp_path, file_format):
    folder = write_model(tmp_path / "model")
    export_gguf(folder, tmp_path / "model.gguf", file_format)
    made = tokenizer()
    ids = made(TEXT)["input_ids"]
    expected = log_probabilities(AutoModelForCausalLM.from_pretrained(folder), ids)[-1]
    served = LlamaCpp(tmp_path / "model.gguf")
    said = served.log_probabilities(ids, SIZES["vocab_size"], made.convert_tokens_to_ids("a"))
    assert kl(expected, said) < max(MAX_KL[file_format], 1e-3)  # its cache is float16: measured 2e-5
    assert served.tokenize(TEXT) == ids


def test_llama_3_rope_is_the_same_in_llama_cpp(tmp_path):
    rope = LLAMA3_ROPE | {"rope_theta": 500_000.0, "original_max_position_embeddings": 64}
    folder = write_model(tmp_path / "model", rope_parameters=rope)
    export_gguf(folder, tmp_path / "model.gguf")
    chance = random.Random(0)
    ids = [chance.randrange(256) for _ in range(300)]
    expected = log_probabilities(AutoModelForCausalLM.from_pretrained(folder), ids)[-1]
    served = LlamaCpp(tmp_path / "model.gguf")
    letter = tokenizer().convert_tokens_to_ids("a")
    assert kl(expected, served.log_probabilities(ids, SIZES["vocab_size"], letter)) < 1e-3
    edit_json(folder / "config.json", rope_parameters={"rope_type": "default", "rope_theta": 500_000.0})
    unscaled = log_probabilities(AutoModelForCausalLM.from_pretrained(folder), ids)[-1]
    assert kl(expected, unscaled) > 1e-2


def test_llama_3_rope_divides_the_frequencies_as_transformers_does(tmp_path):
    rope = LLAMA3_ROPE | {"rope_theta": 500_000.0}
    folder = write_model(tmp_path / "model", rope_parameters=rope)
    export_gguf(folder, tmp_path / "model.gguf")
    tensors = {tensor.name: tensor.data for tensor in GGUFReader(tmp_path / "model.gguf").tensors}
    plain = 500_000.0 ** -(torch.arange(0, 64, 2) / 64)
    scaled = AutoModelForCausalLM.from_pretrained(folder).model.rotary_emb.inv_freq
    torch.testing.assert_close(plain / torch.tensor(tensors["rope_freqs.weight"]), scaled)


def test_the_tokenizer_and_the_template_are_in_the_file(tmp_path):
    export_gguf(write_model(tmp_path / "model"), tmp_path / "model.gguf")
    read = AutoTokenizer.from_pretrained(tmp_path, gguf_file="model.gguf")
    assert read(TEXT, add_special_tokens=False)["input_ids"] == tokenizer()(TEXT)["input_ids"]
    assert read.chat_template == tokenizer().chat_template
    fields = GGUFReader(tmp_path / "model.gguf").fields
    assert fields["tokenizer.ggml.eos_token_id"].contents() == tokenizer().eos_token_id
    assert fields["tokenizer.ggml.add_bos_token"].contents() is False
    assert fields["tokenizer.ggml.pre"].contents() == "smollm"


def other_architecture(folder):
    edit_json(folder / "config.json", architectures=["MistralForCausalLM"])


def other_rope(folder):
    edit_json(folder / "config.json", rope_parameters={"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0})


def other_tokenizer(folder):
    state = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    state["pre_tokenizer"] = {
        "type": "Metaspace",
        "replacement": "_",
        "prepend_scheme": "always",
        "split": True,
    }
    (folder / "tokenizer.json").write_text(json.dumps(state), encoding="utf-8")


def other_tensor(folder):
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"model.extra.weight": torch.ones(2, 2)}, folder / "model.safetensors")


@pytest.mark.parametrize(
    "change, message",
    [
        (other_architecture, r"holds \['MistralForCausalLM'\]; the GGUF export knows LlamaForCausalLM"),
        (other_rope, "rope_type 'yarn'"),
        (other_tokenizer, r"knows byte-level BPE, not \('Metaspace',\)"),
        (other_tensor, r"model\.extra\.weight has no place in a GGUF Llama"),
        (lambda folder: (folder / "tokenizer.json").unlink(), r"tokenizer\.json is missing"),
    ],
)
def test_a_model_that_would_be_read_wrongly_is_refused(tmp_path, change, message):
    folder = write_model(tmp_path / "model")
    change(folder)
    with pytest.raises(LabError, match=message):
        export_gguf(folder, tmp_path / "model.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_an_unknown_format_names_those_there_are(tmp_path):
    with pytest.raises(LabError, match=r"no GGUF format 'q3'; there are: f16, bf16, q8_0, q4_k_m"):
        export_gguf(tmp_path, tmp_path / "model.gguf", "q3")


def test_without_its_encoder_q4_k_m_says_what_to_install(tmp_path, monkeypatch):
    folder = write_model(tmp_path / "model")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(LabError, match="pip install libgguf; or take q8_0"):
        export_gguf(folder, tmp_path / "model.gguf", "q4_k_m")


@needs_libgguf
@pytest.mark.slow
def test_the_embedded_model_is_much_the_same_in_the_smallest_format(tmp_path, embedded_folder, tokenizer):
    """The main job makes its q8_0."""
    export_gguf(embedded_folder, tmp_path / "model.gguf", "q4_k_m")
    ids = tokenizer(TEXT)["input_ids"]
    expected = log_probabilities(AutoModelForCausalLM.from_pretrained(embedded_folder), ids)
    read = log_probabilities(read_back(tmp_path / "model.gguf"), ids)
    assert kl(expected, read) < 0.2  # measured: 7e-2
