"""Figures for papers: where two images differ, which pairs do most, and how metrics judge many of them.

`heatmap`, `contact_sheet` and `layers` show images; `histograms`, `margins` and `agreement` show what the
reports of `rlpips evaluate` measured.
"""

from rlpips.plots.densities import agreement, histograms, margins
from rlpips.plots.drawing import check_plot_file
from rlpips.plots.maps import heatmap
from rlpips.plots.shares import layers
from rlpips.plots.sheets import contact_sheet

__all__ = ["agreement", "check_plot_file", "contact_sheet", "heatmap", "histograms", "layers", "margins"]
