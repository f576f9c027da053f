"""Which runs started from the same weights, or from weights that differ only in their seed.

Often each seed starts from an earlier training of the same seed, or a run evaluates an earlier one
again. Then `init_from` differs between runs although only the seed does.
"""

import dataclasses
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class Start:
    """Where a run's weights came from.

    Attributes:
      name: its `init_from`; "" if they were drawn.
      seed: the run's own.
      ancestors: for the run that it started from, the run that this one started from, and so on:
        the settings that distinguish runs, as text, and the seed. Empty if it started from no run.
    """

    name: str
    seed: int
    ancestors: tuple[tuple[str, int], ...] = ()

    def like(self, other: "Start") -> bool:
        """Whether two runs started from the same weights, or each from weights of its own seed.

        Two ancestors may also share one seed: weights that all seeds were fine-tuned from.
        """
        if self.name == other.name:
            return True
        if not self.ancestors or len(self.ancestors) != len(other.ancestors):
            return False
        return all(
            mine == its and (a == b or (a, b) == (self.seed, other.seed))
            for (mine, a), (its, b) in zip(self.ancestors, other.ancestors, strict=True)
        )


def names(starts: Sequence[Start]) -> list[str]:
    """A name for the start of each run; runs that started alike have the same."""
    alike: list[list[Start]] = []
    for start in starts:
        kin = next((one for one in alike if all(start.like(other) for other in one)), None)
        if kin is None:
            alike.append([start])
        elif start not in kin:
            kin.append(start)
    named = {start: _name(kin) for kin in alike for start in kin}
    return [named[start] for start in starts]


def _name(kin: Sequence[Start]) -> str:
    return kin[0].name + (" …" if len({start.name for start in kin}) > 1 else "")
