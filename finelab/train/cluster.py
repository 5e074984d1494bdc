"""Time, memory per GPU and cost of a recipe on several GPUs: replicated (DDP) or sharded (FSDP).

Sources of the formulas: [zero] Rajbhandari et al., ZeRO: Memory Optimizations Toward Training Trillion
Parameter Models (2020, arXiv:1910.02054); [fsdp] Zhao et al., PyTorch FSDP: Experiences on Scaling Fully
Sharded Data Parallel (2023, arXiv:2304.11277); [ring] Patarasuk and Yuan, Bandwidth Optimal All-reduce
Algorithms for Clusters of Workstations (2009). Links between cards, and the published speeds that the
formulas are held against: `clusters.toml`.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finelab import machine
from finelab.errors import LabError
from finelab.recipe import Recipe
from finelab.train import cards
from finelab.train.memory import ALLOCATOR, SHAPES, ModelShape, Setting, memory, setting_of, shape_of
from finelab.train.plan import duration, gigabytes
from finelab.train.workload import share_of, workload_of

TABLES = Path(__file__).parent / "clusters.toml"
MOST = 64  # GPUs that a plan is made for
SPLIT = ("weights", "adapter", "gradients", "optimizer")  # what sharding divides by the number of GPUs
PREFETCHED = 2  # layers that are gathered at once: the one at work, and the next [fsdp]
GRADIENT_BYTES = 4


@dataclass(frozen=True)
class Cluster:
    """GPUs of one kind; `sharded` spreads weights, gradients and optimizer over them, else each has all."""

    card: cards.Card
    gpus: int
    sharded: bool

    @property
    def bytes_per_s(self) -> float:
        """What one GPU sends to another, in one direction: of its link, or of the network between hosts."""
        tables = _tables()
        link: float = tables["links"][self.card.key]["link_gb_per_s"] * 1e9
        if self.gpus <= tables["hosts"]["gpus"]:
            return link
        network: float = tables["hosts"]["network_gbit_per_s"] / 8 * 1e9
        return min(link, network)

    def __str__(self) -> str:
        kind = "sharded" if self.sharded else "each with the whole model"
        return f"{self.gpus} x {self.card.name}, {kind}"


@dataclass(frozen=True)
class Published:
    """A speed somebody published, in tokens per second and GPU, all of sharded training."""

    card: str
    gpus: int
    model: str
    lora: bool
    recomputed: float
    rows: int
    length: int
    tokens_per_s: float
    source: str

    @property
    def cluster(self) -> Cluster:
        """The GPUs it was measured on."""
        return Cluster(cards.cards()[self.card], self.gpus, sharded=True)

    @property
    def flops_per_token(self) -> float:
        """What a token of it takes."""
        return flops_with_attention(SHAPES[self.model], self.length, self.recomputed, trained=not self.lora)

    @property
    def flops_per_s(self) -> float:
        """What one GPU did per second."""
        return self.tokens_per_s * self.flops_per_token

    @property
    def exchanged(self) -> float:
        """Bytes that a GPU sends for each micro-batch."""
        shape = SHAPES[self.model]
        parameters = shape.body + shape.others
        return sharded_traffic(2 * parameters, 0 if self.lora else GRADIENT_BYTES * parameters, self.gpus)


@functools.cache
def _tables() -> dict[str, Any]:
    return tomllib.loads(TABLES.read_text(encoding="utf-8"))


def published() -> list[Published]:
    """The published speeds."""
    return [Published(**values) for values in _tables()["published"]]


def cluster_of(card: cards.Card, gpus: int, sharded: bool) -> Cluster:
    """The cluster that the options name; LabError for a number or a card that is not planned for."""
    if not 1 <= gpus <= MOST:
        raise LabError(f"--gpus {gpus}: expected 1 to {MOST}.")
    if sharded and gpus == 1:
        raise LabError("--shard spreads the model over several cards: give --gpus 2 or more.")
    known = _tables()["links"]
    if card.key not in known:
        raise LabError(
            f"--gpus {gpus}: what connects several {card.name} is not known; it is for: {', '.join(known)}."
        )
    return Cluster(card, gpus, sharded)


def flops_with_attention(shape: ModelShape, length: int, recomputed: float, trained: bool = False) -> float:
    """Floating-point operations per token, attention included; the head is not recomputed.

    Each weight takes two forward, two for the gradient of its input, two for its own where it is `trained`
    (a frozen one beside LoRA has none), and two more in the share of the layers that is `recomputed`
    (Narayanan et al. 2021, arXiv:2104.04473, appendix). A token attends to half of `length` on average, which
    is not taken there, in two products per layer, forward once and backward twice.
    """
    passes = 2 + trained
    weights = 2 * (passes + recomputed) * shape.body + 2 * passes * shape.head
    queries = shape.num_attention_heads * shape.head_dim
    attention = 2 * length * queries * shape.num_hidden_layers * (3 + recomputed)
    return weights + attention


def sharded_traffic(weight_bytes: float, gradient_bytes: float, gpus: int) -> float:
    """Bytes that a GPU sends for a micro-batch: weights gathered twice, gradients scattered once [zero]."""
    return (2 * weight_bytes + gradient_bytes) * (gpus - 1) / gpus


def replicated_traffic(gradient_bytes: float, gpus: int) -> float:
    """Bytes that a GPU sends for an optimizer step: a ring all-reduce of the gradients [ring]."""
    return 2 * gradient_bytes * (gpus - 1) / gpus


def cluster_memory(shape: ModelShape, setting: Setting, cluster: Cluster) -> dict[str, int]:
    """Bytes by part on each GPU, as `memory`; activations are each GPU's own.

    Sharded, the parts of SPLIT are divided, and what is gathered at one time comes on top: the largest unit
    [fsdp, 3.2], which is the embedding with the head, or the layers that are under way.
    """
    parts = memory(shape, setting)
    if not cluster.sharded:
        return parts
    parts |= {name: math.ceil(parts[name] / cluster.gpus) for name in SPLIT}
    layer = shape.body / shape.num_hidden_layers * setting.weight_bits / 8
    return parts | {"gathered": round(max(2 * shape.others, PREFETCHED * layer))}


def gpu_rate(card: cards.Card, flops: float, known: Sequence[Published] | None = None) -> cards.CardRate:
    """The speed of a GPU for a model of `flops` per token.

    From the published run on such a card that is nearest in FLOPs, down to half of the smallest; below, and
    for other cards, from what `cards.card_rate` knows of one card alone.
    """
    here = [point for point in (published() if known is None else known) if point.card == card.key]
    if here and flops >= min(point.flops_per_token for point in here) / 2:
        nearest = min(here, key=lambda point: abs(point.flops_per_token - flops))
        basis = f"{nearest.model} on {nearest.gpus} such GPUs, as published ({nearest.source})"
        return cards.CardRate(nearest.flops_per_s, cards.PEAK_BAND, basis, at_best=False)
    return cards.card_rate(card, flops)


def leave_one_out() -> list[dict[str, Any]]:
    """Each published speed predicted from the others on its card: both rates per GPU, the error."""
    rows = []
    for point in published():
        others = [each for each in published() if each != point]
        rate = gpu_rate(point.cluster.card, point.flops_per_token, others)
        tokens = point.rows * point.length
        computing = tokens * point.flops_per_token / rate.flops_per_s
        predicted = tokens / max(computing, point.exchanged / point.cluster.bytes_per_s)
        rows.append(
            {
                "gpus": f"{point.gpus} x {point.card}",
                "model": f"{point.model}, {'LoRA' if point.lora else 'all weights'}",
                "published_tokens_per_s": round(point.tokens_per_s),
                "predicted_tokens_per_s": round(predicted),
                "error": round(point.tokens_per_s / predicted - 1, 3),
                "from": rate.basis,
            }
        )
    return rows


@dataclass(frozen=True)
class ClusterPlan:
    """What a recipe takes on a cluster; memory in bytes on each GPU.

    `seconds` has the exchange hidden behind the computing, as far as that goes; `seconds_band` ends where
    nothing of it is hidden.
    """

    where: str
    steps: int
    padded_tokens: int
    per_gpu_batch: str
    seconds: float
    seconds_band: list[float]
    computing_s: float
    exchanging_s: float
    tokens_per_s: float
    at_best: bool
    memory: dict[str, int]
    memory_needed_bytes: int
    memory_capacity_bytes: int
    fits: str
    usd: float | None
    basis: list[str]

    def rows(self) -> list[tuple[str, str]]:
        """The table: a label and a text for each line."""
        least = "at least " if self.at_best else ""
        low, high = self.seconds_band
        cost = "no list price known" if self.usd is None else f"{least}${self.usd:.2f}"
        return [
            ("on", self.where),
            ("steps", f"{self.steps:,}, each GPU {self.per_gpu_batch}"),
            ("padded tokens", f"{self.padded_tokens:,}, {self.tokens_per_s:,.0f} a second"),
            ("time", f"{least}{duration(self.seconds)} ({duration(low)} to {duration(high)})"),
            ("  computing", duration(self.computing_s)),
            ("  exchanging", f"{duration(self.exchanging_s)}, beside the computing as far as that goes"),
            ("cost", cost),
            (
                "memory",
                f"{gigabytes(self.memory_needed_bytes)} of {gigabytes(self.memory_capacity_bytes)} a GPU",
            ),
            *((f"  {part}", gigabytes(size)) for part, size in self.memory.items()),
            ("fits", self.fits),
            *(("" if i else "from", text) for i, text in enumerate(self.basis)),
        ]


def plan_on_cluster(
    recipe: Recipe, cluster: Cluster, counts: tuple[list[int], list[int]], basis: Sequence[str] = ()
) -> ClusterPlan:
    """Plan a recipe on a cluster; `counts` are lengths and trained tokens of the rows.

    The rows of an optimizer step stay those of the recipe and are shared by the GPUs; LabError when they
    cannot be shared alike.
    """
    shared, accumulation = recipe_of_gpu(recipe, cluster.gpus)
    shape = shape_of(recipe.model.model_name)
    work = workload_of(shared, counts, padding_free=False)
    setting = setting_of(shared, machine.decide(cluster.card.hardware, shared), *work.largest)
    rows = sum(batch.rows for batch in work.batches)
    recomputed = 1.0 if setting.use_gradient_checkpointing else 0.0
    flops = flops_with_attention(shape, round(work.padded_tokens / rows), recomputed)
    rate = gpu_rate(cluster.card, flops)
    computing = work.padded_tokens * flops / rate.flops_per_s / cluster.gpus
    micro_batches = len(work.batches) / cluster.gpus
    exchanging = _traffic(shape, setting, cluster, micro_batches, work.steps) / cluster.bytes_per_s
    seconds = max(computing, exchanging)
    parts = cluster_memory(shape, setting, cluster)
    price, band = cluster.card.usd_per_hour, rate.band_share
    return ClusterPlan(
        where=str(cluster),
        steps=work.steps,
        padded_tokens=work.padded_tokens,
        per_gpu_batch=f"{shared.training.per_device_train_batch_size} rows x {accumulation}",
        seconds=round(seconds, 1),
        seconds_band=[round(seconds * (1 - band), 1), round((computing + exchanging) * (1 + band), 1)],
        computing_s=round(computing, 1),
        exchanging_s=round(exchanging, 1),
        tokens_per_s=round(work.padded_tokens / seconds, 1),
        at_best=rate.at_best,
        memory=parts,
        memory_needed_bytes=sum(parts.values()),
        memory_capacity_bytes=cluster.card.hardware.gpu_memory_bytes,
        fits=_fits(shape, setting, cluster),
        usd=None if price is None else round(seconds / 3600 * price * cluster.gpus, 2),
        basis=[*basis, *_basis(cluster, rate)],
    )


def recipe_of_gpu(recipe: Recipe, gpus: int) -> tuple[Recipe, int]:
    """The recipe with a GPU's micro-batch and all GPUs' accumulation, and a GPU's accumulation."""
    training = recipe.training
    most = training.per_device_train_batch_size
    step = most * training.gradient_accumulation_steps
    shared = share_of(most, training.gradient_accumulation_steps, gpus)
    if shared is None:
        accumulation = math.lcm(most, gpus) // most
        raise LabError(
            f"--gpus {gpus}: the {step} rows of an optimizer step cannot be shared alike; give a number that "
            f"divides {step}, or --set training.gradient_accumulation_steps={accumulation}."
        )
    micro, accumulation = shared
    whole = dataclasses.replace(
        training, per_device_train_batch_size=micro, gradient_accumulation_steps=step // micro
    )
    return dataclasses.replace(recipe, training=whole), accumulation


def _traffic(
    shape: ModelShape, setting: Setting, cluster: Cluster, micro_batches: float, steps: int
) -> float:
    """Bytes that a GPU sends in the whole run."""
    gradients = GRADIENT_BYTES * shape.adapter(setting.r, setting.target_modules)
    if not cluster.sharded:
        return steps * replicated_traffic(gradients, cluster.gpus)
    weights = memory(shape, setting)["weights"] / ALLOCATOR
    return micro_batches * sharded_traffic(weights, gradients, cluster.gpus)


def _fits(shape: ModelShape, setting: Setting, cluster: Cluster) -> str:
    capacity = cluster.card.hardware.gpu_memory_bytes
    over = sum(cluster_memory(shape, setting, cluster).values()) - capacity
    if over <= 0:
        return f"yes, {gigabytes(-over)} to spare on each GPU"
    for tried, bits in _nearby(cluster, setting.weight_bits):
        changed = dataclasses.replace(setting, weight_bits=bits)
        if sum(cluster_memory(shape, changed, tried).values()) <= capacity:
            said = " with model.load_in_4bit=true" if bits != setting.weight_bits else ""
            return f"NO, by {gigabytes(over)} a GPU; the nearest that does: {tried}{said}"
    return f"NO, by {gigabytes(over)} a GPU; and no number of them up to {MOST} does; take a larger card"


def _nearby(cluster: Cluster, weight_bits: int) -> Iterator[tuple[Cluster, int]]:
    """Clusters from the mildest change to the strongest: sharded, then 4 bit, then twice as many GPUs."""
    counts = [cluster.gpus * 2**n for n in range(int(math.log2(MOST / cluster.gpus)) + 1)]
    for gpus, bits in itertools.product(counts, dict.fromkeys((weight_bits, 4))):
        for sharded in dict.fromkeys((cluster.sharded, True)):
            yield dataclasses.replace(cluster, gpus=gpus, sharded=sharded and gpus > 1), bits


def _basis(cluster: Cluster, rate: cards.CardRate) -> list[str]:
    listed, hosts = cards.prices(), _tables()["hosts"]
    between = (
        f", {hosts['network_gbit_per_s']} Gb/s a GPU between hosts" if cluster.gpus > hosts["gpus"] else ""
    )
    lines = [
        f"time: {rate.basis}",
        f"exchange: {cluster.bytes_per_s / 1e9:g} GB/s in each direction{between}, at the nominal rate",
    ]
    if rate.at_best:
        lines.append("nothing like it was measured: the time is the least, not the likely one")
    if cluster.card.usd_per_hour:
        lines.append(f"cost: list prices of {listed.provider}, {listed.date}")
    return lines
