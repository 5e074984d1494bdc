"""Stage 2: the base model and the LoRA adapter beside its projections."""

from finelab.adapter.count import Count, count_parameters
from finelab.adapter.start import keep_start, loftq_config, save_on_published_base, starts_as_base

__all__ = [
    "Count",
    "count_parameters",
    "keep_start",
    "loftq_config",
    "save_on_published_base",
    "starts_as_base",
]
