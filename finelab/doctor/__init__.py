"""What is wrong with a machine: rules, each a pure function from facts to a finding or None.

`facts.py` is what the rules look at; `gather/` reads it here, a file for each room of rules beside it.
"""

from finelab.doctor.diagnose import RULES, diagnose
from finelab.doctor.facts import Card, Facts
from finelab.doctor.finding import Finding
from finelab.doctor.gather import gather

__all__ = ["RULES", "Card", "Facts", "Finding", "diagnose", "gather"]
