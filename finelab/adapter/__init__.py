"""Stage 2: the base model and the LoRA adapter beside its projections."""

from finelab.adapter.count import Count, count_parameters
from finelab.adapter.start import loftq_config, starts_as_base

__all__ = ["Count", "count_parameters", "loftq_config", "starts_as_base"]
