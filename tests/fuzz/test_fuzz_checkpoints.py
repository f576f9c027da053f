"""Damaged checkpoints are restored or refused: nothing runs, and memory is bounded.

python -m pytest tests/fuzz/test_fuzz_checkpoints.py --fuzz-examples=2000
"""

import contextlib
import json
import tempfile
from pathlib import Path

import hypothesis
import jax
import numpy as np
import pytest
from hypothesis import strategies as st
from mutations import ODD_NUMBERS, broken, few
from watched import fixture

from bvit.checkpoint import CheckpointError, Checkpoints
from bvit.sharding import make_mesh, replicated

SHAPE = 4, 2000  # large enough for a file of its own


def read(files):
    """Restores the variables of a checkpoint, alone in a folder; says what happened."""
    place = replicated(make_mesh())
    wanted = {"params": {"kernel": jax.ShapeDtypeStruct(SHAPE, np.float32, sharding=place)}}
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        for name, data in files.items():
            path = Path("checkpoints", name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        outcome = "restored"
        try:
            with contextlib.closing(Checkpoints(Path("checkpoints"))) as checkpoints:
                step, variables = checkpoints.restore_variables(wanted)
        except CheckpointError as error:
            assert "checkpoint" in str(error)
            outcome = "refused"
        else:
            assert step == 1 and variables["params"]["kernel"].shape == SHAPE
        assert [one.name for one in Path().iterdir()] == ["checkpoints"], "something ran"
    return outcome


watched = fixture(read)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The files of a checkpoint, by their names."""
    folder = tmp_path_factory.mktemp("whole") / "checkpoints"
    kernel = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    state = {"params": {"kernel": kernel}, "model_state": {}, "ema_params": None}
    with contextlib.closing(Checkpoints(folder)) as checkpoints:
        checkpoints.save(1, state | {"step": 1})
    found = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    return dict(sorted(found.items()))


ODD_JSON = st.recursive(
    st.none() | st.booleans() | st.sampled_from(ODD_NUMBERS) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


@st.composite
def changed(draw, data):
    """A JSON file with one of its values replaced, wherever it lies."""
    top = [json.loads(data)]
    place, key = top, 0
    while isinstance(place[key], dict | list) and place[key] and draw(st.integers(0, 4)):
        place = place[key]
        key = draw(st.sampled_from(list(place) if isinstance(place, dict) else range(len(place))))
    place[key] = draw(ODD_JSON)
    return json.dumps(top[0]).encode()


def is_json(data):
    try:
        json.loads(data)
    except ValueError:
        return False
    return True


def test_what_is_broken_was_readable(watched, files):
    assert len(files) > 8 and "1.seal" in files
    assert watched(files) == "restored"
    assert watched(files | {"1.seal": b"[]"}) == "refused"


@few(40)
@hypothesis.given(st.data())
def test_a_damaged_checkpoint_is_restored_or_refused(watched, files, data):
    files = dict(files)
    seal = files.pop("1.seal")
    if data.draw(st.booleans()):
        files["1.seal"] = data.draw(broken([seal]) | changed(seal))
    else:  # unsealed, the damage reaches orbax and tensorstore
        name = data.draw(st.sampled_from(list(files)))
        whole = files[name]
        files[name] = data.draw(
            broken([whole]) | (changed(whole) if is_json(whole) else st.nothing())
        )
        hypothesis.note(name)
    hypothesis.event(watched(files))
