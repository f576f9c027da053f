"""Reads a policy as people type it: `name`, `name:budget`, `name:budget@block`."""

import dataclasses
import difflib
import math
import re
from typing import Any

from bvit.image.focus_measures import DEFAULT_MEASURE, own_threshold
from bvit.tokens.cluster import Cluster
from bvit.tokens.drop import Drop
from bvit.tokens.keep import Keep
from bvit.tokens.merge import Merge
from bvit.tokens.policy import Policy
from bvit.tokens.pool import Pool
from bvit.tokens.random import Random
from bvit.tokens.tome import Tome
from bvit.tokens.zero import Zero

# A new policy is a file beside this one, and a row here.
POLICIES: dict[str, type[Policy]] = {
    policy.name: policy for policy in (Keep, Zero, Drop, Pool, Random, Merge, Cluster, Tome)
}
# Fields that are set by the configuration rather than typed.
CONFIGURED = ("score", "zero_at")


def parse(
    text: str,
    *,
    score: str = DEFAULT_MEASURE,
    threshold: float | None = None,
    zero_at: str = "pixels",
) -> Policy:
    """Reads a policy: its name, then what else it needs, in any order.

    - A budget behind a colon: a whole number of tokens, `drop:98` (for `tome`, the pairs that each
      block merges), or a share of the operations of `keep`, `drop:0.5`.
    - The block in which tokens are reduced behind an @, counted from 1: `cluster:0.5@2`.
    - For `zero`, `threshold` or `threshold=0.1`: go by the focus measure `score`, from its own
      threshold or from this one. `zero` alone is the paper's experiment: the variance of the
      Laplacian must be at least 100.

    Args:
      text: the policy.
      score: the focus measure that patches are ranked by, a name in
        `bvit.image.focus_measures.FOCUS_MEASURES`.
      threshold: for `zero:threshold`; for `zero` if `score` is "laplacian". None: the measure's
        own.
      zero_at: where `zero` writes zeros, see `bvit.tokens.Zero`.

    Returns:
      The policy: frozen, hashable, static under jit. Whether a ViT can follow it is checked when
      it meets one.

    Raises:
      ValueError: for an unknown policy, or for what this policy does not take.
    """
    name, parts, at = _split(text)
    if name not in POLICIES:
        near = difflib.get_close_matches(name, POLICIES, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise ValueError(f"policy must be one of {', '.join(POLICIES)}: got {name!r}{hint}")
    policy = POLICIES[name]
    fields = {field.name: field for field in dataclasses.fields(policy)}
    configured: dict[str, Any] = {"score": score, "zero_at": zero_at}
    options = {key: value for key, value in configured.items() if key in fields}
    if at is not None:
        _check_takes(policy, fields, "at", f"@{at}", text)
        options["at"] = at
    for part in parts:
        key, equals, value = part.partition("=")
        if key == "threshold":
            _check_takes(policy, fields, key, part, text)
            options[key] = _number(value, text) if equals else threshold
        else:
            _check_takes(policy, fields, "budget", part, text)
            if "budget" in options:
                raise ValueError(f"a policy has one budget, as {name}:0.5: got {text!r}.")
            options["budget"] = _budget(part, name, text)
    if policy is Zero and not parts:
        options |= _paper(score, threshold)
    required = "budget" in fields and fields["budget"].default is dataclasses.MISSING
    if required and "budget" not in options:
        raise ValueError(
            f"policy {name} needs a budget: a number of tokens, as {name}:8, or a share of the "
            f"operations of keep, as {name}:0.5."
        )
    return policy(**options)


def _split(text: str) -> tuple[str, list[str], int | None]:
    """Name, what stands behind colons, and the block behind @."""
    head, mark, block = text.partition("@")
    if mark and not re.fullmatch(r"[0-9]+", block):
        raise ValueError(
            f"behind @ stands the number of a block, as cluster:0.5@2: got {block!r} in {text!r}."
        )
    name, *parts = head.split(":")
    return name, parts, int(block) if mark else None


def _check_takes(
    policy: type[Policy], fields: dict[str, Any], field: str, part: str, text: str
) -> None:
    if field in fields:
        return
    what = {"at": "block"}.get(field, field)
    example = policy.name + ":0.5" * ("budget" in fields)
    raise ValueError(
        f"policy {policy.name} takes no {what}: got {part!r} in {text!r}; use {example}."
    )


def _budget(part: str, name: str, text: str) -> int | float:
    if re.fullmatch(r"[0-9]+", part):
        return int(part)
    try:
        return _number(part, text)
    except ValueError:
        raise ValueError(
            f"a policy's budget is a whole number of tokens, as {name}:32, or a share of the "
            f"operations of keep, as {name}:0.5: got {part!r} in {text!r}."
        ) from None


def _number(text: str, whole: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"expected a number, as threshold=0.1: got {text!r} in {whole!r}.")
    return number


def _paper(score: str, threshold: float | None) -> dict[str, Any]:
    """The paper's experiment; a threshold that is configured must be one of the Laplacian."""
    if threshold is not None and score != "laplacian":
        raise ValueError(
            f"threshold={threshold:g} is one of the focus measure {score!r}, but policy zero goes "
            "by the variance of the Laplacian: use score=laplacian with it, or policy "
            f"zero:threshold to go by {score}, whose own threshold is {own_threshold(score):g}."
        )
    return {"score": None, "threshold": threshold}
