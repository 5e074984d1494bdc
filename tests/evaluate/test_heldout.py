import numpy as np
import torch
from torch.nn.functional import cross_entropy

from finelab.evaluate import base_and_tuned, response_nll, row_totals, token_nll
from finelab.evaluate.heldout import batches_by_length
from tests.tiny import base_model, with_adapter

ROWS = {
    "input_ids": [list(range(2, 12)), list(range(5, 40)), [7, 8, 9]],
    "labels": [[-100] * 4 + list(range(6, 12)), [-100] * 30 + list(range(35, 40)), [-100, 8, 9]],
}


def alone(model, ids, labels):
    """Each labelled token's loss, from the row by itself."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0, :-1]
    nats = cross_entropy(logits, torch.tensor(labels[1:]), reduction="none", ignore_index=-100)
    return nats[torch.tensor(labels[1:]) != -100].numpy()


def test_a_batch_gives_what_each_row_gives_alone():
    model = base_model()
    model.train()
    found = token_nll(model, ROWS, batch_tokens=20)
    assert model.training
    model.eval()
    for row, ids, labels in zip(found, ROWS["input_ids"], ROWS["labels"], strict=True):
        np.testing.assert_allclose(row, alone(model, ids, labels), atol=1e-5)


def test_the_head_computes_the_scored_positions_and_no_other():
    model, seen = base_model(), []
    model.lm_head.register_forward_hook(lambda head, args, logits: seen.append(logits.shape[:-1].numel()))
    token_nll(model, ROWS)
    assert sum(seen) == 6 + 5 + 2
    assert model(input_ids=torch.tensor([[7, 8, 9]])).logits.shape == (1, 3, 128)  # and whole again


def test_a_row_without_a_label_has_no_loss():
    rows = {"input_ids": [[7, 8, 9], list(range(5, 40))], "labels": [[-100] * 3, [-100] * 35]}
    assert [len(row) for row in token_nll(base_model(), rows, batch_tokens=20)] == [0, 0]


def test_a_head_with_an_adapter_of_its_own_counts():
    model = with_adapter(base_model(tie_word_embeddings=False), target_modules=["q_proj", "lm_head"])
    for row, ids, labels in zip(token_nll(model, ROWS), ROWS["input_ids"], ROWS["labels"], strict=True):
        np.testing.assert_allclose(row, alone(model, ids, labels), atol=1e-5)


def test_row_totals_are_the_sums_of_the_tokens_losses():
    model = base_model()
    totals = response_nll(model, ROWS)
    assert totals[:, 1].tolist() == [6, 5, 2]
    np.testing.assert_allclose(totals, row_totals(token_nll(model, ROWS)))


def test_the_adapter_is_off_for_the_base_and_on_for_the_tuned():
    base, tuned = base_and_tuned(with_adapter(base_model()), ROWS)
    np.testing.assert_allclose(base[0], token_nll(base_model(), ROWS)[0], atol=1e-5)
    assert np.abs(tuned[0] - base[0]).max() > 1e-3


def test_batches_hold_every_row_once_and_no_more_positions_than_allowed():
    lengths = np.random.default_rng(0).integers(1, 300, 100).tolist()
    batches = list(batches_by_length(lengths, 512))
    assert sorted(index for batch in batches for index in batch) == list(range(100))
    assert all(len(batch) * max(lengths[index] for index in batch) <= 512 for batch in batches)
    assert len(batches) < 60


def test_a_row_longer_than_a_batch_is_one_by_itself():
    assert list(batches_by_length([900, 3, 4], 512)) == [[1, 2], [0]]
