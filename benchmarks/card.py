"""Measure a CUDA card without a download: Llama 3.2's shape, random weights, rows as long as FineTome's.

python benchmarks/card.py   executes notebooks 01 and 03 with the recipe llama-3.2-1b and writes
benchmarks/results/card.json: the tuner's trials, and what was planned beside what came. Times and memory do
not depend on the weights; the loss means nothing. Keep other programs away from the card and the processor.
"""

import argparse
import json
import random
import tempfile
from pathlib import Path
from typing import Any

from plan import train

from finelab import data, recipe
from finelab.embedded.model import embedded_model
from finelab.recipe import Recipe
from finelab.run import create_run
from finelab.train.ledger import table
from finelab.train.memory import SHAPES, ModelShape, known_name
from finelab.train.tuner import read
from finelab.train.workload import assumed_counts

RESULT = Path(__file__).parent / "results" / "card.json"


def main() -> None:
    """Make model and rows, train, print the tables, and keep them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", default="llama-3.2-1b", choices=recipe.preset_names())
    parser.add_argument("--steps", type=int, default=60, help="optimizer steps (60)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = train(create_run(Path(folder) / "run", prepared(Path(folder), options.recipe, options.steps)))
        found = {name: run.evidence()[name] for name in ("machine", "tuning", "plan", "training")}
    print(read(found["tuning"]))
    print(table(found["plan"]))
    details = {"recipe": options.recipe, "weights": "random", **found}
    result = {"benchmark": "card", "ratios": {}, "limit_share": None, "details": details}
    RESULT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result))


def prepared(folder: Path, name: str, steps: int) -> Recipe:
    """The recipe with a model and rows that lie in `folder`."""
    from transformers import AutoTokenizer

    preset = recipe.load_preset(name)
    per_step = preset.training.per_device_train_batch_size * preset.training.gradient_accumulation_steps
    shape = SHAPES[known_name(preset.model.model_name)]
    lengths, _ = assumed_counts(round(1.2 * steps * per_step) + 20, preset.model.max_seq_length)
    tokenizer = AutoTokenizer.from_pretrained(embedded_model())
    write_model(folder / "model", shape, tokenizer)
    write_rows(folder / "rows.jsonl", lengths, tokenizer)
    return recipe.override(
        preset,
        [
            f"model.model_name={(folder / 'model').as_posix()}",
            f'data.sources=["{(folder / "rows.jsonl").as_posix()}"]',
            "data.heldout_sources=[]",
            f"training.max_steps={steps}",
            "training.max_first_loss=20.0",
        ],
    )


def write_model(folder: Path, shape: ModelShape, tokenizer: Any) -> None:
    """A Llama of this shape with random weights, and the embedded model's tokenizer, whose ids all fit."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = LlamaConfig(**vars(shape), **ids, max_position_embeddings=131_072, rms_norm_eps=1e-5)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_rows(path: Path, lengths: list[int], tokenizer: Any) -> None:
    """For each length a conversation of about so many tokens, put together from embedded ones."""
    turns = [row.value["conversations"] for row in data.open_source("embedded").rows()]
    tokens = [sum(len(tokenizer(turn["value"])["input_ids"]) + 5 for turn in each) for each in turns]
    draw = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for length in lengths:
            joined: list[dict[str, Any]] = []
            while length > 0:
                pick = draw.randrange(len(turns))
                joined += [turn for turn in turns[pick] if turn["from"] in ("human", "gpt")]
                length -= tokens[pick]
            file.write(json.dumps({"conversations": joined}) + "\n")


if __name__ == "__main__":
    main()
