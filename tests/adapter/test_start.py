"""How an adapter starts: LoftQ without a card is what LoftQ promises, and PEFT takes it."""

import pytest
import torch

from finelab import LabError
from finelab.adapter import loftq_config
from finelab.adapter.start import loftq_start
from finelab.recipe import load_preset, override


def nearest_rank(matrix: torch.Tensor, rank: int) -> torch.Tensor:
    u, s, v = torch.linalg.svd(matrix)
    return u[:, :rank] @ torch.diag(s[:rank]) @ v[:rank]


@pytest.fixture
def weight() -> torch.Tensor:
    return torch.randn(96, 64, generator=torch.Generator().manual_seed(7))


def test_the_adapter_is_the_best_of_its_rank_at_what_rounding_lost(weight):
    quantized, a, b = loftq_start(weight, num_bits=4, reduced_rank=8)
    assert a.shape == (8, 64) and b.shape == (96, 8)
    lost = weight - quantized
    assert 0 < lost.norm() < 0.2 * weight.norm()
    assert torch.allclose(b @ a, nearest_rank(lost, 8), atol=1e-5)


def test_rounded_means_sixteen_values_in_a_block_of_sixty_four(weight):
    quantized, _, _ = loftq_start(weight, num_bits=4, reduced_rank=8)
    assert all(len(block.unique()) <= 16 for block in quantized.flatten().split(64))


def test_more_iterations_come_nearer_and_the_base_keeps_its_type(weight):
    def distance(iterations: int) -> float:
        quantized, a, b = loftq_start(weight, 4, 8, iterations)
        return float((weight - quantized - b @ a).norm())

    assert distance(5) < distance(1)
    assert loftq_start(weight.bfloat16(), 4, 8)[0].dtype == torch.bfloat16


def test_other_bits_are_refused(weight):
    with pytest.raises(LabError, match="4 bit only"):
        loftq_start(weight, num_bits=8, reduced_rank=8)


@pytest.mark.skipif(torch.cuda.is_available(), reason="PEFT's own start is used on a card")
def test_peft_starts_a_model_with_it_and_the_sum_stays_near_the_base():
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    recipe = override(load_preset("smollm2-135m"), ['lora.init_lora_weights="loftq"'])
    config = loftq_config(recipe)
    torch.manual_seed(3)
    base = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=64,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=1,
            num_attention_heads=4,
        )
    )
    before = base.model.layers[0].mlp.up_proj.weight.detach().clone()
    model = get_peft_model(
        base,
        LoraConfig(
            r=16,
            lora_alpha=16,
            target_modules=["up_proj"],
            init_lora_weights="loftq",
            loftq_config=config,
        ),
    )
    layer = model.base_model.model.model.layers[0].mlp.up_proj
    rounded, update = layer.base_layer.weight, layer.get_delta_weight("default")
    assert 0 < (rounded + update - before).norm() < (rounded - before).norm()


def test_any_other_start_has_no_settings():
    assert loftq_config(load_preset("smollm2-135m")) is None
