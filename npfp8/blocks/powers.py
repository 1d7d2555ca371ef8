"""The rules of scales that are powers of two (OCP MX), by name.

The rules of real arithmetic are in :mod:`npfp8.blocks.exponents`, those of the parties in
:mod:`npfp8.blocks.parties`.
"""

from __future__ import annotations

from npfp8.blocks.exponents import PLAIN_RULES, PowerRule, power_codes
from npfp8.blocks.parties import PARTY_RULES

__all__ = ["POWER_RULES", "PowerRule", "power_codes"]

#: The rules of real arithmetic, then those of the parties.
POWER_RULES = {rule.name: rule for rule in (*PLAIN_RULES, *PARTY_RULES)}
