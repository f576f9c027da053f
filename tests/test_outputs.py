"""What commands write: whole, as the umask says, and over nothing but what they wrote."""

import json
import os
import shutil

import pytest
from absl import flags
from absl.testing import flagsaver
from matplotlib.figure import Figure
from trained import run_directory

from bvit import benchmark, outputs
from bvit.report import __main__ as report
from bvit.studies import focus_maps

MINE = b"mine, and of no other"


@pytest.mark.parametrize("name", ["a.png", "a.pdf", "a.svg", "a"])
def test_a_figure_is_replaced_and_what_someone_else_put_there_is_kept(tmp_path, name):
    path = tmp_path / name
    for _ in range(2):
        outputs.write_figure(path, Figure(), dpi=50)
    (written,) = tmp_path.iterdir()
    assert outputs.is_marked(written)
    written.write_bytes(MINE)
    with pytest.raises(ValueError, match="exists"):
        outputs.write_figure(path, Figure(), dpi=50)
    assert written.read_bytes() == MINE and list(tmp_path.iterdir()) == [written]


def test_a_link_is_followed(tmp_path):
    (tmp_path / "mine.md").write_bytes(MINE)
    (tmp_path / "link.md").symlink_to("mine.md")
    with pytest.raises(ValueError, match="exists"):
        outputs.write(tmp_path / "link.md", b"new")
    (tmp_path / "dangling.md").symlink_to("new.md")
    outputs.write(tmp_path / "dangling.md", b"new")
    assert (tmp_path / "new.md").read_bytes() == b"new"


def test_a_file_that_appears_meanwhile_is_kept(tmp_path, monkeypatch):
    path, link = tmp_path / "a.md", os.link

    def late(*names):
        path.write_bytes(MINE)
        link(*names)

    monkeypatch.setattr(os, "link", late)
    with pytest.raises(ValueError, match="meanwhile"):
        outputs.write(path, b"new")
    assert path.read_bytes() == MINE and list(tmp_path.iterdir()) == [path]


def test_a_file_system_without_hard_links_will_do(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError("not supported")

    monkeypatch.setattr(os, "link", refuse)
    outputs.write(tmp_path / "a.md", b"new")
    assert (tmp_path / "a.md").read_bytes() == b"new" and len(list(tmp_path.iterdir())) == 1


def test_permissions_are_those_of_new_files(tmp_path):
    umask = os.umask(0o027)
    try:
        outputs.write(tmp_path / "a.md", b"new")
    finally:
        os.umask(umask)
    assert (tmp_path / "a.md").stat().st_mode & 0o777 == 0o640


def test_a_pipe_is_written_to(tmp_path):
    outputs.write(tmp_path.joinpath("/dev/null"), b"new")


@pytest.mark.parametrize("name", ["no/such/folder.md", "."])
def test_a_place_without_a_file_is_told_before_the_work(tmp_path, name):
    with pytest.raises(ValueError, match="folder"):
        outputs.check(tmp_path / name)


@pytest.fixture
def tell(capsys):
    """Runs a command that must fail; returns its line."""

    def tell(main, *arguments):
        with pytest.raises(SystemExit, match="2"):
            main([str(argument) for argument in arguments])
        return capsys.readouterr().err.splitlines()[-1]

    return tell


@pytest.mark.parametrize("name", ["r.md", "r.html", "r.csv"])
def test_a_report_is_written_over_itself_alone(tmp_path, tell, name):
    path = tmp_path / name
    report.main([str(run_directory()), f"--to={path}"])
    if name != "r.csv":  # has no room for a mark
        report.main([str(run_directory()), f"--to={path}"])
    path.write_bytes(MINE)
    assert "exists" in tell(report.main, run_directory(), f"--to={path}")
    assert path.read_bytes() == MINE


@pytest.mark.parametrize("flag", ["--sigma", "--tradeoff"])
def test_nor_do_its_plots_replace_a_photograph(tmp_path, tell, flag):
    path = tmp_path / "photograph.png"
    path.write_bytes(MINE)
    assert "exists" in tell(report.main, run_directory(), f"{flag}={path}")
    assert path.read_bytes() == MINE


def test_a_run_keeps_its_results_whatever_a_report_is_told(tmp_path, tell):
    run = shutil.copytree(run_directory(), tmp_path / "run")
    for name in ("results.json", "config.json"):
        before = (run / name).read_bytes()
        assert "exists" in tell(report.main, run, f"--to={run / name}", "--format=markdown")
        assert (run / name).read_bytes() == before


def test_a_study_keeps_a_photograph(tmp_path, tell):
    path = tmp_path / "photograph.png"
    path.write_bytes(MINE)
    assert "exists" in tell(focus_maps.main, f"--to={path}")
    assert path.read_bytes() == MINE


def test_a_benchmark_says_before_it_measures_that_a_file_is_not_its_own(tmp_path, tell):
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    path = tmp_path / "rows.jsonl"
    path.write_bytes(MINE)
    for flag in ("json", "plot"):
        with flagsaver.flagsaver(**{flag: str(path), "suite": "growth"}):
            assert "exists" in tell(benchmark.main, "benchmark")
    assert path.read_bytes() == MINE
    row = {"suite": "image", "name": "blur", "peer_ms": 1, "floor_ms": 1}
    path.write_text(json.dumps(row) + "\n")
    outputs.check(path, benchmark._holds_rows)
