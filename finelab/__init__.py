"""finelab: fine-tune a small Llama on your own GPU, and know that it worked."""

from finelab.errors import LabError
from finelab.run import Run, open_run

__version__ = "0.1.0"
__all__ = ["LabError", "Run", "open_run"]
