"""The title over a figure: it stays within the figure, and says all it said."""

import pytest
from matplotlib.figure import Figure

from jaxprune.plots.style import head


@pytest.mark.parametrize(
    ("title", "lines"),
    [
        ("Clips, test, topk", 1),
        ("Arabic Speech Commands, validation, topk: /home/someone/" + "runs/" * 12 + "model in OpenVINO", 2),
        ("W" * 300, 5),
    ],
)
def test_a_title_is_broken_where_the_figure_ends(title, lines):
    figure = Figure(figsize=(9.0, 4.6), layout="constrained")
    head(figure, title)
    (heading,) = figure.texts
    figure.draw_without_rendering()
    place = heading.get_window_extent()
    assert 0 <= place.x0 < place.x1 <= figure.bbox.width
    said = heading.get_text()
    assert said.count("\n") + 1 >= lines
    assert "".join(said.split()) == "".join(title.split())


def test_a_dollar_sign_is_no_formula():
    figure = Figure()
    head(figure, "of $HOME/a_b$")
    assert not figure.texts[0].get_parse_math()
