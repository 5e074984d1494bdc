"""Stage 4: a merge that is checked, a card from the evidence, a push that is verified."""

from finelab.publish.card import write_card
from finelab.publish.identity import Link, answer_logits, chain, for_proof, greedy_answers, require_identity
from finelab.publish.push import PUSHED_FILES, hub, record_push
from finelab.publish.token import read_token
from finelab.publish.weights import Weights, check_merged_weights

__all__ = [
    "PUSHED_FILES",
    "Link",
    "Weights",
    "answer_logits",
    "chain",
    "check_merged_weights",
    "for_proof",
    "greedy_answers",
    "hub",
    "read_token",
    "record_push",
    "require_identity",
    "write_card",
]
