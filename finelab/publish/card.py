"""The model card: only what the run's evidence and recipe say."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from finelab.errors import LabError
from finelab.files import write_text
from finelab.run import Run

LLAMA_NOTICE = (
    "Llama 3.2 is licensed under the Llama 3.2 Community License, "
    "Copyright © Meta Platforms, Inc. All Rights Reserved.\n"
)


def write_card(run: Run, folder: Path, base_folder: Path | str) -> str:
    """Write README.md, and what the base model's licence asks for, into a folder to be pushed.

    LabError when a Llama's licence cannot be met: its name must begin with Llama, its agreement be at hand.
    """
    publish = run.recipe.publish
    if publish.license.startswith("llama"):
        _add_llama_licence(publish.repo_name, folder, Path(base_folder))
    text = _metadata(run) + _body(run)
    write_text(folder / "README.md", text)
    return text


def _metadata(run: Run) -> str:
    publish = run.recipe.publish
    lines = ["---", f"base_model: {publish.base_model}", f"license: {publish.license}"]
    if run.recipe.data.source.count("/") == 1 and not Path(run.recipe.data.source).exists():
        lines += ["datasets:", f"- {run.recipe.data.source}"]
    lines += ["library_name: transformers", "pipeline_tag: text-generation"]
    lines += ["tags:", "- lora", "- sft", "- unsloth", "- trl", "- finelab", "---", ""]
    return "\n".join(lines)


def _body(run: Run) -> str:
    evidence, recipe = run.evidence(), run.recipe
    data, training = evidence["data"], evidence["training"]
    built_with = "Built with Llama.\n\n" if recipe.publish.license.startswith("llama") else ""
    return f"""# {recipe.publish.repo_name}

{built_with}{recipe.publish.base_model}, fine-tuned with LoRA and merged to 16 bit by finelab. Every number
below was measured by the run.

## Did it work?

{_evaluation(evidence.get("evaluation", {}))}

## Data

{data["train_rows"]:,} training and {data["heldout_rows"]:,} held-out conversations of `{_name(data)}`
(sha256 `{data["sha256"][:16]}`); {data["tokens_total"]:,} tokens, {data["tokens_trained"]:,} of them trained
(answers and their end tokens).

## Training

{training["steps"]:,} optimizer steps in {training["seconds"] / 60:,.1f} minutes on
{evidence["machine"]["device"]}, {training["tokens_per_s"]:,.0f} tokens/s; loss of the first step
{training["first_loss"]:.3f}, of the last {training["last_loss"]:.3f}.

{_parameters(recipe)}

## Is this file the model that was trained?

{_identity(evidence.get("identity", []))}
"""


def _name(data: dict[str, Any]) -> str:
    return (
        Path(data["source"]).name if "\\" in data["source"] or data["source"][:1] == "/" else data["source"]
    )


def _evaluation(evaluation: dict[str, Any]) -> str:
    if not evaluation:
        return "Not evaluated."
    low, high = evaluation["interval"]
    return (
        f"On {evaluation['rows']} held-out conversations: **{evaluation['verdict']}**. Loss per answer token "
        f"{evaluation['heldout_nll_base']:.3f} (base) to {evaluation['heldout_nll_tuned']:.3f} (tuned), "
        f"difference {evaluation['difference']:+.3f}, 95 % interval {low:+.3f} to {high:+.3f}."
    )


def _parameters(recipe: Any) -> str:
    lora, training = recipe.lora, recipe.training
    values = {
        "r": lora.r,
        "lora_alpha": lora.lora_alpha,
        "lora_dropout": lora.lora_dropout,
        "use_rslora": lora.use_rslora,
        "target_modules": ", ".join(lora.target_modules),
        "learning_rate": training.learning_rate,
        "batch": f"{training.per_device_train_batch_size} x {training.gradient_accumulation_steps}",
        "num_train_epochs": training.num_train_epochs,
        "max_seq_length": recipe.model.max_seq_length,
        "seed": training.seed,
    }
    rows = "\n".join(f"| {name} | {value} |" for name, value in values.items())
    return f"| parameter | value |\n| --- | --- |\n{rows}"


def _identity(links: list[dict[str, Any]]) -> str:
    rows = "\n".join(
        f"| {link['from']} | {link['to']} | {link['mean_kl']:.1e} | {link['top1_agreement_share']:.1%} | "
        f"{'passed' if link['passed'] else 'failed'} |"
        for link in links
    )
    return f"| from | to | mean KL | top-1 | |\n| --- | --- | --- | --- | --- |\n{rows}"


def _add_llama_licence(repo_name: str, folder: Path, base: Path) -> None:
    if not repo_name.startswith("Llama"):
        raise LabError(
            f"publish.repo_name = {repo_name!r}: the Llama 3.2 licence asks for a name that begins "
            "with Llama."
        )
    agreements = sorted(base.glob("LICENSE*")) if base.is_dir() else []
    if not agreements and not list(folder.glob("LICENSE*")):
        raise LabError(
            f"{base} holds no LICENSE file; the Llama 3.2 licence asks for a copy of the agreement: "
            f"put it into {folder} as LICENSE.txt and run this again."
        )
    for agreement in agreements:
        shutil.copy2(agreement, folder / agreement.name)
    write_text(folder / "NOTICE", LLAMA_NOTICE)
