"""The files of a run, cut at any byte or changed: read, or an error that names the file.

python -m pytest tests/fuzz/test_fuzz_runs.py --fuzz-examples=20000
"""

import json

import hypothesis
import pytest
from hypothesis import strategies as st
from mutations import broken, few

from bvit import config as config_lib
from bvit.report.__main__ import read_run
from bvit.run import Run
from configs.vit_mask import get_config

CONFIG = config_lib.to_dict(get_config())
ROW = {
    "condition": "blur",
    "policy": "keep",
    "tokens": 64.0,
    "top1": 0.5,
    "top5": 0.75,
    "n": 1000,
    "ci95": [0.47, 0.53],
    "difference": None,
    "difference_ci95": None,
    "gflops": 1.0,
    "images_per_s": 10.0,
}
RESULTS = {
    "config": CONFIG,
    "step": 10,
    "seed": 0,
    "parameters": 1234,
    "ancestors": [],
    "rows": [ROW, ROW | {"policy": "zero", "difference": -0.1, "difference_ci95": [-0.2, 0.0]}],
}
LINES = [{"step": 10 * i, "loss": 1 / (1 + i), "images_per_s": None} for i in range(4)]
FILES = {
    "config.json": json.dumps(CONFIG, indent=2),
    "results.json": json.dumps(RESULTS, indent=2),
    "metrics.jsonl": "".join(json.dumps(line) + "\n" for line in LINES),
    "classes.json": json.dumps(["cat", "dog"], indent=2),
}
# What reads each file, as the commands do.
READERS = {
    "config.json": lambda path: (Run(path).config, Run.begin(path, CONFIG).close()),
    "results.json": read_run,
    "metrics.jsonl": lambda path: Run(path).metrics,
    "classes.json": lambda path: Run(path).class_names,
}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("runs") / "run"


def read(path, name, content):
    """Reads a file of a run whose other files are whole; says what happened."""
    path.mkdir(exist_ok=True)
    for other, text in FILES.items():
        (path / other).write_text(text)
    (path / name).write_bytes(content)
    try:
        found = READERS[name](path)
    except ValueError as error:
        assert str(path) in str(error) and len(str(error)) < 2000
        return "refused"
    if name == "metrics.jsonl":
        assert all(isinstance(line["step"], int) for line in found)
    if name == "classes.json":
        assert all(isinstance(one, str) for one in found)
    return "read"


@pytest.mark.parametrize("name", FILES)
def test_whole_it_is_read(path, name):
    assert read(path, name, FILES[name].encode()) == "read"


@pytest.mark.parametrize("name", FILES)
@few(40)
@hypothesis.given(st.data())
def test_cut_at_any_byte(path, name, data):
    content = FILES[name].encode()
    end = data.draw(st.integers(0, len(content) - 1))
    outcome = read(path, name, content[:end])
    hypothesis.event(outcome)
    if name == "metrics.jsonl":  # a killed run goes on from the lines that are whole
        assert Run(path).metrics == LINES[: content[:end].count(b"}")]


ODD_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)
# Too many digits, too deep, no text, and values where an object should be.
ODD_FILES = (b"9" * 5000, b"[" * 10**5, b"\xff\xfe", b"null\n1\n[]\n", b'{"step": "one"}\n')


@st.composite
def changed(draw, name):
    """A file of a run with one of its values replaced, or left out, wherever it lies."""
    text = FILES[name]
    values = [json.loads(line) for line in (text.splitlines() if "jsonl" in name else [text])]
    place, key = values, draw(st.integers(0, len(values) - 1))
    while isinstance(place[key], dict | list) and place[key] and draw(st.integers(0, 4)):
        place = place[key]
        key = draw(st.sampled_from(list(place) if isinstance(place, dict) else range(len(place))))
    if draw(st.booleans()):
        place[key] = draw(ODD_VALUES)
    else:
        del place[key]
    return "\n".join(map(json.dumps, values)).encode()


@pytest.mark.parametrize("name", FILES)
@few(80)
@hypothesis.given(st.data())
def test_changed(path, name, data):
    content = data.draw(broken([FILES[name].encode()]) | changed(name) | st.sampled_from(ODD_FILES))
    hypothesis.event(read(path, name, content))
