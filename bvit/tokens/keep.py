"""`keep`: every patch is a token, and every token is computed."""

import dataclasses
from typing import ClassVar

from bvit.tokens.policy import Policy


@dataclasses.dataclass(frozen=True)
class Keep(Policy):
    """Computes every token: the baseline of all comparisons."""

    name: ClassVar[str] = "keep"
    pixels_only: ClassVar[bool] = True
