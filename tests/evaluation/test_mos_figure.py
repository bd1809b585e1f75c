import numpy as np
import pytest

from rlpips.evaluation import fit_logistic, scatter


def test_a_panel_shows_the_pairs_by_type_and_the_curve(tmp_path):
    rng = np.random.default_rng(0)
    scores = rng.uniform(0, 100, 30)
    types = ["jpeg", "$blur$", "noise"] * 10
    distances = {"one": scores / 100 + 0.1 * rng.standard_normal(30), "two": np.ones(30)}
    distances["one"][3] = np.nan
    figure = scatter(distances, scores, types, tmp_path / "f.png", "dmos")
    assert (tmp_path / "f.png").read_bytes().startswith(b"\x89PNG")
    one, two = figure.axes
    assert [axes.get_label() for axes in (one, two)] == ["one", "two"]
    *dots, curve = one.lines
    assert [each.get_label() for each in dots] == ["jpeg", "$blur$", "noise"]
    known = np.isfinite(distances["one"])
    for each, name in zip(dots, ("jpeg", "$blur$", "noise"), strict=True):
        chosen = known & (np.array(types) == name)
        assert np.array_equal(each.get_xdata(), distances["one"][chosen])
        assert np.array_equal(each.get_ydata(), scores[chosen])
    fitted = fit_logistic(distances["one"][known], scores[known])
    np.testing.assert_allclose(curve.get_ydata(), fitted(np.asarray(curve.get_xdata())))
    assert len(two.lines) == 3  # equal distances have no curve
    assert one.get_ylabel() == "dmos"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["jpeg", "$blur$", "noise"]


def test_one_type_needs_no_legend_and_many_have_marks(tmp_path):
    scores = np.arange(40.0)
    assert not scatter({"m": scores}, scores, ["all"] * 40, tmp_path / "f.pdf").legends
    dots = (
        scatter({"m": scores}, scores, [f"type {i}" for i in range(20)] * 2, tmp_path / "f.pdf").axes[0].lines
    )
    assert len({(each.get_color(), each.get_marker()) for each in dots[:20]}) == 20
    with pytest.raises(ValueError, match=r"\.png or \.pdf"):
        scatter({"m": scores}, scores, ["all"] * 40, tmp_path / "f.jpg")
