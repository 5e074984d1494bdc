"""Notebook 02 with LoRA in other places than the recipe's."""

import pytest

from tests.notebooks.lab import Lab


@pytest.mark.slow
def test_lora_may_leave_attention_out(tmp_path):
    lab = Lab(tmp_path)
    modules = 'lora.target_modules=["up_proj", "down_proj"]'
    code, output = lab.run("--run", "mlp", "--stages", "adapter", "--set", modules)
    assert code == 0, output
    executed = (tmp_path / "mlp" / "notebooks" / "02_adapter.ipynb").read_text(encoding="utf-8")
    assert "layers.0.mlp.up_proj" in executed
