import pytest

from bvit.report.lineage import Start, names


def starts(*described):
    """From (name, own seed, seeds of the runs before it)."""
    return [
        Start(name, seed, tuple((f"generation {i}", s) for i, s in enumerate(before)))
        for name, seed, before in described
    ]


@pytest.mark.parametrize(
    "described",
    [
        [("base0", 0, [0]), ("base1", 1, [1]), ("base2", 2, [2])],  # each from its own seed
        [("tuned0", 0, [0, 0]), ("tuned1", 1, [1, 0])],  # both fine-tuned from the base of seed 0
        [("base0", 0, [0]), ("again", 1, [0])],  # the same training in two folders
        [("w.npz", 0, []), ("w.npz", 1, [])],
        [("base", 0, []), ("base", 1, [0])],  # the first is older than what is written down now
        [("", 0, []), ("", 1, [])],
    ],
)
def test_runs_that_differ_in_their_seeds_alone_started_alike(described):
    found = names(starts(*described))
    several = len({name for name, *_ in described}) > 1
    assert set(found) == {described[0][0] + (" …" if several else "")}


@pytest.mark.parametrize(
    "described",
    [
        [("base0", 0, [0]), ("base1", 0, [1])],  # other weights, evaluated with one seed
        [("base0", 0, [0]), ("base2", 1, [2])],
        [("base0", 0, [0]), ("tuned1", 1, [1, 1])],
        [("w0.npz", 0, []), ("w1.npz", 1, [])],
    ],
)
def test_others_did_not(described):
    assert names(starts(*described)) == [name for name, *_ in described]


def test_other_settings_of_the_run_before_are_another_start():
    one, other = Start("a", 0, (("wide", 0),)), Start("b", 1, (("deep", 1),))
    assert names([one, other, one]) == ["a", "b", "a"]


def test_a_seed_is_not_taken_for_two_starts_at_once():
    """The third is like the first and like the second, which are not alike."""
    first, second, third = starts(("a", 0, [0]), ("b", 0, [1]), ("c", 1, [1]))
    assert names([first, second, third]) == ["a …", "b", "a …"]
    assert names([third, second, first]) == ["c …", "c …", "a"]
