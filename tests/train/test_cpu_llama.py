"""The step by hand gives autograd's loss and gradients on whatever a collator makes; else it is off."""

import dataclasses
import gc

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model

from finelab import machine, resources
from finelab.data import IGNORE
from finelab.train import cpu_llama
from finelab.train.documents import BEGINNING, Batch
from finelab.train.slabs import Slabs
from tests.tiny import MODULES, base_model, with_adapter

HARDWARE = machine.Hardware("cpu", "a processor", "Linux", 2, 8 << 30)
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


@pytest.fixture
def profile(preset):
    return machine.decide(HARDWARE, preset)


def model_of(base=None, **adapter):
    return with_adapter(base_model(**(base or {})), **adapter).train()


def padded(documents, labels):
    width = max(map(len, documents))
    ids = torch.tensor([[*each, *[2] * (width - len(each))] for each in documents])
    mask = torch.tensor([[1] * len(each) + [0] * (width - len(each)) for each in documents])
    targets = torch.tensor([[*each, *[IGNORE] * (width - len(each))] for each in labels])
    return {"input_ids": ids, "attention_mask": mask, "labels": targets}


def flat(documents, labels):
    return {
        "input_ids": torch.tensor([[id_ for each in documents for id_ in each]]),
        "labels": torch.tensor([[label for each in labels for label in (IGNORE, *each[1:])]]),
        "position_ids": torch.tensor([[i for each in documents for i in range(len(each))]]),
    }


def loss_and_gradients(model, batch, count):
    model.zero_grad(set_to_none=True)
    loss = model(**batch, num_items_in_batch=count).loss
    loss.backward()
    trained = [each for each in model.parameters() if each.requires_grad]
    return loss.detach(), [torch.zeros_like(each) if each.grad is None else each.grad for each in trained]


def assert_same(model, profile, documents, labels, how=""):
    """The step's loss and gradients on the padded and on the flat batch are autograd's on the padded one.

    `how` ends what `install` says; gives the loss.
    """
    count = max(1, sum(label != IGNORE for each in labels for label in each[1:]))
    loss, gradients = loss_and_gradients(model, padded(documents, labels), count)
    said = cpu_llama.install(model, profile)
    assert said.startswith("forward and backward by hand") and said.endswith(how)
    for batch in (padded(documents, labels), flat(documents, labels)):
        found, ours = loss_and_gradients(model, batch, count)
        torch.testing.assert_close(found, loss, rtol=1e-5, atol=1e-6)
        for one, other in zip(ours, gradients, strict=True):
            assert (one - other).norm() <= 1e-4 * other.norm() + 1e-6
    return loss


def documents_of(lengths, trained, seed=0):
    generator = torch.Generator().manual_seed(seed)
    documents = [torch.randint(3, 128, (length,), generator=generator).tolist() for length in lengths]
    draws = [torch.rand(length, generator=generator).tolist() for length in lengths]
    return documents, [
        [id_ if draw < trained else IGNORE for id_, draw in zip(ids, row, strict=True)]
        for ids, row in zip(documents, draws, strict=True)
    ]


@settings(max_examples=25)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=5),
    trained=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    seed=st.integers(0, 1000),
)
def test_loss_and_gradients_are_autograds_whatever_the_documents(lengths, trained, seed):
    from finelab import recipe

    profile = machine.decide(HARDWARE, recipe.load_preset("smollm2-135m"))
    assert_same(model_of(), profile, *documents_of(lengths, trained, seed))


@pytest.mark.parametrize(
    ("base", "adapter"),
    [
        ({}, {"target_modules": ["q_proj", "v_proj"]}),
        ({}, {"target_modules": ["gate_proj", "o_proj"]}),
        ({}, {"use_rslora": True, "r": 8}),
        ({}, {"rank_pattern": {"q_proj": 2, "up_proj": 6}}),
        ({"num_key_value_heads": 4}, {}),
        ({"num_key_value_heads": 1, "head_dim": 16}, {}),
        ({"tie_word_embeddings": False}, {}),
        ({"rope_parameters": LLAMA3}, {}),
    ],
)
def test_other_llamas_and_other_adapters(profile, base, adapter):
    assert_same(model_of(base, **adapter), profile, *documents_of([33, 7, 150, 301], 0.6))


@settings(max_examples=25)
@given(
    prompts=st.lists(st.integers(BEGINNING - 2, 150), min_size=1, max_size=3),
    uses=st.lists(st.integers(0, 2), min_size=2, max_size=6),
    trained=st.sampled_from([0.0, 0.3, 1.0]),
    in_the_prompt=st.sampled_from([0.0, 0.05]),
    seed=st.integers(0, 1000),
)
def test_what_documents_begin_with_in_common_changes_nothing(prompts, uses, trained, in_the_prompt, seed):
    from finelab import recipe

    profile = machine.decide(HARDWARE, recipe.load_preset("smollm2-135m"))
    systems, quiet = documents_of(prompts, in_the_prompt, seed)
    rest, learned = documents_of([3 + 20 * use for use in uses], trained, seed + 1)
    chosen = [use % len(systems) for use in uses]
    documents = [systems[i] + own for i, own in zip(chosen, rest, strict=True)]
    labels = [quiet[i] + own for i, own in zip(chosen, learned, strict=True)]
    assert_same(model_of(), profile, documents, labels)


def test_what_documents_begin_with_in_common_is_computed_once():
    one, other = range(3, 60), range(60, 100)
    documents = [[*system, 100 + i, 110 + i] for i, system in enumerate((one, one, other, one, other))]
    labels = [[IGNORE] * (len(each) - 1) + each[-1:] for each in documents]
    alone = [57 + 1, 40 + 1]  # the system prompt and the token after it, which has the label
    assert rows_of(documents, labels) == sum(alone) + 1 + 1 + 1
    assert rows_of(documents[:1], labels[:1]) == alone[0]
    learned = [[IGNORE, *each[1:]] for each in documents]  # there each document's own losses are counted
    assert rows_of(documents, learned) == 3 * alone[0] + 2 * alone[1]


def rows_of(documents, labels):
    batch = flat(documents, labels)
    return Batch.of(batch["input_ids"], batch["labels"], None, batch["position_ids"]).end


def test_a_document_does_not_see_another(profile):
    model = model_of()
    cpu_llama.install(model, profile)
    (first, second), (a, b) = documents_of([40, 30], 0.7)
    alone = [loss_and_gradients(model, flat([ids], [labels]), 1) for ids, labels in ((first, a), (second, b))]
    loss, gradients = loss_and_gradients(model, flat([first, second], [a, b]), 1)
    torch.testing.assert_close(loss, alone[0][0] + alone[1][0])
    for both, one, other in zip(gradients, alone[0][1], alone[1][1], strict=True):
        torch.testing.assert_close(both, one + other, rtol=1e-4, atol=1e-5)


def test_a_loss_alone_is_the_steps_and_autograds(profile):
    model = model_of()
    documents, labels = documents_of([33, 7, 301], 0.6)
    with torch.no_grad():
        expected = model.eval()(**padded(documents, labels)).loss
        cpu_llama.install(model, profile)
        for batch in (padded(documents, labels), flat(documents, labels)):
            found = model(**batch)
            assert found.logits is None
            torch.testing.assert_close(found.loss, expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(model.train()(**batch).loss.detach(), found.loss)
    with torch.no_grad():
        assert model(**flat(*documents_of([20], 0.0))).loss == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_heads_loss_and_gradient_are_pytorchs_also_of_a_label_without_probability(dtype):
    scores = torch.randn(3, 50, generator=torch.Generator().manual_seed(0)).to(dtype)
    scores[1, 7], scores[2, 7] = 20, -1000  # a label that is sure, one that float32 gives no probability
    targets = torch.tensor([4, 7, 7])
    exact = scores.clone().float().requires_grad_()
    losses = torch.nn.functional.cross_entropy(exact, targets, reduction="none")
    losses.sum().backward()

    loss = cpu_llama.cross_entropy(scores, targets)

    assert loss.item() == pytest.approx(losses[:2].sum().item() + 87.3, abs=0.05)
    rtol = 1e-5 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(scores.float(), exact.grad, rtol=rtol, atol=1e-6)


def test_logits_are_there_where_they_are_asked_for(profile, monkeypatch):
    model = model_of().eval()
    batch = padded(*documents_of([20, 9], 0.5))
    cpu_llama.install(model, profile)
    with torch.no_grad():
        expected = model(batch["input_ids"], batch["attention_mask"]).logits
        monkeypatch.setenv("UNSLOTH_RETURN_LOGITS", "1")
        assert torch.equal(model(**batch).logits, expected)
        monkeypatch.delenv("UNSLOTH_RETURN_LOGITS")
    assert model(**batch).logits is not None  # with gradients in eval mode, somebody explains the model


def test_without_its_adapter_the_model_has_the_bases_loss(profile):
    model = model_of()
    batch = padded(*documents_of([20, 9], 0.5))
    cpu_llama.install(model, profile)
    with torch.no_grad(), model.disable_adapter():
        bare = model.get_base_model()
        without = model(**batch).loss
        assert torch.equal(without, type(bare).forward(bare, **batch).loss)
    assert model(**batch).loss != without


@pytest.mark.parametrize(
    ("adapter", "why"),
    [
        ({"lora_dropout": 0.1}, "without dropout"),
        ({"use_dora": True}, "something besides LoRA's A and B"),
        ({"lora_bias": True}, "without dropout, bias"),
        ({"modules_to_save": ["lm_head"]}, "something besides LoRA's A and B"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, "something besides LoRA's A and B"),
        ({"target_modules": ["q_proj", "lm_head"]}, "LoRA lies outside of the layers"),
    ],
)
def test_what_it_does_not_know_is_left_to_autograd_and_said(profile, adapter, why):
    tied = {"tie_word_embeddings": False}
    config = LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": MODULES} | adapter)
    model = get_peft_model(base_model(**tied), config).train()
    said = cpu_llama.install(model, profile)
    assert said.startswith("PyTorch's autograd, as the step by hand does not fit")
    assert why in said
    assert model(**padded(*documents_of([9], 1.0))).logits is not None


def test_attention_dropout_is_left_to_autograd(profile):
    assert "attention_dropout (0.1)" in cpu_llama.install(model_of({"attention_dropout": 0.1}), profile)


def test_a_batch_padded_on_the_left_has_the_models_own_loss(profile):
    model = model_of()
    batch = padded(*documents_of([33, 7], 0.6))
    left = {name: values.clone() for name, values in batch.items()}
    for values in left.values():
        values[1] = values[1].roll(33 - 7)
    loss, gradients = loss_and_gradients(model, left, 20)
    cpu_llama.install(model, profile)
    for each in (left, left | {"attention_mask": left["attention_mask"].bool()}, batch):
        found, ours = loss_and_gradients(model, each, 20)
        torch.testing.assert_close(found, loss, rtol=1e-5, atol=1e-6)
        for one, other in zip(ours, gradients, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_with_checkpointing_the_model_recomputes_in_place_of_the_step(profile):
    model = model_of()
    batch = flat(*documents_of([20, 9], 0.6))
    cpu_llama.install(model, profile)
    loss, gradients = loss_and_gradients(model, batch, 20)
    layers, calls = model.get_base_model().model.layers, []
    layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    assert torch.equal(loss_and_gradients(model, batch, 20)[0], loss)
    assert not calls
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    found, theirs = loss_and_gradients(model, batch, 20)
    assert len(calls) == 2
    torch.testing.assert_close(found, loss)
    for one, other in zip(theirs, gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_documents_of_a_flat_batch_are_apart_though_nobody_turns_the_cache_off(profile):
    model = model_of(use_dora=True).eval()
    documents = documents_of([20, 9, 14], 0.5)
    with torch.no_grad():
        apart = model(**padded(*documents)).loss
        cpu_llama.install(model, profile)
        torch.testing.assert_close(model(**flat(*documents)).loss, apart)


def test_another_architecture_is_left_to_autograd(profile):
    from transformers import Qwen2Config, Qwen2ForCausalLM

    small = Qwen2Config(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4
    )
    model = get_peft_model(Qwen2ForCausalLM(small), LoraConfig(r=2, target_modules=["q_proj"]))
    assert "written for LlamaForCausalLM, not Qwen2ForCausalLM" in cpu_llama.install(model, profile)


def test_the_recipe_turns_it_off(preset):
    training = dataclasses.replace(preset.training, fast_cpu_step=False)
    profile = machine.decide(HARDWARE, dataclasses.replace(preset, training=training))
    assert cpu_llama.install(model_of(), profile) == "PyTorch's autograd: as the recipe says"


@pytest.mark.parametrize("slab", [256, 4096, 20_000])
def test_a_step_that_needs_more_memory_than_the_last_one_takes_more(profile, monkeypatch, slab):
    monkeypatch.setattr("finelab.train.slabs.SLAB", slab)
    for lengths in ([5, 3], [60, 40], [9]):
        assert_same(model_of(), profile, *documents_of(lengths, 0.6))
    model = model_of()
    cpu_llama.install(model, profile)
    small, large = (flat(*documents_of(lengths, 0.6)) for lengths in ([5, 3], [60, 40]))
    loss, gradients = loss_and_gradients(model, small, 4)
    loss_and_gradients(model, large, 50)
    again, same = loss_and_gradients(model, small, 4)
    assert torch.equal(again, loss)
    assert all(torch.equal(one, other) for one, other in zip(same, gradients, strict=True))


def test_a_steps_memory_is_kept_for_the_next_one_and_can_be_released(profile, monkeypatch):
    monkeypatch.setattr("finelab.train.slabs.SLAB", 1 << 17)
    model, before = model_of(), set(resources.KEPT)
    cpu_llama.install(model, profile)
    (slabs,) = set(resources.KEPT) - before
    small, large = (flat(*documents_of(lengths, 0.6)) for lengths in ([5, 3], [60, 40]))
    loss, gradients = loss_and_gradients(model, small, 4)
    few = len(slabs.slabs)
    loss_and_gradients(model, large, 50)
    many = list(slabs.slabs)
    loss_and_gradients(model, small, 4)
    assert all(one is other for one, other in zip(slabs.slabs, many, strict=True))
    resources.release_memory()
    again, same = loss_and_gradients(model, small, 4)
    assert len(slabs.slabs) == few < len(many)
    assert torch.equal(again, loss)
    assert all(torch.equal(one, other) for one, other in zip(same, gradients, strict=True))


def test_filling_a_batch_changes_nothing_under_autograd(profile):
    model = model_of(use_dora=True)
    documents, labels = documents_of([20, 9, 14], 0.6)
    loss, gradients = loss_and_gradients(model, padded(documents, labels), 25)
    cpu_llama.install(model, profile)
    computed = []
    norm = model.get_base_model().model.norm
    norm.register_forward_hook(lambda module, inputs, output: computed.append(output.shape[1]))
    found, filled = loss_and_gradients(model, flat(documents, labels), 25)
    assert computed == [64]
    torch.testing.assert_close(found, loss)
    for one, other in zip(filled, gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_a_trainer_ends_with_the_same_weights(profile, tmp_path):
    from transformers import DataCollatorWithFlattening, Trainer, TrainingArguments

    documents, labels = documents_of([20, 31, 8, 27, 12, 40, 5, 16, 9, 22], 0.6)
    rows = [{"input_ids": ids, "labels": each} for ids, each in zip(documents, labels, strict=True)]

    def trained(by_hand):
        model = model_of()
        if by_hand:
            cpu_llama.install(model, profile)
        args = TrainingArguments(
            output_dir=str(tmp_path),
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
            num_train_epochs=2,
            learning_rate=1e-3,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
        )
        collator = DataCollatorWithFlattening()
        trainer = Trainer(model=model, args=args, train_dataset=rows, data_collator=collator)
        trainer.train()
        return {name: each for name, each in model.named_parameters() if each.requires_grad}

    plain, ours = trained(by_hand=False), trained(by_hand=True)
    for name, weight in plain.items():
        torch.testing.assert_close(ours[name], weight, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_in_bfloat16_its_gradients_are_as_close_to_float32_as_pefts(preset, embedded_folder):
    from transformers import AutoModelForCausalLM

    emulated = not machine.read_hardware().cpu_bfloat16  # 30 layers take four minutes then
    layers, lengths = (6, [20, 12, 28]) if emulated else (30, [150, 90, 210])
    batch = padded(*documents_of(lengths, 0.6))
    fast = dataclasses.replace(HARDWARE, cpu_bfloat16=True)

    def gradient(dtype, by_hand=False, autocast=False):
        torch.manual_seed(3407)
        model = AutoModelForCausalLM.from_pretrained(embedded_folder, dtype=dtype, num_hidden_layers=layers)
        model = with_adapter(model, r=16, moved=False).train()
        if by_hand:
            cpu_llama.install(model, machine.decide(fast, preset))
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss, gradients = loss_and_gradients(model, batch, 1)
        return loss, torch.cat([each.flatten() for each in gradients])

    _, exact = gradient(torch.float32)
    errors = {}
    for name, options in {"peft": {"autocast": True}, "ours": {"by_hand": True, "autocast": True}}.items():
        _, found = gradient(torch.bfloat16, **options)
        errors[name] = float((found - exact).norm() / exact.norm())
    assert errors["ours"] <= 1.05 * errors["peft"]


def test_noise_on_the_embeddings_arrives(profile):
    """NEFTune's hook: without it training would go on without noise, and without a word."""
    from transformers.integrations import neftune

    model = model_of()
    assert cpu_llama.install(model, profile).startswith("forward and backward by hand")
    batch = flat(*documents_of([20, 30], 0.6))
    embeddings = model.get_input_embeddings()
    embeddings.neftune_noise_alpha = 50.0
    hook = embeddings.register_forward_hook(neftune.neftune_post_forward_hook)
    assert len({float(model(**batch).loss.detach()) for _ in range(3)}) == 3
    hook.remove()
    del embeddings.neftune_noise_alpha
    assert len({float(model(**batch).loss.detach()) for _ in range(3)}) == 1


def test_the_cell_that_installs_it_may_run_again(profile):
    model, batch = model_of(), flat(*documents_of([20, 30], 0.6))
    losses, kept = set(), set()
    for _ in range(3):
        cpu_llama.install(model, profile)
        losses.add(float(model(**batch).loss.detach()))
        gc.collect()
        kept.add(sum(isinstance(each, Slabs) for each in resources.KEPT))
    assert len(losses) == 1
    assert len(kept) == 1  # each with a copy of the projections
