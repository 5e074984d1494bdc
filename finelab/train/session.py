"""One sitting of a training run: where it starts, what ends it, how it is sealed, resumed and completed."""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from finelab.adapter import save_on_published_base
from finelab.data import with_date
from finelab.errors import LabError
from finelab.files import staged, writing
from finelab.machine import versions
from finelab.resources import peak_memory_bytes, release_memory, require_free_space
from finelab.run import TRAINING_LOCK, Run, accepts_changes, alone
from finelab.train import distributed
from finelab.train.certificate import Chain, trained_before, watching
from finelab.train.checkpoint import (
    Checkpoint,
    by_step,
    clear_errors,
    differences,
    fingerprint,
    inspect,
    newest_whole,
    rotate,
    seal,
)
from finelab.train.curve import first_and_last
from finelab.train.look import mean_over_tokens
from finelab.train.stop import Longest, Stop

GO_ON = "run this notebook again, or the same lab.py command, to go on"
ENVIRONMENT = ("versions.", "machine.")  # may differ when a finished run is only loaded


class Session:
    """Finds the newest whole checkpoint of a run and says whether anything is left to train.

    After `finished`, `resume_from_checkpoint` is what `trainer.train` takes, inside `with sitting(trainer)`:
    a folder, or None. `accept_changes` goes on although something changed since the checkpoint; left out,
    the environment variable FINELAB_ACCEPT_CHANGES=1 says so. `session_hours` count from here. LabError when
    the run's folder cannot be written, its disk is nearly full, or a finished run's checkpoints are gone.
    """

    def __init__(self, run: Run, accept_changes: bool | None = None) -> None:
        self.run = run
        self.accept_changes = accepts_changes() if accept_changes is None else accept_changes
        require_free_space(run.folder, 1_000_000_000, "checkpoints")
        if run.adapter.exists() and not run.training_has_begun:
            raise LabError(
                f"run {run.name!r} has an adapter and no checkpoint: it was trained, and its checkpoints are "
                "gone. Notebook 04 and those after it need the adapter only; to train anew: "
                f"python lab.py run --run {run.name} --from train"
            )
        with writing(self._checkpoints):  # the trainer's making fails otherwise, in the system's words
            run.checkpoints.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=run.checkpoints):
                pass
        self._stop = Stop(run.recipe.training.session_hours)
        self._start: Checkpoint | None = None
        self._adapter: Path | None = None
        self._fingerprint: dict[str, Any] = {}
        self._chain: Chain | None = None
        self._kept: int | None = None
        self._began = time.monotonic()

    @property
    def _patience(self) -> int:
        return self.run.recipe.training.early_stopping_patience

    @property
    def resume_from_checkpoint(self) -> str | None:
        """The newest whole checkpoint's folder, if there is one."""
        return str(self._start.folder) if self._start else None

    @property
    def elapsed_s(self) -> float:
        """Seconds of training behind this point, earlier sittings included."""
        before = self._start.elapsed_s if self._start else 0.0
        return before + time.monotonic() - self._began

    def finished(self, trainer: Any) -> bool:
        """Whether the newest whole checkpoint is the run's end; says where training goes on.

        It looks each time, so that a cell run again after an interruption goes on too. transformers
        would train a finished run one step further. LabError when something that decides the weights
        changed since the checkpoint, when another process trains the run, or when the model was trained here
        and no checkpoint holds it.
        """
        with self._alone():  # to others, the checkpoint that a training is writing is a broken one
            # the first rank sets broken ones aside, before the others look
            self._start = distributed.first(lambda: newest_whole(self.run.checkpoints))
        steps, trained = total_steps(trainer), trained_before(trainer)
        if self._start is None:
            if trained:
                raise LabError(
                    f"run {self.run.name!r} has no checkpoint to go on from, but this kernel's model was "
                    "already trained for some steps, so it would not start afresh: restart the kernel and "
                    "run the notebook again."
                )
            print(f"Starting: {steps} steps.")
            return False
        done, state = self._start.step, json.loads(_state_file(self._start.folder).read_text("utf-8"))
        early = done < steps and stopped_early(state["stateful_callbacks"], self._patience)
        self._require_unchanged(self._start, trainer, loaded_only=done >= steps or early)
        self._adapter = self._best(trainer.args, state["best_global_step"]) or self._start.folder
        if done >= steps or early:
            why = ", stopped early" if early else ""
            print(
                f"Training is finished: {done} of {steps} steps{why}. The adapter is loaded, not trained on."
            )
            return True
        distributed.first(lambda: distributed.lend_random_states(self.run.checkpoints / f"checkpoint-{done}"))
        print(f"Going on from checkpoint-{done}: {steps - done} of {steps} steps are left.")
        return False

    @contextmanager
    def sitting(self, trainer: Any) -> Iterator[None]:
        """Around `trainer.train`: signals save and stop, and what goes wrong with disk or memory is said.

        LabError when another process trains the run, or the disk has no room for the planned checkpoints.
        Everything that is laid over the trainer and the process is taken away at the end, also after an
        error.
        """
        chain = Chain(self._start, self.accept_changes)
        self._fingerprint = fingerprint(self.run, trainer)
        args = trainer.args
        with (
            self._alone(),
            clear_errors(self._checkpoints, args.per_device_train_batch_size),
            watching(trainer, chain),
            mean_over_tokens(trainer),
            self._stop.listening(),
        ):
            self._require_room()
            self._chain = chain
            # transformers would delete an old checkpoint, also the best one, before the new one is sealed
            self._kept, args.save_total_limit = args.save_total_limit, None
            try:
                yield
            finally:
                self._chain = None
                args.save_total_limit = self._kept

    def restore(self, trainer: Any) -> None:
        """Load the finished run's adapter (the best one, with early stopping) and its log."""
        from peft import load_peft_weights, set_peft_model_state_dict

        set_peft_model_state_dict(trainer.model, load_peft_weights(str(self._adapter), device="cpu"))
        trainer.state = trainer.state.load_from_json(
            str(_state_file(Path(self.resume_from_checkpoint or "")))
        )

    def callbacks(self) -> list[Any]:
        """The trainer's callbacks: one that seals, stops and certifies, and early stopping if asked for."""
        from transformers import EarlyStoppingCallback, TrainerCallback

        session, stop = self, self._stop
        patience = self._patience
        early = [EarlyStoppingCallback(early_stopping_patience=patience)] if patience else []

        def ask(state: Any, control: Any) -> None:
            # a signal meets each rank at another moment: all stop after the step in which all know of it
            if reason := distributed.agreed(stop.reason):
                stop.reason = reason
                stop.ask(state, control)

        class SessionCallback(TrainerCallback):  # type: ignore[misc]
            def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                for each in early:
                    _restore_patience(each, state)
                state.compute_steps(args, state.max_steps)  # transformers keeps the first sitting's intervals
                # a measurement at the start of a later sitting would count as one that is not better
                args.eval_on_start = args.eval_on_start and state.global_step == 0
                session.begin(kwargs["model"], kwargs["optimizer"])

            def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                _seed_sampler(kwargs["train_dataloader"], args.seed, int(state.epoch))

            def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                session.chain.add_learning_rate(kwargs["optimizer"])

            def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                stop.step_ended()
                ask(state, control)

            def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                stop.evaluated()
                ask(state, control)
                # the best one must be there to be loaded, and the last one to say that it stopped early
                control.should_save |= args.load_best_model_at_end

            def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                session.seal(state.global_step, kwargs["model"])
                best = state.best_global_step if args.load_best_model_at_end else None
                session.rotate(best)

        return [SessionCallback(), *early]

    @property
    def chain(self) -> Chain:
        """The digests of this sitting; LabError outside of one."""
        if self._chain is None:
            raise LabError(
                "training runs inside `with session.sitting(trainer):`, which lets it be stopped "
                "and resumed: put trainer.train there, as notebook 03_train does."
            )
        return self._chain

    def begin(self, model: Any, optimizer: Any) -> None:
        """The trainer is restored and about to train: is it what the checkpoint was?"""
        self.chain.check_model(model, optimizer)
        release_memory()  # the probe's and the base's evaluation
        self._began = time.monotonic()
        known = self._longest_before()
        self._stop.begin(known)
        if shortage := self._stop.shortage(self._planned_step_s()):
            print(shortage)
        earlier = self.run.evidence().get("training", {}) if self._start else {}
        machines = [*earlier.get("machines", []), self._machine()]
        accepted = earlier.get("accepted_changes", [])
        begun = {"resumes": self.chain.resumes, "machines": machines, "accepted_changes": accepted}
        self.run.record("training", begun | {"versions": versions(), "longest": asdict(known)})

    def seal(self, step: int, model: Any) -> None:
        """Make the checkpoint that the trainer wrote count, and say so if it is the sitting's last."""
        folder = self.run.checkpoints / f"checkpoint-{step}"
        certificate = self.chain.sealed(model)
        distributed.gather(None)  # each rank has written its random states
        if distributed.world().first:
            distributed.keep_random_states(folder)
            seal(folder, self.elapsed_s, self._fingerprint, certificate, self._peak_memory_bytes())
        self._stop.saved()
        self.run.record("training", {"longest": asdict(self._stop.longest)})
        if self._stop.obeyed:
            print(f"Stopped, {self._stop.reason}: step {step} is saved; {GO_ON}.")

    def rotate(self, best: int | None) -> None:
        """Delete the oldest checkpoints beyond the trainer's `save_total_limit`, never the best one."""
        if self._kept and distributed.world().first:
            rotate(self.run.checkpoints, self._kept, best)

    def complete(self, trainer: Any) -> None:
        """Save the adapter and record the run; LabError when training ended before its last step.

        With early stopping the adapter is that of the best step. LabError too when another process trains.
        """
        state, steps = trainer.state, total_steps(trainer)
        early = state.global_step < steps and stopped_early(state.stateful_callbacks, self._patience)
        if state.global_step < steps and not early:
            raise LabError(f"training stopped at step {state.global_step} of {steps}; {GO_ON}.")
        # Without the trainer's autocast around forward, tuned is measured as the base was before.
        trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
        weights = distributed.put_together(trainer)
        if distributed.world().first:
            with alone(self.run, TRAINING_LOCK):
                self._save_adapter(trainer, weights)
                self.run.record("training", self._summary(state, early))

    def _save_adapter(self, trainer: Any, weights: Any) -> None:
        with staged(self.run.adapter) as stage:
            save_on_published_base(trainer.model, stage, self.run, state_dict=weights)
            with_date(trainer.processing_class, self.run.recipe.data.date_string).save_pretrained(stage)

    def _summary(self, state: Any, early: bool) -> dict[str, Any]:
        """What the evidence keeps of a finished training, all sittings together."""
        final = newest_whole(self.run.checkpoints)
        certificate = final.certificate if final else {}
        seconds = final.elapsed_s if final else self.elapsed_s
        tokens, trained_tokens = int(state.num_input_tokens_seen), certificate.get("trained_tokens", 0)
        first, last = first_and_last([entry["loss"] for entry in state.log_history if "loss" in entry])
        return {
            "steps": state.global_step,
            "first_loss": first,
            "last_loss": last,
            "best_step": state.best_global_step,
            "best_validation_loss": state.best_metric,
            "stopped_early": early,
            "tokens": tokens,
            "tokens_trained": trained_tokens,
            "seconds": round(seconds, 2),
            "tokens_per_s": round(tokens / seconds, 2),
            "trained_tokens_per_s": round(trained_tokens / seconds, 2),
            "peak_memory_bytes": (final and final.peak_memory_bytes) or self._peak_memory_bytes(),
            "resumes": certificate.get("resumes", []),
            "certificate": certificate,
        }

    def _alone(self) -> AbstractContextManager[None]:
        """Hold the run's training lock, in the first rank for all."""
        return alone(self.run, TRAINING_LOCK) if distributed.world().first else nullcontext()

    def _require_room(self) -> None:
        """LabError when the disk has less free than the plan counts for checkpoints beyond those there."""
        planned = self.run.evidence().get("plan", {}).get("disk", {}).get("checkpoints", 0)
        there = sum(path.stat().st_size for path in self.run.checkpoints.glob("checkpoint-*/*"))
        require_free_space(self.run.folder, planned - there, "checkpoints")

    @property
    def _checkpoints(self) -> Path:
        """The checkpoints' folder as an error names it."""
        return Path(self.run.name, self.run.checkpoints.name)

    def _longest_before(self) -> Longest:
        """What earlier sittings on this machine took at most."""
        earlier = self.run.evidence().get("training", {}) if self._start else {}
        here = earlier.get("machines", [])[-1:] == [self._machine()]
        return Longest(**earlier.get("longest", {})) if here else Longest()

    def _planned_step_s(self) -> float:
        """The plan's mean step before the first sitting; 0 without a plan, and later."""
        planned = {} if self._start else self.run.evidence().get("plan", {}).get("predicted", {})
        return float(planned.get("seconds", 0.0) / planned.get("steps", 1))

    def _machine(self) -> str:
        """This machine, as far as the evidence tells it from another one."""
        machine = self.run.evidence().get("machine", {})
        count = distributed.world().size * machine.get("profile", {}).get("processes", 1)
        processes = f", {count} processes" if count > 1 else ""
        return f"{machine.get('device')}, {machine.get('cores')} cores{processes}"

    def _peak_memory_bytes(self) -> int:
        """The most memory so far, earlier sittings included."""
        return max(self._start.peak_memory_bytes if self._start else 0, peak_memory_bytes())

    def _require_unchanged(self, start: Checkpoint, trainer: Any, loaded_only: bool) -> None:
        """LabError when the run would go on with other data, another recipe or other versions."""
        prints = [start.fingerprint, fingerprint(self.run, trainer)]
        if start.processes != distributed.world().size:
            prints = [by_step(each) for each in prints]
        changes = differences(*prints)
        if loaded_only:
            changes = [change for change in changes if not change.startswith(ENVIRONMENT)]
        elif reason := distributed.change_of_size(start.processes, self.run.recipe):
            changes.append(reason)
        if not changes:
            return
        if not self.accept_changes:
            raise LabError(
                f"since checkpoint-{start.step} this changed: {'; '.join(changes)}. Change it back, "
                "or do the stage again with --from train, or go on with --accept-changes "
                "(in the notebook: train.Session(run, accept_changes=True))."
            )
        earlier = self.run.evidence().get("training", {}).get("accepted_changes", [])
        self.run.record("training", {"accepted_changes": list(dict.fromkeys([*earlier, *changes]))})
        print(f"Accepted since checkpoint-{start.step}: {'; '.join(changes)}.")

    def _best(self, args: Any, step: int | None) -> Path | None:
        """The best checkpoint so far, if the trainer loads it at the end; LabError when it is not whole."""
        if not args.load_best_model_at_end or not step:
            return None
        folder = self.run.checkpoints / f"checkpoint-{step}"
        fault = inspect(folder)
        if isinstance(fault, str):
            raise LabError(
                f"{folder.name}, the best one by validation loss, is not whole ({fault}): put it back, "
                "or do the stage again with --from train."
            )
        return folder


def stopped_early(stateful_callbacks: dict[str, Any], patience: int) -> bool:
    """Whether early stopping with this patience ended the run of these `stateful_callbacks`."""
    saved = stateful_callbacks.get("EarlyStoppingCallback")
    return bool(saved and patience and saved["attributes"]["early_stopping_patience_counter"] >= patience)


def total_steps(trainer: Any) -> int:
    """The optimizer steps of the whole run, as the trainer will count them."""
    if trainer.args.max_steps > 0:
        return int(trainer.args.max_steps)
    batches = len(trainer.get_train_dataloader())
    per_epoch, epochs = -(-batches // trainer.args.gradient_accumulation_steps), trainer.args.num_train_epochs
    return math.ceil(float(per_epoch * epochs))


def _state_file(folder: Path) -> Path:
    return folder / "trainer_state.json"


def _restore_patience(early_stopping: Any, state: Any) -> None:
    """transformers begins the count anew at each resume, unless told to replace the callback."""
    saved = state.stateful_callbacks.setdefault("EarlyStoppingCallback", early_stopping.state())
    counter = saved["attributes"]["early_stopping_patience_counter"]
    early_stopping.early_stopping_patience_counter = counter


def _seed_sampler(dataloader: Any, seed: int, epoch: int) -> None:
    """Tie the order of the rows to the epoch: drawn from torch's generator, a resume loses that of groups."""
    from torch import Generator
    from transformers.trainer_pt_utils import LengthGroupedSampler

    batches = dataloader.batch_sampler
    while hasattr(batches, "batch_sampler"):  # accelerate's share of a rank
        batches = batches.batch_sampler
    sampler = batches.sampler
    if isinstance(sampler, LengthGroupedSampler):
        sampler.generator = Generator().manual_seed(seed + epoch)
    elif isinstance(sampler, distributed.Order):
        sampler.epoch = epoch
