"""What people type: every policy read back from its label, and errors that name the fix."""

import dataclasses

import pytest

from bvit.tokens import (
    POLICIES,
    Atc,
    Cluster,
    Drop,
    Evit,
    Keep,
    Merge,
    Pitome,
    Pool,
    Random,
    Tome,
    Zero,
    parse,
)

READ = {
    "keep": Keep(),
    "zero": Zero(),
    "zero:20": Zero(20, "laplacian"),
    "zero:0.25": Zero(0.25, "laplacian"),
    "zero:threshold": Zero(score="laplacian"),
    "zero:threshold=0.2": Zero(score="laplacian", threshold=0.2),
    "drop:32": Drop(32),
    "drop:0.5@2": Drop(0.5, 2),
    "pool:20": Pool(20),
    "random:0.5": Random(0.5),
    "merge:31": Merge(31),
    "merge:1.0": Merge(1.0),
    "cluster:20": Cluster(20),
    "cluster:0.5@3": Cluster(0.5, (3,)),
    "cluster:0.4+0.15@5+9": Cluster((0.4, 0.15), (5, 9)),
    "pitome:0.5": Pitome(0.5),
    "atc:0.5": Atc(0.5),
    "evit:40": Evit(40),
    "tome:8": Tome(8),
    "tome:0.5": Tome(0.5),
}


@pytest.mark.parametrize("text", READ)
def test_a_policy_is_read_and_its_label_reads_back(text):
    policy = parse(text)
    assert policy == READ[text]
    assert policy.label == text and parse(policy.label) == policy
    assert hash(policy) == hash(READ[text])


def test_every_policy_is_read_somewhere():
    assert {type(policy) for policy in READ.values()} == set(POLICIES.values())


def test_what_is_configured_goes_to_the_policies_that_take_it():
    assert parse("drop:9", score="entropy") == Drop(9, score="entropy")
    assert parse("random:9", score="entropy") == Random(9)
    zero = parse("zero:threshold", score="reblur", threshold=5.0, zero_at="normalized")
    assert zero == Zero(None, "reblur", 5.0, "normalized")


def test_a_configured_threshold_is_one_of_the_configured_measure():
    for threshold, label in ((None, "zero"), (50.0, "zero:threshold=50")):
        zero = parse("zero", score="laplacian", threshold=threshold)
        assert (zero.label, zero.score, zero.threshold) == (label, None, threshold)
    with pytest.raises(ValueError, match="score=laplacian.*zero:threshold"):
        parse("zero", score="relative", threshold=0.3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("drop", "needs a budget.*drop:0.5"),
        ("tome", "needs a budget.*tome:8"),
        ("drop:half", "whole number of tokens, as drop:32"),
        ("drop:", "whole number of tokens, as drop:32"),
        ("drop:nan", "whole number of tokens, as drop:32"),
        ("drop:1.5", r"share of the operations in \(0, 1\]: got 1.5"),
        ("drop:-0.5", "share of the operations"),
        ("drop:0", "whole number from 1|whole number of tokens"),
        ("drop:0.5:0.3", "one budget, as drop:0.5"),
        ("dropp:0.5", "did you mean 'drop'"),
        ("keep:0.5", "keep takes no budget: got '0.5' in 'keep:0.5'; use keep"),
        ("keep:threshold", "takes no threshold"),
        ("drop:32:threshold", "takes no threshold: .*use drop:0.5"),
        ("tome:8@2", "takes no block: got '@2'"),
        ("cluster:0.5@", "behind @ stands the number of a block, as cluster:0.5@4"),
        ("cluster:0.5@last", "behind @ stands the number of a block"),
        ("zero:threshold=low", "expected a number, as threshold=0.1"),
        ("zero:5:threshold=0.1", "budget or a threshold, not both"),
    ],
)
def test_what_is_no_policy_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse(text)


def test_settings_are_checked():
    with pytest.raises(ValueError, match="did you mean relative"):
        parse("drop:8", score="relativ")
    with pytest.raises(ValueError, match="pixels, normalized"):
        parse("zero", zero_at="pixel")
    with pytest.raises(dataclasses.FrozenInstanceError):
        parse("keep").name = "drop"
