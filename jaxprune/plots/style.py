"""The looks of all pictures: colours, markers, ticks, and the title over a figure."""

import textwrap

from matplotlib.figure import Figure

COLORS = "viridis"  # of spectrograms and maps: even in lightness, and the same with any colour vision
BLANK = "white"  # not in the colormap, so a dropped patch cannot be taken for a quiet or a loud one
# Of series: any colour vision can tell them apart (Okabe & Ito 2008). Black is for what is published or unpruned.
SERIES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442")
MARKERS = "osD^vPX*hp<>"
TICKS_HZ = (250, 1000, 4000)


def head(figure: Figure, title: str) -> None:
    """Puts a title over a figure, in as many lines as its width asks for; a long path is broken, too."""
    heading = figure.suptitle(title, fontsize=10, x=0.01, ha="left", fontweight="bold")
    heading.set_parse_math(False)  # a dollar sign in a path is not a formula
    room, characters = 0.98 * figure.bbox.width, len(title)
    while (width := heading.get_window_extent().width) > room and characters > 1:
        characters = min(characters - 1, int(characters * room / width))
        heading.set_text(textwrap.fill(title, max(1, characters), break_on_hyphens=False))
