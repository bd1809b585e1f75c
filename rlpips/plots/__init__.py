"""Figures for papers: how metrics judge many images, from what the reports of `rlpips evaluate` measured."""

from rlpips.plots.densities import agreement as agreement
from rlpips.plots.densities import histograms as histograms
from rlpips.plots.densities import margins as margins
from rlpips.plots.drawing import check_plot_file as check_plot_file
