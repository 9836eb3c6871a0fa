"""Pair methods by name (torch only)."""

from famus_hf.core.pair_methods.base import PairMethod
from famus_hf.core.pair_methods.co_teaching import CoTeaching
from famus_hf.core.pair_methods.decoupling import Decoupling
from famus_hf.core.pair_methods.incv import INCV
from famus_hf.core.pair_methods.jocor import JoCoR

PAIR_METHODS: dict[str, type[PairMethod]] = {
    "co-teaching": CoTeaching, "jocor": JoCoR, "decoupling": Decoupling, "incv": INCV
}  # fmt: skip
