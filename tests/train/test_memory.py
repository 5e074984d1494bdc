"""The formulas against the real libraries and against what was measured elsewhere."""

import dataclasses
import json

import pytest

from finelab import LabError, machine, recipe
from finelab.adapter import count_parameters
from finelab.train import documents, slabs
from finelab.train.cpu_llama import Llama
from finelab.train.documents import Batch
from finelab.train.memory import (
    BLOCK,
    SHAPES,
    SLAB,
    ModelShape,
    Setting,
    counted,
    disk,
    flops_per_token,
    memory,
    merge_memory,
    nearest_fit,
    saved_by_hand,
    setting_of,
    shape_from_config,
    shape_memory,
    shape_of,
)
from tests.tiny import MODULES, base_model, with_adapter

SEED = Setting(16, tuple(MODULES), 2, 2048, 4, 2, "unsloth", "cuda")  # the seed's 1B run
GIB = 2**30


def change(**values):
    return dataclasses.replace(SEED, **values)


@pytest.mark.parametrize(
    "name, trainable, total",
    [
        ("SmolLM2-135M", 4_884_480, 134_515_008),
        ("Llama-3.2-1B", 11_272_192, 1_235_814_400),
        ("Llama-3.2-3B", 24_313_856, 3_212_749_824),
    ],
)
def test_the_known_models_have_the_parameters_that_were_counted(name, trainable, total):
    shape = SHAPES[name]
    assert shape.adapter(16, MODULES) == trainable
    assert shape.body + shape.others == total


@pytest.mark.parametrize("modules", [MODULES, ["q_proj", "v_proj"], ["down_proj"]])
@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": False}, {"head_dim": 24}])
def test_parameters_are_those_that_peft_makes(modules, changes):
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaForCausalLM

    config = base_model().config
    config.update(changes)
    with torch.device("meta"):
        model = get_peft_model(LlamaForCausalLM(config), LoraConfig(r=3, target_modules=modules))
    shape, counts = shape_from_config(config.to_dict()), count_parameters(model)
    assert shape.adapter(3, modules) == counts.trainable
    assert shape.body + shape.others == counts.total - counts.trainable


def test_the_embedded_model_is_the_shape_that_is_known(embedded_folder):
    assert shape_of(str(embedded_folder)) == shape_of("embedded") == SHAPES["SmolLM2-135M"]


@pytest.mark.parametrize(
    "name", ["unsloth/Llama-3.2-1B-Instruct", "meta-llama/Llama-3.2-1B", "x/llama-3.2-1b-instruct-bnb-4bit"]
)
def test_a_model_is_known_under_its_many_names(name):
    assert shape_of(name) == SHAPES["Llama-3.2-1B"]


def test_a_shape_that_is_not_known_is_told(tmp_path):
    with pytest.raises(LabError, match=r"model\.model_name: the shape of 'org/other' is not known.*Llama"):
        shape_of("org/other")
    (tmp_path / "config.json").write_text(json.dumps({"hidden_size": 8}), encoding="utf-8")
    with pytest.raises(LabError, match=r"config\.json: num_attention_heads is missing"):
        shape_of(str(tmp_path))
    with pytest.raises(LabError, match=r"no module 'c_attn' in a Llama's layer; there are: q_proj"):
        SHAPES["Llama-3.2-1B"].adapter(16, ["c_attn"])


def test_an_old_config_leaves_out_what_follows_from_the_rest():
    given = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": None}
    shape = shape_from_config(given | {"intermediate_size": 128, "vocab_size": 99})
    assert shape == ModelShape(64, 2, 4, 4, 16, 128, 99, False)


def test_flops_are_those_the_measured_speeds_were_turned_into():
    one, three = (flops_per_token(SHAPES[f"Llama-3.2-{size}"], SEED) for size in ("1B", "3B"))
    assert one == pytest.approx(6.96e9, rel=0.001)
    assert three == pytest.approx(18.63e9, rel=0.001)
    assert flops_per_token(SHAPES["Llama-3.2-1B"], change(use_gradient_checkpointing=False)) < one


def test_what_the_seed_measured_lies_under_the_estimate_and_not_far():
    parts = memory(SHAPES["Llama-3.2-1B"], SEED)
    assert parts["weights"] + parts["adapter"] == pytest.approx(1.148 * GIB, rel=0.01)  # reserved when loaded
    assert 2.49 * GIB < counted(parts, "cuda") < 1.1 * 2.49 * GIB  # a newer Unsloth on a T4


@pytest.mark.parametrize(
    "changes, part, factor",
    [
        ({"r": 32}, "adapter", 2),
        ({"r": 32}, "gradients", 2),
        ({"optimizer_bytes": 8}, "optimizer", 4),
        ({"batch_size": 4}, "activations", 2),
        ({"length": 1024}, "activations", 0.5),
        ({"batch_size": 1, "length": 1024}, "logits", 0.5),
    ],
)
def test_a_part_grows_with_what_it_is_made_of(changes, part, factor):
    shape = SHAPES["Llama-3.2-1B"]
    assert memory(shape, change(**changes))[part] == pytest.approx(factor * memory(shape, SEED)[part])


def test_fewer_bits_and_more_checkpointing_take_less():
    shape = SHAPES["Llama-3.2-3B"]
    weights = [memory(shape, change(weight_bits=bits))["weights"] for bits in (4, 16, 32)]
    kept = [
        memory(shape, change(use_gradient_checkpointing=each))["activations"]
        for each in ("unsloth", True, False)
    ]
    assert weights == sorted(weights)
    assert kept == sorted(kept)


@pytest.mark.parametrize("bits", [16, 32])
def test_activations_on_a_cpu_are_what_autograd_saves(bits):
    """Counted on a small model; the formula may be off by what does not grow with the tokens."""
    import torch

    dtype = torch.bfloat16 if bits == 16 else torch.float32
    model, saved = with_adapter(base_model(dtype)), {}
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes(), tensor  # held, so that no address comes twice
        return tensor

    ids = torch.zeros((2, 512), dtype=torch.long)
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=bits == 16),
    ):
        model.base_model.model.model(input_ids=ids, attention_mask=torch.ones_like(ids))
    shape = shape_from_config(model.config.to_dict())
    setting = change(
        r=4, length=512, weight_bits=bits, use_gradient_checkpointing=False, device="cpu", batch_size=2
    )
    assert memory(shape, setting)["activations"] == pytest.approx(sum(n for n, _ in saved.values()), rel=0.2)


def test_the_disk_holds_what_the_embedded_run_left_there():
    sizes = disk(SHAPES["SmolLM2-135M"], change(weight_bits=16, optimizer_bytes=8, device="cpu"), 2)
    assert sizes["checkpoints"] == pytest.approx(3 * 62.5e6, rel=0.1)
    assert sizes["adapter"] == pytest.approx(23.1e6, rel=0.15)
    assert sizes["merged model"] == pytest.approx(272.6e6, rel=0.05)
    assert sizes["GGUF"] == pytest.approx(145e6, rel=0.05)
    assert sizes["push without token"] == sizes["merged model"] + 2 * sizes["adapter"]
    assert sizes["copy to compare"] == sizes["merged model"]


@pytest.mark.parametrize("name, measured", [("SmolLM2-135M", 0.26e9), ("Llama-3.2-1B", 0.28e9)])
def test_a_streamed_merge_takes_about_one_tensor(name, measured):
    assert merge_memory(SHAPES[name], MODULES) == pytest.approx(measured, rel=0.15)


@pytest.mark.parametrize(
    "capability, device, bits, optimizer_bytes, checkpointing",
    [((7, 5), "cuda", 4, 2, "unsloth"), (None, "cpu", 32, 8, False)],
)
def test_the_setting_is_what_the_machine_decides(capability, device, bits, optimizer_bytes, checkpointing):
    hardware = machine.Hardware(
        device=device,
        name="x",
        system="Linux",
        cores=2,
        memory_bytes=8 * GIB,
        capability=capability or (0, 0),
    )
    chosen = recipe.load_preset("llama-3.2-1b")
    found = setting_of(chosen, machine.decide(hardware, chosen), 2, 700)
    assert (found.weight_bits, found.optimizer_bytes) == (bits, optimizer_bytes)
    assert (found.use_gradient_checkpointing, found.device) == (checkpointing, device)
    assert (found.r, found.batch_size, found.length) == (16, 2, 700)


def test_more_batch_shapes_take_memory_where_kernels_are_built_for_each():
    shape = SHAPES["SmolLM2-135M"]
    taken = [shape_memory(shape, change(device="cpu", weight_bits=16), new, 700) for new in (-1, 0, 1, 10)]
    assert taken == [0, 0, taken[2], 10 * taken[2]]
    assert 10e6 < taken[2] < 40e6
    assert shape_memory(shape, change(device="cpu", weight_bits=32), 10, 700) == 0
    assert shape_memory(shape, change(weight_bits=16), 10, 700) == 0


@pytest.mark.parametrize("lengths", [[BLOCK], [BLOCK, *[BLOCK // 8] * 8]], ids=["one", "unlike"])
@pytest.mark.parametrize("bits", [16, 32])
def test_what_the_step_by_hand_keeps_is_what_its_layers_give_for_their_backward(bits, lengths):
    import torch

    assert (BLOCK, SLAB) == (documents.BLOCK, slabs.SLAB)  # which a plan does not import: they take torch
    dtype, length = {16: torch.bfloat16, 32: torch.float32}[bits], sum(lengths)
    model = with_adapter(base_model(num_key_value_heads=1), r=1, target_modules=["q_proj"])
    llama = Llama(model.get_base_model(), dtype)
    ids = torch.arange(length)[None] % 50
    positions = torch.cat([torch.arange(each) for each in lengths])
    batch = Batch.of(ids, ids, None, positions[None])
    x, angles = llama.begin(batch)
    saved = llama.layer(llama.layers[0], x, angles, batch)
    tensors = [part for each in saved for part in (each if isinstance(each, list) else [each])]
    shape = shape_from_config(model.config.to_dict())
    setting = change(device="cpu", weight_bits=bits, length=length, r=1, target_modules=("q_proj",))
    attended = sum(each**2 for each in lengths) // length
    setting = dataclasses.replace(setting, attended=attended)
    size = sum(each.numel() * each.element_size() for each in tensors)
    assert size / length == pytest.approx(
        saved_by_hand(shape, setting), rel=0.03
    )  # a column of A, two scales


def test_checkpointing_goes_without_the_step_by_hand_and_takes_less():
    shape, start = SHAPES["Llama-3.2-1B"], change(device="cpu", weight_bits=16, fast_cpu_step=True)
    kept, recomputed = (
        memory(shape, dataclasses.replace(start, use_gradient_checkpointing=each)) for each in (False, True)
    )
    assert kept["weights"] > 1.7 * recomputed["weights"]  # all but the embedding twice
    assert kept["activations"] > 5 * recomputed["activations"]
    # what a step of 135M added to its process, for 2,800 tokens in rows of 350
    step = change(device="cpu", weight_bits=16, batch_size=8, length=350, fast_cpu_step=True)
    parts = memory(SHAPES["SmolLM2-135M"], dataclasses.replace(step, use_gradient_checkpointing=False))
    assert parts["activations"] + parts["logits"] == pytest.approx(2.16e9, rel=0.1)


def test_a_second_process_takes_weights_of_its_own_and_leaving_it_out_is_the_mildest_change():
    name, shape = "Llama-3.2-1B", SHAPES["Llama-3.2-1B"]
    one = change(device="cpu", weight_bits=16, fast_cpu_step=True, use_gradient_checkpointing=False)
    two = dataclasses.replace(one, processes=2)
    less, more = (sum(memory(shape, each).values()) for each in (one, two))
    assert 2.5e9 < more - less < 3.2e9  # 1.24 billion weights in 16 bit, an adapter, Python and torch
    assert nearest_fit(name, shape, two, 4, more).changes == ()
    assert nearest_fit(name, shape, two, 4, less).changes == ("FINELAB_MACHINE=processes=1",)
    checkpointing = dataclasses.replace(two, use_gradient_checkpointing=True)
    assert memory(shape, checkpointing) == memory(shape, dataclasses.replace(checkpointing, processes=1))


BIG = change(batch_size=8, weight_bits=16)


def micro(batch_size):
    return (
        f"training.per_device_train_batch_size={batch_size}",
        f"training.gradient_accumulation_steps={16 // batch_size}",
    )


def test_checkpointing_is_milder_than_a_smaller_batch():
    start = dataclasses.replace(BIG, use_gradient_checkpointing=False)
    fit = nearest_fit("Llama-3.2-3B", SHAPES["Llama-3.2-3B"], start, 2, 16 * GIB)
    assert fit.changes == ('lora.use_gradient_checkpointing="unsloth"',)


@pytest.mark.parametrize(
    "capacity_gib, changes",
    [
        (16, ()),
        (10, micro(4)),
        (9, micro(1)),
        (8.3, ("model.max_seq_length=1024", *micro(1))),
        (5, ("model.load_in_4bit=true", *micro(2))),
        (3.2, ("model Llama-3.2-1B", "model.load_in_4bit=true", *micro(2))),
        (0.2, None),
    ],
)
def test_the_nearest_setting_that_fits(capacity_gib, changes):
    """3B in 16 bit, 8 x 2 rows: first a smaller micro-batch, then shorter rows, 4 bit, a smaller model."""
    fit = nearest_fit("Llama-3.2-3B", SHAPES["Llama-3.2-3B"], BIG, 2, round(capacity_gib * GIB))
    assert (fit.changes if fit else None) == changes
    if fit:
        assert sum(memory(SHAPES[fit.model], fit.setting).values()) <= capacity_gib * GIB
