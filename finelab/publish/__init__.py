"""Stage 4: a merge that is proven, a card from the evidence, a push that is verified."""

from finelab.publish.card import write_card
from finelab.publish.gguf import export_gguf
from finelab.publish.identity import (
    Link,
    answer_logits,
    chain,
    for_proof,
    greedy_answers,
    link,
    probes,
    require_identity,
)
from finelab.publish.manifest import Manifest, adapter_for_hub, proven
from finelab.publish.merge import merge
from finelab.publish.precision import measured_dtype, require_finite
from finelab.publish.push import changes, fetch_pushed, hub, record_push
from finelab.publish.served import keep_served_check
from finelab.publish.token import check_token, find_tokens, read_token
from finelab.publish.weights import Weights, check_merged_weights, require_merged_files

__all__ = [
    "Link",
    "Manifest",
    "Weights",
    "adapter_for_hub",
    "answer_logits",
    "chain",
    "changes",
    "check_merged_weights",
    "check_token",
    "export_gguf",
    "fetch_pushed",
    "find_tokens",
    "for_proof",
    "greedy_answers",
    "hub",
    "keep_served_check",
    "link",
    "measured_dtype",
    "merge",
    "probes",
    "proven",
    "read_token",
    "record_push",
    "require_finite",
    "require_identity",
    "require_merged_files",
    "write_card",
]
