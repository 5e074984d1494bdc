"""The model card: only what the run's evidence and recipe say, and what the base's licence asks for."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

from finelab.data.read import names_a_file
from finelab.embedded.model import EMBEDDED
from finelab.errors import LabError
from finelab.files import write_text
from finelab.publish.precision import stored_dtype
from finelab.recipe import HUB_ID, Recipe, require_publishable
from finelab.run import Run
from finelab.show.numbers import signed

LICENCES = Path(__file__).parent / "licences"  # agreements that a copy must go with
FIGURES = ("03_loss", "03_heldout", "04_identity")
BATCHES = (
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "train_sampling_strategy",
    "packing",
)
LLAMA_NOTICE = (
    "Llama 3.2 is licensed under the Llama 3.2 Community License, "
    "Copyright © Meta Platforms, Inc. All Rights Reserved.\n"
)


def write_card(run: Run, folder: Path, repo_id: str) -> str:
    """Write README.md, its figures and the licence's files into a folder to be pushed as `repo_id`.

    An adapter's folder gets an adapter's card. LabError when the evidence of the data or of the training is
    missing, when the base has no Hub id or no licence, or when a licence's terms are not met: a Llama's name
    must begin with Llama.
    """
    publish = run.recipe.publish
    require_publishable(run.recipe)
    _require_evidence(run)
    if publish.license.startswith("llama"):
        _add_licence(publish.license, repo_id.partition("/")[2], folder)
    is_adapter = (folder / "adapter_config.json").exists()
    own_loss = "merged_evaluation" in run.evidence()
    for name in FIGURES:
        of_the_adapter = name == "03_heldout" and own_loss
        if run.figure(name).exists() and (is_adapter or not of_the_adapter):
            shutil.copy2(run.figure(name), folder / f"{name}.png")
    text = _metadata(run, repo_id, is_adapter) + _body(run, folder, repo_id, is_adapter)
    write_text(folder / "README.md", text)
    return text


def _require_evidence(run: Run) -> None:
    evidence = run.evidence()
    for stage, key in (("data", "data"), ("train", "training")):
        if key not in evidence:
            raise LabError(
                f"{run.folder / 'evidence.json'} says nothing of the run's {key}, and the card would; "
                f"do that stage and the later ones again with --from {stage}."
            )


def _metadata(run: Run, repo_id: str, is_adapter: bool) -> str:
    from huggingface_hub import ModelCardData

    publish, evidence = run.recipe.publish, run.evidence()
    sources = evidence["data"]["source"].split(", ")
    on_hub = list(dict.fromkeys(_repo(name) for name in sources if _is_on_hub(name)))
    data = ModelCardData(
        base_model=publish.base_model,
        license=publish.license,
        datasets=on_hub or None,
        language=list(run.recipe.data.languages) or None,
        library_name="peft" if is_adapter else "transformers",
        pipeline_tag="text-generation",
        tags=["lora", "sft", "unsloth", "trl", "finelab"],
        model_name=repo_id.partition("/")[2],
        eval_results=_result(evidence["data"], on_hub, _evaluation(evidence, is_adapter)),
    )
    return f"---\n{data.to_yaml()}\n---\n"


def _result(data: dict[str, Any], on_hub: list[str], evaluation: dict[str, Any]) -> list[Any] | None:
    from huggingface_hub import EvalResult

    if not evaluation:
        return None
    return [
        EvalResult(
            task_type="text-generation",
            task_name="held-out conversations",
            dataset_type=on_hub[0] if on_hub else "private",
            dataset_name=_names(data),
            metric_type="loss",
            metric_name="nats per answer token",
            metric_value=evaluation["heldout_nll_tuned"],
        )
    ]


def _body(run: Run, folder: Path, repo_id: str, is_adapter: bool) -> str:
    evidence, recipe = run.evidence(), run.recipe
    sections = {
        "Did it work?": _verdict(evidence, recipe, is_adapter) + _figure(folder, "03_heldout"),
        "How to use it": _usage(repo_id, recipe.publish.base_model, is_adapter),
        "Data": _data(evidence["data"]),
        "Training": _training(evidence, recipe) + _figure(folder, "03_loss"),
        "Planned and measured": _plan(evidence.get("plan", {})),
        "Is this file the model that was trained?": _identity(evidence.get("identity", [])),
        "Limits": _limits(recipe.publish.base_model),
    }
    body = "\n\n".join(f"## {title}\n\n{text}" for title, text in sections.items() if text)
    built_with = "Built with Llama.\n\n" if recipe.publish.license.startswith("llama") else ""
    kind = "the LoRA adapter" if is_adapter else f"merged, in {stored_dtype(folder)}"
    return (
        f"\n# {repo_id.partition('/')[2]}\n\n{built_with}{recipe.publish.base_model}, fine-tuned with LoRA "
        f"by finelab: {kind}. Every number below was measured by the run.{_base_copy(recipe)}\n\n{body}\n"
    )


def _base_copy(recipe: Recipe) -> str:
    """That the embedded base is not quite the published one."""
    if recipe.model.model_name != EMBEDDED:
        return ""
    return (
        f" The base was a copy of {recipe.publish.base_model} that llama.cpp had rounded to 4 bit (Q4_1), "
        "turned back into bfloat16: the published weights differ, and the adapter was not tried on them."
    )


def _evaluation(evidence: dict[str, Any], is_adapter: bool) -> dict[str, Any]:
    """What was measured of the files that are pushed: a merged file's own loss where there is one."""
    measured: dict[str, Any] = evidence.get("evaluation", {})
    return measured if is_adapter else evidence.get("merged_evaluation", measured)


def _verdict(evidence: dict[str, Any], recipe: Recipe, is_adapter: bool) -> str:
    if not (evaluation := _evaluation(evidence, is_adapter)):
        return "Not evaluated."
    lines = [f"On {evaluation['rows']} held-out conversations: {_comparison(evaluation)}"]
    if families := evaluation.get("families"):
        lines.append(
            f"On {families['rows']} conversations of kinds it never trained on: {_comparison(families)} The "
            "interval speaks of more conversations of these kinds, not of other kinds."
        )
    lines.append(_how(evidence, is_adapter))
    rows = evidence["data"].get("validation_rows", 0)
    if evidence["training"].get("best_step") and rows:
        rows = min(rows, recipe.training.eval_rows or rows)
        lines.append(f"This checkpoint was chosen by its loss on {rows:,} other conversations.")
    return "\n\n".join(lines)


def _how(evidence: dict[str, Any], is_adapter: bool) -> str:
    """On which files the loss was measured, and in which precision."""
    if not is_adapter and "merged_evaluation" in evidence:
        weights = evidence["merged_evaluation"]["weights"]
        return f"Measured on this file, computed in {weights}, against its base as it is published."
    weights = evidence["evaluation"].get("weights")  # a run of 0.1.0 has none
    said = f"Measured with the adapter on its base{f' in {weights}' if weights else ''}"
    return f"{said}." if is_adapter else f"{said}, before the merge; the merged file's own loss was not."


def _comparison(values: dict[str, Any]) -> str:
    difference, low, high = signed(values["difference"], *values["interval"])
    return (
        f"**{values['verdict']}**. Loss per answer token {values['heldout_nll_base']:.3f} (base) to "
        f"{values['heldout_nll_tuned']:.3f} (tuned), difference {difference}, 95 % interval {low} to {high}."
    )


def _usage(repo_id: str, base_model: str, is_adapter: bool) -> str:
    if is_adapter:
        return f"""```python
from peft import AutoPeftModelForCausalLM

model = AutoPeftModelForCausalLM.from_pretrained("{repo_id}")  # on {base_model}
```"""
    return f"""```python
from transformers import pipeline

chat = pipeline("text-generation", "{repo_id}")
chat([{{"role": "user", "content": "Why is the sky blue?"}}], max_new_tokens=128)
```

```sh
vllm serve {repo_id}  # an OpenAI-compatible API
```"""


def _data(data: dict[str, Any]) -> str:
    text = (
        f"{data['train_rows']:,} training and {data['heldout_rows']:,} held-out conversations of "
        f"`{_names(data)}` (sha256 `{data['sha256'][:16]}`"
        f"{', revision `' + data['revision'][:12] + '`' if data.get('revision') else ''}); "
        f"{data['tokens_total']:,} tokens, {data['tokens_trained']:,} of them answers and their end tokens. "
        f"{data['leaked_rows']:,} of the held-out conversations nearly repeat one to train on."
    )
    counts = [f"- repaired, {kind}: {count:,} rows" for kind, count in data.get("repaired", {}).items()]
    counts += [f"- left out, {reason}: {count:,} rows" for reason, count in data.get("dropped", {}).items()]
    return "\n".join([text, "", *counts]).rstrip()


def _training(evidence: dict[str, Any], recipe: Recipe) -> str:
    training, lora, chosen = evidence["training"], recipe.lora, recipe.training
    # the batches that were measured as fastest, in place of the recipe's
    tuned = evidence.get("tuning", {}) if chosen.tune else {}
    batches = {name: tuned.get(name, getattr(chosen, name)) for name in BATCHES}
    length = "max_steps" if chosen.max_steps > 0 else "num_train_epochs"
    values = {
        "r": lora.r,
        "lora_alpha": lora.lora_alpha,
        "lora_dropout": lora.lora_dropout,
        "use_rslora": lora.use_rslora,
        "target_modules": ", ".join(lora.target_modules),
        "learning_rate": chosen.learning_rate,
        "lr_scheduler_type": chosen.lr_scheduler_type,
        **batches,
        length: getattr(chosen, length),
        "max_seq_length": recipe.model.max_seq_length,
        "seed": chosen.seed,
    }
    rows = "\n".join(f"| {name} | {value} |" for name, value in values.items())
    versions = ", ".join(f"{name} {version}" for name, version in training.get("versions", {}).items())
    machines = ", ".join(dict.fromkeys(training.get("machines", [])))  # a run of 0.1.0 has none
    return (
        f"{training['steps']:,} optimizer steps over {training['tokens_trained']:,} tokens of answers in "
        f"{training['seconds'] / 60:,.1f} minutes{f' on {machines}' if machines else ''}, "
        f"{training['tokens_per_s']:,.0f} tokens/s; training loss {training['first_loss']:.3f} at the start, "
        f"{training['last_loss']:.3f} at the end."
        f"{f' {versions}.' if versions else ''}"
        f"{_accepted(training.get('accepted_changes', []))}\n\n"
        f"| parameter | value |\n| --- | --- |\n{rows}"
    )


def _accepted(changes: list[str]) -> str:
    """What changed between the sittings of the training; with a path in it, only the field is told."""
    told = [change.partition(":")[0] if re.search(r"[\\/]", change) else change for change in changes]
    return f"\n\nChanged on the way, and accepted: {'; '.join(told)}." if told else ""


def _plan(plan: dict[str, Any]) -> str:
    rows = "\n".join(
        f"| {name} | {plan['predicted'][name]:,.4g} | {actual:,.4g} | {plan['error'][name]:+.1%} |"
        for name, actual in plan.get("actual", {}).items()
    )
    return f"| | planned | measured | error |\n| --- | --- | --- | --- |\n{rows}" if rows else ""


def _identity(links: list[dict[str, Any]]) -> str:
    rows = "\n".join(
        f"| {link['from']} | {link['to']} | {link['positions']} | {link['mean_kl']:.1e} | "
        f"{link['top1_agreement_share']:.1%} | "
        f"{'passed' if link['passed'] else 'failed'} |"
        for link in links
    )
    return f"| from | to | positions | mean KL | top-1 | |\n| --- | --- | --- | --- | --- | --- |\n{rows}"


def _limits(base_model: str) -> str:
    return (
        f"The evaluation is the loss on held-out conversations of the same data, no more: no benchmark, no "
        f"safety test. What {base_model} gets wrong or does not know, this model is likely to get wrong too."
    )


def _names(data: dict[str, Any]) -> str:
    """The data sets' names; of a user's own files only the last part, the folders are nobody's business."""
    names = data["source"].split(", ")
    return ", ".join(name if _is_on_hub(name) else re.split(r"[\\/]", name)[-1] for name in names)


def _is_on_hub(name: str) -> bool:
    return bool(HUB_ID.fullmatch(_repo(name))) and not names_a_file(name)


def _repo(source: str) -> str:
    """A data set's name without its configuration and split."""
    return source.partition(":")[0]


def _figure(folder: Path, name: str) -> str:
    return f"\n\n![{name}]({name}.png)" if (folder / f"{name}.png").exists() else ""


def _add_licence(license: str, repo_name: str, folder: Path) -> None:
    if not repo_name.startswith("Llama"):
        raise LabError(
            f"publish.repo_name = {repo_name!r}: the {license} licence asks for a name that begins "
            "with Llama."
        )
    agreement = LICENCES / license
    if not agreement.is_dir():
        raise LabError(
            f"publish.license = {license!r}: its agreement must go with the model and the lab has no copy; "
            f"put LICENSE.txt into {agreement} and run this again."
        )
    for path in agreement.iterdir():
        shutil.copy2(path, folder / path.name)
    write_text(folder / "NOTICE", LLAMA_NOTICE)
