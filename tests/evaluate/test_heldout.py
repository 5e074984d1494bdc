import torch
from torch.nn.functional import cross_entropy

from finelab.evaluate import response_nll
from tests.tiny import base_model

ROWS = {
    "input_ids": [list(range(2, 12)), list(range(5, 40)), [7, 8, 9]],
    "labels": [[-100] * 4 + list(range(6, 12)), [-100] * 30 + list(range(35, 40)), [-100, 8, 9]],
}


def test_a_batch_gives_what_each_row_gives_alone():
    model = base_model()
    model.train()
    result = response_nll(model, ROWS, batch_size=2)
    assert model.training
    model.eval()
    for index, (ids, labels) in enumerate(zip(ROWS["input_ids"], ROWS["labels"], strict=True)):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits[0, :-1]
        nats = cross_entropy(logits, torch.tensor(labels[1:]), reduction="sum", ignore_index=-100)
        assert abs(result[index, 0] - float(nats)) < 1e-4
        assert result[index, 1] == sum(label != -100 for label in labels[1:])
