"""Train a run, or a whole sweep, on rented GPUs at Modal.

    modal run deployment/modal_train.py --run mine --recipe llama-3.2-1b --gpu l4 --spend 5
    modal run deployment/modal_train.py --run mine --recipe llama-3.2-3b --gpu a100-80gb --gpus 4 --hours 8
    modal run deployment/modal_train.py --sweep runs/first-sweep --gpu l4 --spend 20

Data, checkpoints and results lie on the volume `finelab-runs`, so a container that Modal takes back, or
whose time is over, is followed by one that goes on. The command has to stay connected: when it ends, its
containers end too. What was trained is on the volume, and the same command goes on, with a sweep as well.
Changes to the recipe: --set "lora.r=32;data.limit=5000". A file of yours: `modal volume put finelab-runs FILE
data/FILE`, then --set 'data.sources=["/runs/data/FILE"]'. Gated models: the secret `huggingface-secret`.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import modal

VOLUME = "finelab-runs"
RUNS = os.environ.get("FINELAB_RUNS_DIR", "/runs")  # inside a container; tests have another place
SECRET = "huggingface-secret"
HERE, ROOT = Path(__file__).parent, Path(__file__).parents[1]
MOST_HOURS, MOST_GPUS = 23.5, 8  # Modal ends a call after 24 hours; one container is one computer
RETRIES = modal.Retries(max_retries=8, initial_delay=1.0, backoff_coefficient=1.0)
CORES, MEMORY_MIB = 2.0, 8192  # beside each GPU; without a reservation it is an eighth of a core
ON_TOP = "CPU and memory come on top"  # cards.toml has no prices of theirs
NOTEBOOKS = ("*.ipynb", "kernel.py")  # and not what else may lie there: the Hub token
AGAIN = 100  # sittings that follow each other before somebody should have a look
SETTINGS = {
    "FINELAB_RUNS": RUNS,
    "FINELAB_CACHE": os.environ.get("FINELAB_CACHE_DIR", f"{RUNS}/.cache/finelab"),  # as with RUNS
    "HF_HOME": f"{RUNS}/.cache/huggingface",
    "FINELAB_PUSHES": "0",  # the token there may be one that reads
}


def image() -> modal.Image:
    """The lock for NVIDIA cards, and this checkout's library, notebooks and helper."""
    found = modal.Image.debian_slim("3.12")  # which has gcc: Triton compiles a launcher
    if not modal.is_local():
        return found
    lock = str(ROOT / "environment" / "cuda.txt")
    return (
        found.uv_pip_install(requirements=[lock], extra_options="--no-deps", uv_version="0.13.9")
        .add_local_dir(ROOT / "finelab", "/root/finelab", ignore=["**/__pycache__"])
        .add_local_dir(ROOT / "notebooks", "/root/notebooks", ignore=~modal.FilePatternMatcher(*NOTEBOOKS))
        .add_local_file(HERE / "train_on_volume.py", "/root/train_on_volume.py")
    )


app = modal.App("finelab-train")
volume = modal.Volume.from_name(VOLUME, create_if_missing=True)
options: dict[str, Any] = {
    "image": image(),
    "volumes": {RUNS: volume},
    "env": SETTINGS,
    "timeout": 24 * 3600,
}


@app.function(**options, retries=RETRIES)  # each counts what was spent before
def train(job: dict[str, Any]) -> dict[str, Any]:
    """One sitting of a run: see `train_on_volume.sitting`."""
    from train_on_volume import sitting

    volume.reload()  # what another container has written since this one began
    try:
        return sitting(job, modal.current_input_id(), volume.commit)
    finally:
        volume.commit()


@app.function(**options)
def try_one(trial: dict[str, Any], folder: str, retry: bool) -> dict[str, Any]:
    """One trial of a sweep: see `train_on_volume.run_one`."""
    from train_on_volume import run_one

    try:
        return run_one(trial, folder, retry)
    finally:
        volume.commit()


def with_gpu(function: Any, card: Any, gpus: int, hours: float) -> Any:
    """The function on such GPUs, ended by Modal after so many hours, with the Hub's token if there is one."""
    chosen = {"gpu": f"{card.key.upper()}:{gpus}", "timeout": round(hours * 3600)}
    chosen |= {"cpu": CORES * gpus, "memory": MEMORY_MIB * gpus}
    secret = modal.Secret.from_name(SECRET, required_keys=["HF_TOKEN"])
    try:
        secret.hydrate()
    except modal.exception.NotFoundError:
        return function.with_options(**chosen)
    return function.with_options(**chosen, secrets=[secret, modal.Secret.from_dict(SETTINGS)])


def rented(gpu: str, gpus: int) -> tuple[Any, float]:
    """The card, and what so many cost an hour; LabError for what Modal does not rent."""
    from finelab.errors import LabError
    from finelab.train.cards import card_called, cards

    card = card_called(gpu)
    if card.usd_per_hour is None:
        known = ", ".join(key for key, each in cards().items() if each.usd_per_hour)
        raise LabError(f"--gpu {gpu}: Modal does not rent it out; there are: {known}.")
    if not 1 <= gpus <= MOST_GPUS:
        raise LabError(f"--gpus {gpus}: expected 1 to {MOST_GPUS}, the most in one container.")
    return card, card.usd_per_hour * gpus


def require_enough(spend: float, usd_per_hour: float, what: str) -> None:
    """LabError when the limit buys less time than a model needs to learn anything."""
    from train_on_volume import LEAST_S

    from finelab.errors import LabError

    least = math.ceil(usd_per_hour * LEAST_S / 36) / 100  # in whole cents
    if spend < least:
        raise LabError(
            f"--spend {spend:g}: {what} would have {spend / usd_per_hour * 60:.1f} minutes; {LEAST_S // 60} "
            f"are the least in which a model learns anything: spend {least:.2f}."
        )


def forecast(chosen: Any, card: Any, gpus: int) -> float | None:
    """The hours that a recipe is planned to take; None, and why, where its rows are not known yet."""
    from finelab.commands.plan import row_counts
    from finelab.errors import LabError
    from finelab.train.cluster import cluster_of, plan_on_cluster
    from finelab.train.plan import plan_on_card

    try:
        counts, _ = row_counts(chosen, None)
    except LabError as unknown:
        print(f"No forecast: {unknown}")
        return None
    if gpus > 1:
        return plan_on_cluster(chosen, cluster_of(card, gpus, sharded=False), counts).seconds / 3600
    return plan_on_card(chosen, card, counts).predicted["seconds"] / 3600


def run_on_modal(
    run: str, recipe: str, changes: list[str], gpu: str, gpus: int, hours: float, spend: float
) -> None:
    """Sitting after sitting, until the run is trained or the limit is spent."""
    from train_on_volume import LEAST_S

    from finelab import recipe as recipes
    from finelab.errors import LabError
    from finelab.run import folder_of

    folder = folder_of(run)  # LabError for a path
    if not LEAST_S / 3600 <= hours <= MOST_HOURS:
        raise LabError(
            f"--hours {hours:g}: expected {LEAST_S / 3600:.2f} to {MOST_HOURS}; longer runs take several "
            "sittings."
        )
    card, usd_per_hour = rented(gpu, gpus)
    require_enough(spend, usd_per_hour, f"{gpus} x {card.name}")
    chosen = recipes.override(recipes.load_preset(recipe), changes)
    planned = forecast(chosen, card, gpus)
    price = f"${usd_per_hour:.2f} an hour (list price; `modal billing rates` prints yours)"
    if planned is not None:
        print(
            f"Forecast: {planned:.2f} h of training on {gpus} x {card.name}, ${planned * usd_per_hour:.2f}."
        )
        if planned * usd_per_hour > spend:
            raise LabError(
                f"--spend {spend:g}: the forecast is ${planned * usd_per_hour:.2f}; raise it, train on fewer "
                f"tokens, or take another card (`python lab.py plan --recipe {recipe}` compares them)."
            )
    print(f"At most ${spend:.2f} are spent on GPUs, at {price}. {ON_TOP}.")
    job = {"run": run, "recipe": recipe, "changes": changes, "gpus": gpus, "hours": hours}
    job |= {"usd_per_hour": usd_per_hour, "spend_usd": spend}
    remote = with_gpu(train, card, gpus, min(hours + 0.25, spend / usd_per_hour))
    for number in range(1, AGAIN):
        done = remote.remote(job)
        print(f"Sitting {number}: {done['state']}. {done['said']}")
        if done["state"] != "stopped":
            break
    after = f"{done['seconds'] / 3600:.2f} h, ${done['usd']:.2f}"
    print(f"Actual: {after}" + (f"; forecast: ${planned * usd_per_hour:.2f}" if planned is not None else ""))
    if done["state"] != "finished":
        raise SystemExit(f"Not finished: {done['said']}")
    folder.parent.mkdir(parents=True, exist_ok=True)  # where there is none modal would write a file
    print(f'Fetch it: modal volume get --force {VOLUME} {run} "{folder.parent}/"')
    print(f"Then `python lab.py run --run {run}` goes on.")


def sweep_on_modal(folder: Path, gpu: str, spend: float, retry: bool) -> None:
    """What is left of a sweep, a container for each trial; the results come back into its folder."""
    from finelab.improve import left_of, open_sweep, report, table

    trials, left = open_sweep(folder).trials(), left_of(folder, retry)
    if ended := len(trials) - len(left):
        print(f"{ended} of {len(trials)} trials have ended before.")
    if left:
        try_on_modal(left, folder, gpu, spend, retry)
    print(table(report(folder)).to_string())


def try_on_modal(trials: list[Any], folder: Path, gpu: str, spend: float, retry: bool) -> None:
    """The trials at the same time; what each leaves comes into its folder here."""
    from train_on_volume import as_values

    card, usd_per_hour = rented(gpu, 1)
    require_enough(spend, usd_per_hour * len(trials), f"{len(trials)} trials on one {card.name} each")
    hours = min(MOST_HOURS, spend / usd_per_hour / len(trials))
    limit = f"{hours:.2f} h and ${hours * usd_per_hour:.2f}"
    print(f"{len(trials)} trials on one {card.name} each, at most {limit} a trial, ${spend:.2f} in all.")
    print(f"That is for the GPUs; {ON_TOP}.")
    remote = with_gpu(try_one, card, 1, hours)
    values = [as_values(trial) for trial in trials]
    how = {"folder": folder.name, "retry": retry}
    for done in remote.map(values, kwargs=how, order_outputs=False, return_exceptions=True):
        if isinstance(done, Exception):  # its time was over, or its container died: the others go on
            print(f"A trial ended without a result: {type(done).__name__}: {done}")
            continue
        print(f"{done['name']}: {done['state']} {done['reason']}")
        keep(done["files"], folder / done["name"])


def keep(files: dict[str, str], folder: Path) -> None:
    """Put what a trial left into its folder here, in the place of what an earlier attempt left."""
    from train_on_volume import OUTCOME

    for name in OUTCOME:
        (folder / name).unlink(missing_ok=True)
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


@app.local_entrypoint()
def main(
    run: str = "",
    recipe: str = "llama-3.2-1b",
    set: str = "",
    gpu: str = "l4",
    gpus: int = 1,
    hours: float = 6.0,
    spend: float = 10.0,
    sweep: str = "",
    retry: bool = False,
) -> None:
    """Train a run or a sweep; spend is a limit in US dollars, hours the length of a sitting.

    With retry the trials of the sweep that failed are tried again.
    """
    from finelab.errors import LabError

    try:
        if bool(run) == bool(sweep):
            raise LabError(
                "give --run NAME for one run, or --sweep FOLDER for a sweep that 07_improve has made."
            )
        if sweep:
            sweep_on_modal(Path(sweep), gpu, spend, retry)
        else:
            changes = [text for text in set.split(";") if text.strip()]
            run_on_modal(run, recipe, changes, gpu, gpus, hours, spend)
    except LabError as error:
        raise SystemExit(str(error)) from None
