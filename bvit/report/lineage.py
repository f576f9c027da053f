"""Runs that started from the weights of other runs: which of them differ only in their seeds.

Trainings of several seeds often start each from a training of its own seed, and are evaluated
again by runs that start from them. Then `init_from` differs, though nothing but the seed does.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


@dataclasses.dataclass(frozen=True)
class Start:
    """Where a run's weights came from.

    Attributes:
      name: its `init_from`; "" where they were drawn.
      seed: the run's own.
      ancestors: of the run that it started from, of the one that did that from, …: the settings
        that tell runs apart as text, and the seed. Empty where it started from no run.
    """

    name: str
    seed: int
    ancestors: tuple[tuple[str, int], ...] = ()

    def like(self, other: "Start") -> bool:
        """Whether two runs started alike: from the same, or from runs of their own seeds.

        Two ancestors may also be of one seed, as the weights that all seeds were fine-tuned from.
        """
        if self.name == other.name:
            return True
        if not self.ancestors or len(self.ancestors) != len(other.ancestors):
            return False
        return all(
            told == others and (seed == its or (seed, its) == (self.seed, other.seed))
            for (told, seed), (others, its) in zip(self.ancestors, other.ancestors, strict=True)
        )


def read(init_from: str) -> list[dict[str, Any]]:
    """The configs of the run that `init_from` names, of the one that this started from, and so on.

    They are read when a run ends, for its results: folders are moved later.
    """
    configs, seen = [], set()
    saved = Path(init_from).expanduser() / "config.json"
    while init_from and saved.exists() and saved.resolve() not in seen:
        seen.add(saved.resolve())
        configs.append(json.loads(saved.read_text()))
        init_from = configs[-1]["init_from"]
        saved = Path(init_from).expanduser() / "config.json"
    return configs


def names(starts: Sequence[Start]) -> list[str]:
    """A name for where each run started, the same for all that started alike."""
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
