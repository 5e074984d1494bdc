"""The last link of the identity chain: what is served says what the run's merged model says.

`runs/<run>/served-check.json` holds the merged model's greedy answers, as finelab writes them:
    {"answers": [{"prompt_token_ids": [int], "token_ids": [int], "top_logprobs": [{"ID": float}]}]}
with, for each of `token_ids`, the log probabilities of the 20 likeliest tokens. The served model reads each
answer and says what it would have taken in each place, so one near tie does not spoil the rest.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

MIN_TOP1 = 0.9  # as finelab.publish.identity asks of a right copy in 16 bit


def compare(expected: list[dict[str, Any]], got: list[list[dict[str, float]]]) -> dict[str, Any]:
    """The link merged -> served of the identity chain, over the merged model's greedy answers."""
    same, leading, gaps, kls = [], 0, [], []
    for answer, rows in zip(expected, got, strict=True):
        hits = []
        for token, mine, theirs in zip(answer["token_ids"], answer["top_logprobs"], rows, strict=True):
            hits.append(max(theirs, key=lambda each: theirs[each]) == str(token))
            lowest = min(theirs.values())  # of a token that is not among the 20, at least so far away
            differences = {each: p - theirs.get(each, lowest) for each, p in mine.items()}
            gaps.append(abs(differences[str(token)]))
            kls.append(sum(math.exp(mine[each]) * gap for each, gap in differences.items()))
        same += hits
        leading += [*hits, False].index(False)
    top1 = sum(same) / len(same)
    return {
        "from": "merged",
        "to": "served",
        "max_abs_logit_diff": max(gaps),  # of the log probability of the chosen token
        "mean_kl": max(sum(kls) / len(kls), 0.0),
        "top1_agreement_share": top1,
        "greedy_match_share": leading / len(same),
        "passed": top1 >= MIN_TOP1,
    }


def record(folder: Path, link: dict[str, Any]) -> None:
    """Put the link at the end of the run's chain; the file is the old one or the new one, never half."""
    evidence = json.loads((folder / "evidence.json").read_text(encoding="utf-8"))
    links = [each for each in evidence.get("identity", []) if each["to"] != "served"] + [link]
    temporary = folder / ".evidence.json.served"
    text = json.dumps(evidence | {"identity": links}, indent=2, ensure_ascii=False) + "\n"
    temporary.write_text(text, encoding="utf-8", newline="\n")
    temporary.replace(folder / "evidence.json")
