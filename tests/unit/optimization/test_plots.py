"""What the picture of a ladder shows."""

import matplotlib.pyplot as plt
import pytest
from ladders import figures, ladder
from matplotlib.colors import to_hex

from vitconv.errors import InputError
from vitconv.optimization.optimization import GateError
from vitconv.optimization.plots import BLUE, GREY, ORANGE, RED, draw_ladder

TIMES = {"float32": 546.0, "openvino": 455.0, "openvino-int8": 105.0, "onnx": 569.0}
REFUSAL = GateError("7 of 42 images get another answer.", "Choose another.", figures(42, 7))


@pytest.fixture
def draw(tmp_path):
    def draw(*arguments, **options):
        drawn = draw_ladder(ladder(*arguments, **options))
        drawn.savefig(tmp_path / "a.png")  # so that all of it is laid out
        return drawn.axes

    yield draw
    plt.close("all")


def texts(axes):
    return [text.get_text() for text in axes.texts]


def test_the_fastest_is_first_and_float32_last(draw):
    left, _ = draw(TIMES)
    assert [label.get_text() for label in left.get_yticklabels()] == ["openvino-int8", "openvino", "onnx", "float32"]
    assert [bar.get_width() for bar in left.patches] == [105, 455, 569, 546]
    assert [to_hex(bar.get_facecolor()).upper() for bar in left.patches] == [ORANGE, BLUE, BLUE, GREY]
    assert texts(left) == ["105  5.2 ×", "455  1.2 ×", "569  0.96 ×", "546"]
    assert left.get_ylim()[0] > left.get_ylim()[1]  # from the top


def test_no_colour_says_use_where_nothing_is_faster(draw):
    left, _ = draw({"float32": 500.0, "onnx": 500.0})
    assert [to_hex(bar.get_facecolor()).upper() for bar in left.patches] == [BLUE, GREY]


def test_bars_end_at_the_bound_and_the_limit_is_drawn(draw):
    found = figures(600, 1)
    _, right = draw({"float32": 500.0, "openvino-int8": 100.0, "openvino": 400.0}, openvino_int8=found)
    limit, bar, dot, end, *exact = right.lines
    assert limit.get_xdata()[0] == 0.01 and "limit 1 %" in texts(right)
    assert list(bar.get_xdata()) == [1 / 600, found.bound] and dot.get_xdata()[0] == 1 / 600
    assert end.get_xdata()[0] == found.bound
    assert len(exact) == 2 and list(exact[0].get_xdata()) == [0, 0]  # computes in float32: no bar
    assert right.get_xscale() == "linear" and right.get_xlim()[1] > 0.01


def test_a_refused_recipe_has_a_row_without_a_time(draw):
    left, right = draw(TIMES, refused={"static": REFUSAL, "onnx-int8": InputError("No VNNI.", "Buy one.")})
    names = [label.get_text() for label in left.get_yticklabels()]
    assert names[3:] == ["static", "float32"]  # what was not judged has no row
    assert " refused" in texts(left) and len(left.patches) == 4
    assert right.get_xscale() == "symlog"  # far beyond the limit
    assert right.get_xlim()[1] > REFUSAL.figures.bound
    assert RED in [line.get_color() for line in right.lines]


def test_a_name_is_no_formula(draw):
    left, _ = draw(TIMES, refused={"$x^{$": REFUSAL})
    assert "$x^{$" in [label.get_text() for label in left.get_yticklabels()]
