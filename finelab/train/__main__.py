"""Notebook 03 without the notebook, in one process or in several that share the rows of each step.

    python -m finelab.train NAME
    torchrun --nproc_per_node N -m finelab.train NAME
    accelerate launch --multi_gpu --num_processes N -m finelab.train --run NAME

(torchrun takes `--run` for a short form of its own `--run-path`, so the name may stand alone.) The calls are
those of notebooks/03_train.ipynb, which explains them, in the same order. Run again, it goes on from the last
checkpoint, also with another number of processes.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

from finelab import adapter, data, evaluate, show, train
from finelab.errors import LabError
from finelab.machine import Profile, has_cuda
from finelab.run import ACCEPT_VARIABLE, Run, named_run
from finelab.train import cpu_llama, distributed, logs
from finelab.train.batches import no_progress_bars
from finelab.train.distributed import Follower, World
from finelab.train.search import Tuned
from finelab.train.tuner import obeyed, untimed


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m finelab.train",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    named = parser.add_mutually_exclusive_group(required=True)
    named.add_argument("name", nargs="?", metavar="NAME", help="a run whose data stage is done")
    named.add_argument("--run", metavar="NAME", help="the same")
    parser.add_argument(
        "--accept-changes",
        action="store_true",
        help="go on although something that decides the weights changed since the checkpoint",
    )
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Train the run; 0 when it is trained, 2 when something has to be mended or the run goes on later."""
    args = build_parser().parse_args(arguments)
    rank = int(os.environ.get("RANK", 0))
    if args.accept_changes:
        os.environ[ACCEPT_VARIABLE] = "1"
    try:
        run = named_run(args.run or args.name)
        run.require(run.train_data, "01_data")
    except LabError as error:  # the same in every rank, and said once
        if rank == 0:
            print(f"finelab: {error}", file=sys.stderr)
        return 2
    folder = run.folder / logs.FOLDER
    if rank == 0:
        (folder / logs.FAILURE).unlink(missing_ok=True)
    try:
        with logs.logged(folder, rank):
            whole(run, distributed.join("cuda" if has_cuda() else "cpu"))
    except Exception as error:
        logs.report(error, folder, rank)
        return 2
    return 0


def whole(run: Run, ranks: World) -> None:
    """The training stage from the base model to the evidence."""
    import unsloth  # noqa: F401  # before transformers, trl and peft: it patches them

    if not ranks.first:
        run = Follower(run.folder, run.recipe)
    profile = run.profile()
    model, tokenizer = load(run, profile)
    print(f"processes: {distributed.describe()}\ngradients: {cpu_llama.install(model, profile)}")
    train_rows, heldout_rows = data.load_split(run, "train"), data.load_split(run, "heldout")
    tuned = setting(run, profile, model, tokenizer, train_rows)
    session = train.Session(run)
    validation_rows = data.load_split(run, "validation")
    trainer = trainer_of(run, profile, tuned, model, tokenizer, train_rows, validation_rows, session)
    if ranks.size == 1:
        print(train.plan_training(run, profile, trainer))
    base_losses = heldout_losses(model, heldout_rows, "base on held-out rows")
    if session.finished(trainer):
        session.restore(trainer)
    else:
        with session.sitting(trainer):
            trainer.train(resume_from_checkpoint=session.resume_from_checkpoint)
    session.complete(trainer)
    if ranks.size == 1:
        print(train.settle(run, profile, trainer))
    tuned_losses = heldout_losses(trainer.model, heldout_rows, "tuned on held-out rows")
    if ranks.first:
        keep(run, profile, trainer, tokenizer, heldout_rows, base_losses, tuned_losses)


def load(run: Run, profile: Profile) -> tuple[Any, Any]:
    """The base model with a fresh adapter, and the tokenizer."""
    from unsloth import FastLanguageModel

    from finelab.embedded.model import model_path

    recipe = run.recipe
    model, tokenizer = FastLanguageModel.from_pretrained(
        model_name=distributed.first(lambda: model_path(recipe.model.model_name, recipe.model.revision)),
        max_seq_length=recipe.model.max_seq_length,
        dtype=profile.torch_dtype(),
        load_in_4bit=profile.load_in_4bit,
    )
    model = FastLanguageModel.get_peft_model(
        model,
        r=recipe.lora.r,
        target_modules=list(recipe.lora.target_modules),
        lora_alpha=recipe.lora.lora_alpha,
        lora_dropout=recipe.lora.lora_dropout,
        bias=recipe.lora.bias,
        use_gradient_checkpointing=profile.use_gradient_checkpointing,
        random_state=recipe.lora.random_state,
        use_rslora=recipe.lora.use_rslora,
        use_dora=recipe.lora.use_dora,
        init_lora_weights=recipe.lora.init_lora_weights,
        loftq_config=adapter.loftq_config(recipe),
    )
    distributed.first(lambda: adapter.keep_start(model, run))
    return model, tokenizer


def setting(run: Run, profile: Profile, model: Any, tokenizer: Any, rows: Any) -> Tuned:
    """What the tuner chose. Several processes share that of an earlier sitting, or the recipe's own.

    They do not tune: each would measure the others' load, and choose for itself.
    """
    ranks = distributed.world()
    if ranks.size == 1:
        return train.tune(run, profile, model, tokenizer, rows)
    return distributed.setting_of_rank(obeyed(untimed(run, profile), model), ranks.size)


def trainer_of(
    run: Run,
    profile: Profile,
    tuned: Tuned,
    model: Any,
    tokenizer: Any,
    train_rows: Any,
    validation_rows: Any,
    session: train.Session,
) -> Any:
    """Notebook 03's trainer, with the rows shared among the ranks."""
    from transformers import PrinterCallback
    from trl import SFTConfig, SFTTrainer

    args = SFTConfig(**arguments(run, profile, tuned))
    with no_progress_bars():
        trainer = SFTTrainer(
            model=model,
            processing_class=tokenizer,
            train_dataset=train.training_rows(train_rows, profile, tuned.packing, args.max_length),
            eval_dataset=train.eval_rows(validation_rows, run.recipe.training.eval_rows),
            args=args,
            data_collator=train.collator(tokenizer, profile),
            callbacks=[*session.callbacks(), train.watch(run)],
        )
    trainer.remove_callback(PrinterCallback)
    distributed.share(trainer)
    return trainer


def arguments(run: Run, profile: Profile, tuned: Tuned) -> dict[str, Any]:
    """What notebook 03 gives to `SFTConfig`."""
    training = run.recipe.training
    early_stopping = training.early_stopping_patience > 0
    return dict(
        output_dir=str(run.checkpoints),
        max_length=run.recipe.model.max_seq_length,
        **tuned.arguments(profile),
        num_train_epochs=training.num_train_epochs,
        max_steps=training.max_steps,
        learning_rate=training.learning_rate,
        lr_scheduler_type=training.lr_scheduler_type,
        warmup_steps=training.warmup_steps,
        weight_decay=training.weight_decay,
        optim=training.optim,
        seed=training.seed,
        fp16=profile.fp16,
        dataloader_num_workers=profile.dataloader_num_workers,
        save_strategy="steps",
        save_steps=training.save_steps,
        save_total_limit=3 if early_stopping else 2,
        load_best_model_at_end=early_stopping,
        logging_steps=training.logging_steps,
        logging_nan_inf_filter=False,
        disable_tqdm=True,
        report_to=train.reporters(training.report_to),
        eval_strategy="steps" if training.eval_steps else "no",
        eval_steps=training.eval_steps or None,
        eval_on_start=training.eval_steps > 0,
        per_device_eval_batch_size=tuned.per_device_train_batch_size,
        prediction_loss_only=True,
        # each A and B has a gradient in each micro-batch: looking for others would cost a pass over the graph
        ddp_find_unused_parameters=False,
    )


def heldout_losses(model: Any, rows: Any, title: str) -> Any:
    """`evaluate.token_nll`, each rank its part of the rows; all ranks have the whole."""
    if distributed.sharded():  # a layer is put together by all ranks, so all must compute as many batches
        return evaluate.token_nll(model, rows, title)
    ranks = distributed.world()
    own = rows.select(range(ranks.rank, len(rows), ranks.size))
    return distributed.interleaved(distributed.gather(evaluate.token_nll(model, own, title)))


def keep(
    run: Run,
    profile: Profile,
    trainer: Any,
    tokenizer: Any,
    heldout_rows: Any,
    base_losses: Any,
    tuned_losses: Any,
) -> None:
    """The evidence of the held-out rows, and the two figures."""
    base_nll, tuned_nll = evaluate.row_totals(base_losses), evaluate.row_totals(tuned_losses)
    evaluate.keep_losses(run, tokenizer, heldout_rows, base_losses, tuned_losses)
    results = evaluate.by_kind(heldout_rows, base_nll, tuned_nll)
    run.record("evaluation", evaluate.evidence(results, profile.weights))
    for kind, result in results.items():
        print(f"held out by {kind}: {result}")
    curve = train.curve(trainer.state.log_history)
    first, last = train.first_and_last(curve.losses)
    resumes = run.evidence()["training"]["resumes"]
    show.save(
        show.loss_curve(*curve, resumes=resumes, title="training"),
        run.figure("03_loss"),
        f"{len(curve.steps)} steps; mean loss of the first five {first:.3f}, of the last five {last:.3f}",
    )
    before, after = [r.base for r in results.values()], [r.tuned for r in results.values()]
    names = [f"held out by {kind}" for kind in results]
    show.save(
        show.paired_bars(names, before, after, "nats per answer token", "loss on held-out rows"),
        run.figure("03_heldout"),
        "; ".join(f"{kind} {r.base:.3f} -> {r.tuned:.3f}" for kind, r in results.items()),
    )


if __name__ == "__main__":
    sys.exit(main())
