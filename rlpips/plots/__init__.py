"""Figures for papers: where two images differ, which pairs do most, and how metrics judge many of them.

`heatmap`, `contact_sheet` and `layers` show images; `histograms`, `margins` and `agreement` show what the
reports of `rlpips evaluate` measured.
"""

from rlpips.plots.densities import agreement as agreement
from rlpips.plots.densities import histograms as histograms
from rlpips.plots.densities import margins as margins
from rlpips.plots.drawing import check_plot_file as check_plot_file
from rlpips.plots.maps import heatmap as heatmap
from rlpips.plots.shares import layers as layers
from rlpips.plots.sheets import contact_sheet as contact_sheet
