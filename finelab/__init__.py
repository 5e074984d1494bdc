"""finelab: fine-tune a small Llama on your own GPU, and know that it worked."""

import logging

from finelab.errors import LabError
from finelab.run import Run, open_run

__version__ = "0.1.0"
__all__ = ["LabError", "Run", "open_run"]

# bitsandbytes warns at import that an optional package is missing and asks for it; nothing here needs it.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
