from made_results import make_row
from matplotlib.colors import to_rgb

from bvit.report import plots


def test_a_policy_has_one_color_in_all_figures():
    rows = [make_row("region", "keep", 0.6), make_row("region", "merge", 0.5, 8)]
    rows += [make_row("region", "merge", 0.4, 4), make_row("blur", "keep", 0.7)]
    lines = [{"step": step, "loss": 1.0, "accuracy": 0.5} for step in (1, 2)]
    tested = [{"step": step, "region/merge:8": 0.5, "region/keep": 0.5} for step in (1, 2)]
    for chosen in (rows, [rows[3], rows[1]]):
        figures = plots.draw({"": chosen}, {"": [lines]}, {"": [tested]})
        assert set(figures) == {"accuracy", "tradeoff", "curves"}
        drawn = [
            (label.partition(":")[0], to_rgb(getattr(handle, "lines", [handle])[0].get_color()))
            for figure in figures.values()
            for axes in figure.axes
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
            if label in ("keep", "merge", "merge:8")
        ]
        assert set(drawn) == {(name, to_rgb(plots.COLORS[name])) for name in ("keep", "merge")}


def test_a_panels_ticks_do_not_touch_those_of_its_neighbour():
    rows = [make_row(name, "merge", 0.5, b) for name in ("sharp", "blur", "region") for b in (8, 4)]
    for i, row in enumerate(rows):
        row["gflops"] = 0.125 - 0.0004 * i
    figure = plots.draw_tradeoff({"": rows})
    plots.pixels(figure)  # lays it out
    for line in (figure.axes[:3], figure.axes[3:]):
        boxes = [
            tick.label1.get_window_extent()
            for axes in line
            for tick in axes.xaxis.get_major_ticks()
            if axes.get_xlim()[0] <= tick.get_loc() <= axes.get_xlim()[1]
        ]
        gaps = [right.x0 - left.x1 for left, right in zip(boxes, boxes[1:], strict=False)]
        assert min(gaps) > boxes[0].height


def test_each_group_and_policy_is_a_line_of_its_own():
    rows = [make_row("region", "drop", 0.5, 8), make_row("region", "drop", 0.4, 4)]
    rows += [make_row("region", "keep", 0.6), make_row("gaussian:1", "keep", 0.7)]
    groups = {"mix": rows, "blur": rows}
    figure = plots.draw_tradeoff(groups)
    assert [axes.get_title() for axes in figure.axes if axes.get_title()] == ["region"]
    named = {text.get_text() for text in figure.legends[0].get_texts()}
    assert named == {"mix, drop", "mix, keep", "blur, drop", "blur, keep"}
    figure = plots.draw_sigma(groups)
    assert {text.get_text() for text in figure.legends[0].get_texts()} == {
        "mix, keep",
        "blur, keep",
    }
    assert "tradeoff" not in plots.draw({"": rows[2:]}, {"": []}, {"": []})
