"""Read the facts here. A probe that fails leaves its default: the doctor must not be the next patient."""

from __future__ import annotations

from finelab.doctor.facts import Facts
from finelab.doctor.gather import capacity, card, hub, packages, system
from finelab.recipe import Recipe


def gather(recipe: Recipe) -> Facts:
    """Everything that the rules look at, for a run of `recipe` on this machine; takes a few seconds."""
    tokens = hub.tokens()
    answer = hub.asking(tokens.used)  # meanwhile torch is imported
    driver = card.ask_driver()  # before torch takes memory of the card
    torch = packages.torch_facts()
    profile, problem = capacity.profile_for(recipe)
    return Facts(
        **system.facts(profile),
        **packages.facts(),
        **torch,
        override_problem=problem,
        **card.facts(driver, packages.first_card()),
        **capacity.facts(recipe, profile),
        **tokens.facts(),
        **answer(),
    )
