import pytest

from finelab.evaluate import update_rms
from tests.tiny import MODULES, base_model, with_adapter


@pytest.mark.parametrize("use_rslora", [False, True])
def test_each_update_is_as_large_as_what_peft_adds_to_the_weight(use_rslora):
    model = with_adapter(base_model(), use_rslora=use_rslora)
    found = update_rms(model)
    assert {name: sorted(layers) for name, layers in found.items()} == {name: [0, 1] for name in MODULES}
    for index, layer in enumerate(model.base_model.model.model.layers):
        added = layer.self_attn.q_proj.get_delta_weight("default").detach()
        assert found["q_proj"][index] == pytest.approx(float((added**2).mean().sqrt()), rel=1e-5)


def test_an_adapter_that_was_not_trained_moves_nothing():
    found = update_rms(with_adapter(base_model(), moved=False))
    assert {size for layers in found.values() for size in layers.values()} == {0.0}


def test_modules_without_an_adapter_are_left_out():
    assert set(update_rms(with_adapter(base_model(), target_modules=["v_proj"]))) == {"v_proj"}
