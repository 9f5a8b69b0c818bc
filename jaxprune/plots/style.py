"""The palette of all pictures: colours, markers and ticks."""

COLORS = "viridis"  # of spectrograms and maps: even in lightness, and the same with any colour vision
BLANK = "white"  # not in the colormap, so a dropped patch cannot be taken for a quiet or a loud one
# Of series: any colour vision can tell them apart (Okabe & Ito 2008). Black is for what is published or unpruned.
SERIES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442")
MARKERS = "osD^vPX*hp<>"
TICKS_HZ = (250, 1000, 4000)
