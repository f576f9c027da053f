"""Policies, conditions and settings as people mistype them: taken, or a ValueError in one line.

python -m pytest tests/fuzz/test_fuzz_words.py --fuzz-examples=20000
"""

import hypothesis
from hypothesis import strategies as st
from mutations import ODD_NUMBERS, few

from bvit import config as config_lib
from bvit import rules
from bvit.image.conditions import CONDITIONS, MIXTURES, WITH_ARGUMENT, drawn_by, expand, parts
from bvit.tokens import parse
from bvit.tokens.grammar import POLICIES
from configs.vit_mask import get_config

# A longer message fills the screen.
MOST_SHOWN = 1000
SETTINGS = config_lib.flatten(config_lib.to_dict(get_config()))
NUMBERS = st.one_of(
    st.integers().map(str),
    st.floats().map(str),
    st.sampled_from([*map(str, ODD_NUMBERS), "1e400", "²", "٣", "0x10", "1_0", "-0", "9" * 5000]),
)


def text_of(*names):
    """Names, numbers and what stands between them, in any order; or any text."""
    pieces = st.sampled_from([*names, ":", "@", "+", "=", ",", " ", "threshold", "\n", "\0"])
    return st.lists(pieces | NUMBERS | st.text(max_size=3), max_size=8).map("".join) | st.text()


def outcome(function, *arguments):
    try:
        function(*arguments)
    except ValueError as error:
        assert 0 < len(str(error)) < MOST_SHOWN
        assert "\n" not in str(error)
        return "refused"
    return "taken"


@few(300)
@hypothesis.given(text_of(*POLICIES))
@hypothesis.example("tome:" + "9" * 5000)
def test_policies(text):
    hypothesis.event(outcome(lambda: hash(parse(text).label)))


@few(300)
@hypothesis.given(text_of(*CONDITIONS, *MIXTURES, *WITH_ARGUMENT, "defocus_blur"))
@hypothesis.example("stored:" * 5000 + "blur")
@hypothesis.example("imagenet_c:defocus_blur:" + "9" * 5000)
def test_conditions(text):
    hypothesis.event(outcome(lambda: [(parts(name), drawn_by(name)) for name in expand([text])]))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=2),
)


@few(300)
@hypothesis.given(st.sampled_from([*SETTINGS, "model.stem", "nothing"]), VALUES)
def test_settings(key, value):
    hypothesis.event(outcome(rules.check, SETTINGS | {key: value}))


@few(200)
@hypothesis.given(text_of("data", "model"))
def test_arguments_of_a_config_file(text):
    hypothesis.event(outcome(lambda: config_lib.parse_arguments(text, data="photos", model="vit")))
    assert all(config_lib.words(text))
