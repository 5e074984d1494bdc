import pytest
import torch

from finelab.evaluate import update_norms
from tests.tiny import MODULES, base_model, with_adapter


@pytest.mark.parametrize("use_rslora", [False, True])
def test_each_norm_is_that_of_what_peft_adds_to_the_weight(use_rslora):
    model = with_adapter(base_model(), use_rslora=use_rslora)
    norms = update_norms(model)
    assert {name: sorted(layers) for name, layers in norms.items()} == {name: [0, 1] for name in MODULES}
    for index, layer in enumerate(model.base_model.model.model.layers):
        added = layer.self_attn.q_proj.get_delta_weight("default").detach()
        assert norms["q_proj"][index] == pytest.approx(float(torch.linalg.norm(added)), rel=1e-5)


def test_an_adapter_that_was_not_trained_moves_nothing():
    norms = update_norms(with_adapter(base_model(), moved=False))
    assert {norm for layers in norms.values() for norm in layers.values()} == {0.0}


def test_modules_without_an_adapter_are_left_out():
    assert set(update_norms(with_adapter(base_model(), target_modules=["v_proj"]))) == {"v_proj"}
