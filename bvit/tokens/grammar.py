"""Reads a policy as people type it: `name`, `name:budget`, `name:budget@block`."""

import dataclasses
import difflib
import math
import re
from typing import Any

from bvit.image.checks import short
from bvit.image.focus_measures import DEFAULT_MEASURE, own_threshold
from bvit.tokens.atc import Atc
from bvit.tokens.cluster import Cluster
from bvit.tokens.drop import Drop
from bvit.tokens.evit import Evit
from bvit.tokens.keep import Keep
from bvit.tokens.merge import Merge
from bvit.tokens.pitome import Pitome
from bvit.tokens.policy import Policy
from bvit.tokens.pool import Pool
from bvit.tokens.random import Random
from bvit.tokens.stages import StagedPolicy
from bvit.tokens.tome import Tome
from bvit.tokens.zero import Zero

# A new policy is a file beside this one, and a row here.
POLICIES: dict[str, type[Policy]] = {
    policy.name: policy
    for policy in (Keep, Zero, Drop, Pool, Random, Merge, Cluster, Tome, Pitome, Atc, Evit)
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
    - The block in which tokens are reduced behind an @, counted from 1: `drop:0.5@2`. Policies that
      reduce in stages take several, `cluster:0.5@5+9`, and what each of them leaves, as tokens or
      shares of the patches, `cluster:0.4+0.15@5+9`.
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
        raise ValueError(f"policy must be one of {', '.join(POLICIES)}: got {short(name)}{hint}")
    policy = POLICIES[name]
    fields = {field.name: field for field in dataclasses.fields(policy)}
    configured: dict[str, Any] = {"score": score, "zero_at": zero_at}
    options = {key: value for key, value in configured.items() if key in fields}
    staged = issubclass(policy, StagedPolicy)
    if at:
        _check_takes(policy, fields, "at", text[text.index("@") :], text)
        if len(at) > 1 and not staged:
            raise ValueError(
                f"policy {name} acts in one block, as {name}:0.5@2: got {short(text)}."
            )
        options["at"] = at if staged else at[0]
    for part in parts:
        key, equals, value = part.partition("=")
        if key == "threshold":
            _check_takes(policy, fields, key, part, text)
            options[key] = _number(value, text) if equals else threshold
        else:
            _check_takes(policy, fields, "budget", part, text)
            if "budget" in options:
                raise ValueError(f"a policy has one budget, as {name}:0.5: got {short(text)}.")
            each = tuple(_budget(one, name, text) for one in part.split("+"))
            if len(each) > 1 and not staged:
                raise ValueError(f"policy {name} has one budget, as {name}:0.5: got {short(text)}.")
            options["budget"] = each if len(each) > 1 else each[0]
    if policy is Zero and not parts:
        options |= _paper(score, threshold)
    required = "budget" in fields and fields["budget"].default is dataclasses.MISSING
    if required and "budget" not in options:
        raise ValueError(
            f"policy {name} needs a budget: a number of tokens, as {name}:8, or a share of the "
            f"operations of keep, as {name}:0.5."
        )
    return policy(**options)


def _split(text: str) -> tuple[str, list[str], tuple[int, ...]]:
    """Name, what stands behind colons, and the blocks behind @."""
    if not isinstance(text, str):
        raise ValueError(f"a policy is text, as keep or cluster:0.5: got {short(text)}.")
    head, mark, blocks = text.partition("@")
    if mark and not re.fullmatch(r"[0-9]+(\+[0-9]+)*", blocks):
        raise ValueError(
            "behind @ stands the number of a block, as cluster:0.5@4, or several, as "
            f"cluster:0.5@5+9: got {short(blocks)} in {short(text)}."
        )
    name, *parts = head.split(":")
    return name, parts, tuple(map(int, blocks.split("+"))) if mark else ()


def _check_takes(
    policy: type[Policy], fields: dict[str, Any], field: str, part: str, text: str
) -> None:
    if field in fields:
        return
    what = {"at": "block"}.get(field, field)
    example = policy.name + ":0.5" * ("budget" in fields)
    raise ValueError(
        f"policy {policy.name} takes no {what}: got {short(part)} in {short(text)}; use {example}."
    )


def _budget(part: str, name: str, text: str) -> int | float:
    if re.fullmatch(r"[0-9]+", part):
        return int(part)
    try:
        return _number(part, text)
    except ValueError:
        raise ValueError(
            f"a policy's budget is a whole number of tokens, as {name}:32, or a share of the "
            f"operations of keep, as {name}:0.5: got {short(part)} in {short(text)}."
        ) from None


def _number(text: str, whole: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"expected a number, as threshold=0.1: got {short(text)} in {whole!r}.")
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
