"""Memory that each step by hand uses again for what it saves for its backward.

From the heap these tensors would tear it, with the kernels that are built in between: over 256 real
conversations of many lengths the process took twice the memory, and became slower by a quarter.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from finelab.resources import KEPT

SLAB = 1 << 26  # bytes: a tensor of 2,048 rows takes at most a fifth of one


class Slabs:
    """Slabs of `size` bytes; `resources.release_memory` frees them, as the tuner does between trials."""

    def __init__(self) -> None:
        self.size = SLAB
        self.free()
        KEPT.add(self)

    def __reduce__(self) -> tuple[type[Slabs], tuple[()]]:
        """Another process has slabs of its own."""
        return Slabs, ()

    def free(self) -> None:
        """Give the slabs back: the next step takes as many as it needs."""
        self.slabs: list[Tensor] = []
        self.clear()

    def clear(self) -> None:
        """Begin anew: what was given out is overwritten from now on."""
        self.slab = self.used = 0

    def empty(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """An uninitialised tensor, from a heap's block of its own if it is larger than a slab."""
        size = math.prod(shape) * dtype.itemsize
        if size > self.size:
            return torch.empty(shape, dtype=dtype)
        if self.used + size > self.size:
            self.slab, self.used = self.slab + 1, 0
        if self.slab == len(self.slabs):
            self.slabs.append(torch.empty(self.size, dtype=torch.uint8))
        begin, self.used = self.used, self.used + size + -size % 64  # a cache line
        return self.slabs[self.slab][begin : begin + size].view(dtype).view(shape)

    def copy(self, tensor: Tensor) -> Tensor:
        """The same values, contiguous."""
        return self.empty(*tensor.shape, dtype=tensor.dtype).copy_(tensor)
