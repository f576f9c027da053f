import pytest
from absl import flags

from bvit import arguments


@pytest.fixture
def parser():
    parser = arguments.Parser("python -m bvit.something", "Does something.")
    parser.add_argument("--format", choices=["csv", "html"])
    parser.add_argument("--to")
    parser.add_argument("runs", nargs="+", metavar="RUN")
    return parser


@pytest.mark.parametrize(
    "wrong, message",
    [
        (["--formt=csv", "run"], "no flag is called --formt; did you mean --format?"),
        (["run", "--zzz"], "there are --format, --to, --help."),
        (["--format=cvs", "run"], "invalid choice: 'cvs'"),
        ([], "required: RUN"),
    ],
)
def test_what_is_wrong_is_told_in_a_line(parser, capsys, wrong, message):
    with pytest.raises(SystemExit) as stop:
        parser.parse_args(wrong)
    told = capsys.readouterr().err
    assert stop.value.code == 2
    assert message in told and told.startswith("bvit: ") and told.count("\n") == 1


def test_what_is_right_is_read(parser):
    options = parser.parse_args(["--format", "html", "a", "b"])
    assert options.format == "html" and options.runs == ["a", "b"]


def test_flags_of_absl_are_told_in_the_same_way(capsys, monkeypatch):
    known = flags.FlagValues()
    flags.DEFINE_integer("repeats", 3, "How often.", flag_values=known)
    monkeypatch.setattr(arguments.flags, "FLAGS", known)
    assert arguments.parse_flags(["command", "--repeats=4"]) == ["command"] and known.repeats == 4
    for wrong, message in (("--repeat=4", "Did you mean: repeats"), ("--repeats=x", "--repeats=x")):
        with pytest.raises(SystemExit) as stop:
            arguments.parse_flags(["command", wrong])
        told = capsys.readouterr().err
        assert stop.value.code == 2
        assert message in told and told.startswith("bvit: ") and told.count("\n") == 1
