"""Flat and packed batches against each document alone, on a tiny Llama in float32."""

import functools
import itertools
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from finelab import LabError, machine, recipe
from finelab.train.batches import (
    batch_of,
    batching,
    collated,
    collator,
    eval_rows,
    flattens,
    packed,
    row_squares,
    rows_sha256,
    training_rows,
)
from tests.tiny import base_model, with_adapter

PAD = 5
CPU = machine.Hardware(device="cpu", name="two cores", system="Linux", cores=2, memory_bytes=8 * 10**9)
CARD = machine.Hardware(
    device="cuda", name="a card", system="Linux", cores=2, memory_bytes=0, capability=(8, 0)
)


class Tokenizer:
    """Stands for the tokenizer, of which the collator asks the padding token."""

    pad_token_id = PAD
    model_input_names = ("input_ids",)


def profile_on(hardware):
    return machine.decide(hardware, recipe.load_preset("smollm2-135m"))


@functools.cache
def model():
    """Dropout-free and without a cache: with one, transformers does not look for several documents."""
    return with_adapter(base_model(use_cache=False))


def flatten(rows):
    return collator(Tokenizer(), profile_on(CPU))(rows)


def dataset(rows):
    from datasets import Dataset, Features, Sequence, Value

    columns = Features({name: Sequence(Value("int32")) for name in ("input_ids", "labels")})
    return Dataset.from_list(rows, features=columns)


def documents_of(lengths, seed, unlabelled=()):
    """Rows of random tokens, among them the padding token; about half of the tokens carry a label."""
    draw = random.Random(seed)
    rows = []
    for i, length in enumerate(lengths):
        ids = [draw.choice([PAD, *range(3, 128)]) for _ in range(length)]
        trained = [False] + [i not in unlabelled and draw.random() < 0.5 for _ in ids[1:]]
        labels = [token if learned else -100 for token, learned in zip(ids, trained, strict=True)]
        rows.append({"input_ids": ids, "labels": labels})
    return rows


def logits_of(batch):
    with torch.no_grad():
        return model()(**{name: value for name, value in batch.items() if name != "labels"}).logits[0]


def alone(row):
    return logits_of({"input_ids": torch.tensor([row["input_ids"]])})


def nll(logits, labels):
    """The summed loss, written out."""
    scores = torch.log_softmax(logits[:-1].double(), dim=-1)
    targets = torch.tensor(labels[1:])
    learned = targets != -100
    return -scores[learned].gather(1, targets[learned][:, None]).sum()


def trained(rows):
    return sum(label != -100 for row in rows for label in row["labels"])


LENGTHS = st.lists(st.integers(1, 24), min_size=1, max_size=6)


@settings(max_examples=10)
@given(LENGTHS, st.integers(0, 10**6), st.sets(st.integers(0, 5)))
def test_flat_and_packed_documents_score_as_each_does_alone(lengths, seed, unlabelled):
    rows = documents_of(lengths, seed, unlabelled)
    expected = {tuple(row["input_ids"]): (alone(row), nll(alone(row), row["labels"])) for row in rows}
    for made in (rows, packed(dataset(rows), 32).to_list()):
        batch = flatten(made)
        logits, ids = logits_of(batch), batch["input_ids"][0].tolist()
        at, loss = 0, 0.0
        for length in [each for row in made for each in row.get("seq_lengths", [len(row["input_ids"])])]:
            want, want_loss = expected[tuple(ids[at : at + length])]
            torch.testing.assert_close(logits[at : at + length], want, rtol=1e-4, atol=2e-5)
            labels = batch["labels"][0, at : at + length].tolist()
            found = nll(logits[at : at + length], labels)
            assert float(found) == pytest.approx(float(want_loss), rel=1e-4, abs=1e-4)
            loss += found
            at += length
        assert at == len(ids) == sum(lengths)
        with torch.no_grad():
            whole = model()(**batch, num_items_in_batch=1).loss
        assert float(whole) == pytest.approx(float(loss), rel=1e-4, abs=1e-4)


@settings(max_examples=10)
@given(LENGTHS.filter(lambda lengths: len(lengths) > 1), st.integers(0, 10**6))
def test_a_document_changes_no_other_ones_logits(lengths, seed):
    rows = documents_of(lengths, seed)
    changed = seed % len(rows)
    other = [dict(row) for row in rows]
    other[changed]["input_ids"] = [3 + (token + 1) % 120 for token in rows[changed]["input_ids"]]
    before, after = logits_of(flatten(rows)), logits_of(flatten(other))
    start = sum(lengths[:changed])
    kept = [*range(start), *range(start + lengths[changed], sum(lengths))]
    torch.testing.assert_close(before[kept], after[kept], rtol=0, atol=1e-6)
    assert not torch.allclose(
        before[start : start + lengths[changed]], after[start : start + lengths[changed]]
    )


def test_the_first_token_of_a_document_is_not_learned_from_the_one_before():
    rows = [{"input_ids": [7, 8, 9], "labels": [7, 8, 9]}, {"input_ids": [10, 11], "labels": [10, 11]}]
    batch = flatten(rows)
    assert batch["labels"].tolist() == [[-100, 8, 9, -100, 11]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1]]
    assert "attention_mask" not in batch
    in_one_row = flatten(packed(dataset(rows), 8).to_list())
    assert in_one_row["labels"].tolist() == [[-100, 8, 9, -100, 11]]
    assert in_one_row["position_ids"].tolist() == [[0, 1, 2, 0, 1]]


@settings(max_examples=10)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=30), st.integers(0, 10**6))
def test_packing_keeps_every_document_whole_with_its_labels(lengths, seed):
    rows = documents_of(lengths, seed)
    kept = []
    for row in packed(dataset(rows), 30):
        assert len(row["input_ids"]) == len(row["labels"]) == sum(row["seq_lengths"]) <= 30
        at = 0
        for length in row["seq_lengths"]:
            kept.append((row["input_ids"][at : at + length], row["labels"][at : at + length]))
            at += length
    assert sorted(kept) == sorted((row["input_ids"], row["labels"]) for row in rows)


def test_a_row_too_long_to_be_packed_is_named():
    rows = documents_of([4, 31, 5], seed=1)
    with pytest.raises(LabError, match="row 1 has 31 tokens, and a packed row holds 30; prepare the rows"):
        packed(dataset(rows), 30)


def test_packing_keeps_the_callers_progress_bars():
    import datasets

    rows = dataset(documents_of([4, 5], seed=1))
    datasets.disable_progress_bars()
    packed(rows, 30)
    assert datasets.are_progress_bars_disabled()
    datasets.enable_progress_bars()
    packed(rows, 30)
    assert not datasets.are_progress_bars_disabled()


def test_on_cuda_unsloth_flattens_and_packs():
    rows = dataset(documents_of([4, 5, 6], seed=1))
    profile = profile_on(CARD)
    assert collator(Tokenizer(), profile) is None
    assert training_rows(rows, profile, True, 30).to_list() == rows.to_list()
    assert batching(profile, True) == {"packing": True, "include_num_input_tokens_seen": "non_padding"}
    assert len(training_rows(rows, profile_on(CPU), True, 30)) == 1
    assert not batching(profile_on(CPU), True)["packing"]  # Unsloth would say that it turns it off


# The trainer


def test_the_hash_of_rows_is_that_of_their_order_tokens_labels_and_documents():
    from datasets import Dataset

    rows = [{"input_ids": [3, 4, 5], "labels": [-100, 4, 5]}, {"input_ids": [6, 7], "labels": [6, 7]}]
    made = dataset(rows)
    others = [
        made.select([1, 0]),
        made.select([0]),
        made.select([0, 1, 1]),
        dataset([rows[0] | {"labels": [-100, -100, 5]}, rows[1]]),
        dataset([rows[0], rows[1] | {"input_ids": [6, 8]}]),
        dataset([{"input_ids": [3, 4], "labels": [-100, 4]}, {"input_ids": [5, 6, 7], "labels": [5, 6, 7]}]),
        Dataset.from_list([row | {"seq_lengths": [1, len(row["labels"]) - 1]} for row in rows]),
    ]
    hashes = {rows_sha256(each) for each in (made, *others)}
    assert len(hashes) == 1 + len(others)


def test_the_hash_of_rows_does_not_hang_on_how_they_are_kept():
    from datasets import Dataset, concatenate_datasets

    rows = [{"input_ids": [3 + i] * (1 + i % 4), "labels": [i] * (1 + i % 4)} for i in range(2500)]
    made = dataset(rows)
    wide = Dataset.from_list([{"name": str(i), **row} for i, row in enumerate(rows)])
    pieces = concatenate_datasets([made.select(range(7)), made.select(range(7, 2500))])
    picked = concatenate_datasets([made, made]).select([*range(2000), *range(4500, 5000)])
    assert {rows_sha256(each) for each in (wide, pieces, picked, picked.flatten_indices())} == {
        rows_sha256(made)
    }


@pytest.fixture
def trainer_of(tmp_path):
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

    class Counting(Trainer):
        """Adds up what each optimizer step's loss is divided by."""

        labelled = 0

        def get_batch_samples(self, *args):
            samples, labelled = super().get_batch_samples(*args)
            self.labelled += int(labelled)
            return samples, labelled

    def make(rows, flat=True, tokenizer=None, **changes):
        arguments = {
            "output_dir": str(tmp_path / "out"),
            "learning_rate": 1e-2,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "use_cpu": True,
        }
        trainer = Counting(
            model=with_adapter(base_model(use_cache=False)),
            args=TrainingArguments(**arguments | changes),
            train_dataset=rows,
            data_collator=flatten if flat else DataCollatorForSeq2Seq(tokenizer),
        )
        trainer.processing_class = Tokenizer()
        trainer._signature_columns = ["input_ids", "labels", "seq_lengths"]  # as TRL's trainer keeps them
        return trainer

    return make


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize(
    "strategy, count",
    [
        ("random", 22),
        ("group_by_length", 27),
    ],  # the last group has 2 micro-batches of 3; 2, the last of one row
)
def test_tokens_and_labels_are_counted_as_they_are(trainer_of, packing, strategy, count):
    rows = documents_of([random.Random(i).randint(1, 30) for i in range(count)], seed=4, unlabelled={3})
    profile = profile_on(CPU)
    counting = batching(profile, packing)["include_num_input_tokens_seen"]
    trainer = trainer_of(
        training_rows(dataset(rows), profile, packing, 40),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=3,
        num_train_epochs=2,
        train_sampling_strategy=strategy,
        include_num_input_tokens_seen=counting,
    )
    trainer.train()
    assert trainer.state.num_input_tokens_seen == 2 * sum(len(row["input_ids"]) for row in rows)
    assert trainer.labelled == 2 * trained(rows)
    assert flattens(trainer)


def gradient(trainer, batches):
    """Of one optimizer step over micro-batches of these row numbers."""
    trainer.model.zero_grad()
    made = [trainer.data_collator([trainer.train_dataset[i] for i in rows]) for rows in batches]
    inputs, labelled = trainer.get_batch_samples(iter(made), len(made), trainer.args.device)
    for each in inputs:
        trainer.training_step(trainer.model, each, labelled)
    return torch.cat([each.grad.flatten() for each in trainer.model.parameters() if each.requires_grad])


def test_a_step_has_the_same_gradient_however_its_rows_are_cut(trainer_of, tokenizer):
    rows = documents_of([3, 30, 12, 1, 17, 8, 25, 6], seed=2, unlabelled={4})
    wanted = gradient(trainer_of(dataset(rows)), [range(8)])
    assert wanted.abs().max() > 1e-4
    flat = trainer_of(dataset(rows))
    for batches in ([[i] for i in range(8)], [[0, 1, 2], [3, 4, 5, 6, 7]], [[7, 2], [4], [5, 0, 3, 6, 1]]):
        torch.testing.assert_close(gradient(flat, batches), wanted, rtol=1e-3, atol=1e-6)
    padded = trainer_of(dataset(rows), flat=False, tokenizer=tokenizer)
    torch.testing.assert_close(gradient(padded, [range(4), range(4, 8)]), wanted, rtol=1e-3, atol=1e-6)
    assert not flattens(padded)
    in_rows = packed(dataset(rows), 32)
    torch.testing.assert_close(
        gradient(trainer_of(in_rows), [[i] for i in range(len(in_rows))]), wanted, rtol=1e-3, atol=1e-6
    )


@settings(max_examples=30)
@given(LENGTHS, st.booleans())
def test_a_batch_is_what_its_collator_makes(lengths, in_one_row):
    made = dataset(documents_of(lengths, seed=0))
    made = packed(made, 200) if in_one_row else made
    sizes = [len(row) for row in made["input_ids"]]
    batch = batch_of(sizes, row_squares(made, sizes), flat=True)
    assert batch == collated(flatten(made.to_list()), len(sizes))
    assert (batch.positions, batch.squares) == (sum(lengths), sum(length**2 for length in lengths))


def test_a_padded_batch_is_as_long_as_its_longest_row(tokenizer):
    from transformers import DataCollatorForSeq2Seq

    rows = documents_of([4, 9, 6], seed=0)
    batch = collated(DataCollatorForSeq2Seq(tokenizer)(rows), 3)
    assert batch == batch_of([4, 9, 6], [16, 81, 36], flat=False) == (3, 27, 243)


def test_looks_on_the_way_are_at_rows_from_the_whole_length_of_the_held_out_ones():
    rows = dataset([{"input_ids": [n], "labels": [n]} for n in range(114)])
    seen = [row[0] for row in eval_rows(rows, 24)["input_ids"]]
    assert len(set(seen)) == 24 and seen[0] == 0 and seen[-1] >= 108
    assert max(after - before for before, after in itertools.pairwise(seen)) == 5


@pytest.mark.parametrize("count", [0, 114, 500])
def test_all_of_them_when_none_or_more_are_asked_for(count):
    rows = dataset([{"input_ids": [n], "labels": [n]} for n in range(114)])
    assert len(eval_rows(rows, count)) == 114
