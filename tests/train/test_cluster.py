"""Plans for several GPUs, held against what others have published and against one GPU."""

import dataclasses
import json
import re

import pytest

from finelab import LabError, recipe
from finelab.train import cluster
from finelab.train.cards import cards
from finelab.train.cluster import Cluster, cluster_of, leave_one_out, plan_on_cluster, published
from finelab.train.memory import ALLOCATOR, SHAPES, Setting, memory
from finelab.train.plan import plan_on_card
from finelab.train.workload import assumed_counts

COUNTS = assumed_counts(2000, 2048)
MODELS = {
    "Llama-3.2-1B": "unsloth/Llama-3.2-1B-Instruct",
    "Llama-3.2-3B": "unsloth/Llama-3.2-3B-Instruct",
    "Llama-3.1-8B": "unsloth/Llama-3.1-8B-Instruct",
    "Llama-3.1-70B": "unsloth/Llama-3.1-70B-Instruct",
}


def chosen(model, *changes, four_bit=False):
    texts = [f"model.model_name={MODELS[model]}", f"model.load_in_4bit={str(four_bit).lower()}"]
    return recipe.override(
        recipe.load_preset("llama-3.2-3b"),
        [*texts, "training.gradient_accumulation_steps=32", *changes],
    )


def planned(model, gpus, sharded, *changes, card="a100-80gb", **options):
    return plan_on_cluster(
        chosen(model, *changes, **options), cluster_of(cards()[card], gpus, sharded), COUNTS
    )


# Against what others measured


def test_published_speeds_predict_each_other():
    """Within 7 % for those with a like model on the same card; one has only consumer cards to go by."""
    errors = {(row["gpus"], row["model"]): row["error"] for row in leave_one_out()}
    alone = errors.pop(("64 x a100-80gb", "Llama-3.1-8B, all weights"))
    assert len(errors) == 4
    assert max(map(abs, errors.values())) < 0.07
    assert 0.5 < alone < 1


def test_published_memory_is_predicted():
    """torchtune's README for its LoRA of 70B on 8 A100: 27.6 GiB allocated, without slack and context."""
    point = next(each for each in published() if each.lora)
    shape = SHAPES[point.model]
    setting = Setting(16, tuple(shape.projections), point.rows, point.length, 16, 8, True, "cuda")
    parts = cluster.cluster_memory(shape, setting, point.cluster)
    slack = (parts["weights"] + parts["adapter"]) * (1 - 1 / ALLOCATOR)
    assert (sum(parts.values()) - parts["context"] - slack) / 2**30 == pytest.approx(27.6, rel=0.05)


def test_the_flops_are_those_of_the_published_utilisation():
    """torchtitan's 51.7 % of an A100: six per weight and all of the attention, nothing computed twice."""
    point = next(each for each in published() if each.model == "Llama-3.1-70B" and not each.lora)
    shape = SHAPES[point.model]
    attention = 12 * shape.num_hidden_layers * shape.hidden_size * point.length
    theirs = (6 * (shape.body + shape.head) + attention) * point.tokens_per_s / 312e12
    assert theirs == pytest.approx(0.517, abs=0.01)
    assert point.flops_per_s / 312e12 == pytest.approx(theirs * 8 / 6, rel=0.1)


def test_every_number_names_its_source():
    tables = cluster._tables()
    named = [*tables["links"].values(), *tables["published"], tables["hosts"]]
    assert all(each["source"] for each in named)
    assert set(tables["links"]) <= set(cards())


# The plan


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("gpus", [2, 8, 64])
def test_sharding_saves_memory_and_copies_do_not(model, gpus):
    alone, copied, sharded = (
        planned(model, count, shard) for count, shard in ((1, False), (gpus, False), (gpus, True))
    )
    weights = alone.memory["weights"]
    assert copied.memory["weights"] == weights
    assert sharded.memory["weights"] == pytest.approx(weights / gpus, rel=0.01)
    if model == "Llama-3.1-70B":
        assert sharded.memory_needed_bytes < copied.memory_needed_bytes


def test_the_steps_are_those_of_one_gpu():
    plans = [planned("Llama-3.1-8B", gpus, True) for gpus in (1 + 1, 4, 16)]
    assert len({plan.steps for plan in plans}) == 1
    assert [plan.per_gpu_batch for plan in plans] == ["2 rows x 16", "2 rows x 8", "2 rows x 2"]
    computing = [plan.computing_s for plan in plans]
    assert computing[0] / computing[1] == pytest.approx(2, rel=0.01)


def test_a_slow_network_is_what_takes_the_time():
    inside, between = (planned("Llama-3.1-70B", gpus, True) for gpus in (8, 64))
    assert inside.seconds == inside.computing_s > inside.exchanging_s
    assert between.seconds == between.exchanging_s > between.computing_s
    assert between.usd > inside.usd


def test_copies_exchange_next_to_nothing():
    plan = planned("Llama-3.2-1B", 4, False, four_bit=True, card="t4")
    assert plan.exchanging_s < 0.02 * plan.computing_s


def test_packed_rows_are_fewer_on_several_gpus_too():
    packed = chosen("Llama-3.2-1B", "training.packing=true")
    alone = plan_on_card(packed, cards()["a100-80gb"], COUNTS)
    two = plan_on_cluster(packed, cluster_of(cards()["a100-80gb"], 2, False), COUNTS)
    assert two.steps == alone.predicted["steps"]


def test_several_cards_take_their_share_of_one_cards_time():
    small = chosen("Llama-3.2-1B", four_bit=True)
    alone = plan_on_card(small, cards()["t4"], COUNTS)
    four = planned("Llama-3.2-1B", 4, False, four_bit=True, card="t4")
    assert four.seconds == pytest.approx(alone.predicted["seconds"] / 4, rel=0.1)
    assert four.steps == alone.predicted["steps"]
    assert four.usd == pytest.approx(four.seconds * 4 / 3600 * cards()["t4"].usd_per_hour, abs=0.01)


def test_a_small_model_on_a_fast_card_is_a_least_time():
    plan = planned("Llama-3.2-1B", 2, False, card="h100")
    assert plan.at_best
    assert dict(plan.rows())["time"].startswith("at least ")
    assert not planned("Llama-3.1-8B", 2, False, card="h100").at_best


@pytest.mark.parametrize(
    ("gpus", "sharded", "four_bit", "card", "nearest"),
    [
        (8, False, False, "a100-80gb", "8 x A100 80 GB, sharded"),
        (8, False, False, "l4", "8 x L4, sharded with model.load_in_4bit=true"),
        (2, True, False, "a100-80gb", "2 x A100 80 GB, sharded with model.load_in_4bit=true"),
        (2, True, True, "l4", "4 x L4, sharded"),
    ],
)
def test_what_does_not_fit_says_by_how_much_and_what_does(gpus, sharded, four_bit, card, nearest):
    plan = planned("Llama-3.1-70B", gpus, sharded, card=card, four_bit=four_bit)
    over = plan.memory_needed_bytes - plan.memory_capacity_bytes
    assert plan.fits == f"NO, by {over / 1e9:.2f} GB a GPU; the nearest that does: {nearest}"


def test_the_nearest_that_fits_fits():
    plan = planned("Llama-3.1-70B", 4, False, card="l40s")
    found = re.search(r"the nearest that does: (\d+) x L40S, (sharded)?(.*)", plan.fits)
    again = planned("Llama-3.1-70B", int(found[1]), bool(found[2]), four_bit="4bit" in found[3], card="l40s")
    assert again.fits.startswith("yes, ")


def test_nothing_fits_on_cards_that_are_too_small():
    changes = ["model.max_seq_length=65536", "training.per_device_train_batch_size=32"]
    setting = planned("Llama-3.1-70B", 2, True, *changes, "lora.r=512", card="t4")
    assert "no number of them up to 64 does" in setting.fits


def test_unsharded_parts_are_those_of_one_gpu():
    setting = Setting(16, ("q_proj",), 2, 512, 16, 8, True, "cuda")
    copies = Cluster(cards()["h100"], 8, sharded=False)
    shape = SHAPES["Llama-3.1-8B"]
    assert cluster.cluster_memory(shape, setting, copies) == memory(shape, setting)


@pytest.mark.parametrize(
    ("gpus", "sharded", "card", "said"),
    [
        (0, False, "h100", "--gpus 0: expected 1 to 64"),
        (65, False, "h100", "--gpus 65: expected 1 to 64"),
        (1, True, "h100", "give --gpus 2 or more"),
        (2, False, "rtx-5000", "what connects several Quadro RTX 5000 is not known"),
    ],
)
def test_a_cluster_that_is_not_planned_for_is_refused(gpus, sharded, card, said):
    with pytest.raises(LabError, match=said):
        cluster_of(cards()[card], gpus, sharded)


def test_rows_that_cannot_be_shared_are_refused_with_what_can():
    with pytest.raises(LabError, match=r"--gpus 3: the 64 rows .*gradient_accumulation_steps=3\.") as refused:
        planned("Llama-3.2-1B", 3, False)
    wanted = re.search(r"training\.gradient_accumulation_steps=\d+", str(refused.value))[0]
    assert planned("Llama-3.2-1B", 3, False, wanted).per_gpu_batch == "2 rows x 1"


def test_the_plan_is_plain_numbers():
    values = dataclasses.asdict(planned("Llama-3.1-8B", 8, True))
    assert json.loads(json.dumps(values)) == values
