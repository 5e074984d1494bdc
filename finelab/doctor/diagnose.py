"""All rules, and what they find."""

from __future__ import annotations

import dataclasses

from finelab.doctor import capacity, card, hub, packages, system
from finelab.doctor.facts import Facts
from finelab.doctor.finding import SEVERITIES, Finding

RULES = (*system.RULES, *packages.RULES, *card.RULES, *capacity.RULES, *hub.RULES)


def diagnose(facts: Facts) -> list[Finding]:
    """The findings of all rules, the gravest first; each carries the name of its rule."""
    found = [
        dataclasses.replace(finding, rule=rule.__name__)
        for rule in RULES
        if (finding := rule(facts)) is not None
    ]
    return sorted(found, key=lambda finding: SEVERITIES.index(finding.severity))
