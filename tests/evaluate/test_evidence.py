import numpy as np

from finelab.evaluate import by_kind, compare, evidence, forgetting
from tests.evaluate.test_compare import heldout

BASE = np.array([[20.0, 10.0]] * 20)
TUNED, WORSE = BASE - [1.0, 0.0], BASE + np.array([1.0, 0.0])


def test_what_notebook_3_writes_stays():
    kept = evidence(by_kind(heldout(["row"] * 10 + ["family"] * 10), BASE, TUNED), "bfloat16")
    keys = {"rows", "questions", "heldout_nll_base", "heldout_nll_tuned", "difference", "interval", "verdict"}
    assert set(kept) == keys | {"families", "weights"}
    assert set(kept["families"]) == keys
    assert kept["weights"] == "bfloat16"
    assert (kept["heldout_nll_base"], kept["difference"], kept["rows"]) == (2.0, -0.1, 10)
    assert set(evidence(by_kind(heldout(["row"] * 20), BASE, TUNED), "4 bit")) == keys | {"weights"}


def test_everything_measured_is_in_it_and_can_be_written_as_json(run):
    kept = evidence(
        by_kind(heldout(["row"] * 20), BASE, TUNED),
        "float32",
        by_source={"sorting": compare(BASE, TUNED)},
        by_length={"below 32 tokens": compare(BASE, TUNED)},
        bits_per_byte=compare(BASE, TUNED, unit="bits per byte"),
        by_token_class={"format": compare(BASE, TUNED)},
        forgetting=forgetting(["prose"] * 20, BASE, WORSE),
        answers={"rows": 3},
    )
    run.record("evaluation", kept)
    read = run.evidence()["evaluation"]
    assert read["by_source"]["sorting"]["verdict"] == "improved"
    assert read["forgetting"]["prose"]["verdict"] == "worse"
    assert len(read["forgetting"]["sha256"]) == 64
    assert read["bits_per_byte"]["base"] == 2.0
    assert read["answers"] == {"rows": 3}
