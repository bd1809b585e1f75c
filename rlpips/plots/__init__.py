"""Pictures of distances: where two images differ, which pairs differ most, and in which layers."""

from rlpips.plots.contact_sheets import contact_sheet
from rlpips.plots.drawing import check_plot_file
from rlpips.plots.heatmaps import heatmap
from rlpips.plots.layer_shares import layers

__all__ = ["check_plot_file", "contact_sheet", "heatmap", "layers"]
