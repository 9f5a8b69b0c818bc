"""The picture of methods compared."""

from jaxprune.plots.comparison import Curve, comparison_figure

NAMES = [f"method {i}" for i in range(11)]


def curve(name: str, *, panel: str = "a") -> Curve:
    return Curve(panel=panel, name=name, gmacs=(1.0, 0.5), quality=(0.9, 0.8), intervals=((0.85, 0.95), (0.7, 0.85)))


def test_eleven_methods_look_different_and_alike_in_every_panel():
    curves = [curve(name, panel=panel) for panel in "ab" for name in NAMES]
    figure = comparison_figure(curves, title="x")
    panels = [
        [
            (line.get_color(), line.get_marker(), line.get_linestyle(), line.get_markerfacecolor())
            for line, _, _ in axis.containers
        ]
        for axis in figure.axes
    ]
    assert len(set(panels[0])) == len(NAMES)
    assert panels[0] == panels[1]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [*NAMES, "not beaten"]


def test_the_legend_follows_an_order_that_is_given():
    figure = comparison_figure([curve("b"), curve("c"), curve("a")], title="x", order=("a", "b", "z"))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b", "c", "not beaten"]


def test_a_method_looks_the_same_whoever_it_is_drawn_with():
    def colour(*names):
        (axis,) = comparison_figure([curve(name) for name in names], title="x", order=("a", "b", "c")).axes
        return axis.containers[-1].lines[0].get_color()

    assert colour("c") == colour("a", "c") == colour("a", "b", "c") != colour("a", "b")


def test_points_that_another_beats_are_not_joined():
    beaten = Curve(panel="a", name="worse", gmacs=(0.7,), quality=(0.6,), intervals=((0.5, 0.7),))
    (axis,) = comparison_figure([curve("better"), beaten], title="x").axes
    assert axis.lines[0].get_xydata().tolist() == [[0.5, 80.0], [1.0, 90.0]]
