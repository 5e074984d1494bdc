"""The first cell of every notebook: which run, which machine, what it dictates and why."""

from __future__ import annotations

from finelab.machine import Profile, versions
from finelab.run import Run


def header(run: Run, profile: Profile) -> None:
    """Print the run, the versions, and each machine-dependent setting with its reason."""
    print(f"run      {run.name}, recipe {run.recipe.name}, in {run.folder}")
    print("versions " + ", ".join(f"{name} {version}" for name, version in versions().items()))
    print(profile.describe())
