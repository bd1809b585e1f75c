import sys

import numpy as np
import pytest

import rlpips
from rlpips.evaluation import RobustnessReport, agreement, histograms, jnd_score, margins


def report(metrics=("one", "two"), attacks=("linf:4/255:10",), images=20, zero=False):
    """A report of distances drawn at random, where attacks inflate ordinary ones by a known factor."""
    rng = np.random.default_rng(0)

    def draw(median, n=images):
        return np.zeros(n) if zero else median * np.exp(0.4 * rng.standard_normal(n))

    return RobustnessReport(
        images=[f"{i}.png" for i in range(images)],
        skipped={},
        size=64,
        seed=0,
        metrics=dict.fromkeys(metrics),
        attacks={attack: {} for attack in attacks},
        attacked={
            (source, attack): {m: draw(0.6 if m == source else 0.1) for m in metrics}
            for source in metrics
            for attack in attacks
        },
        augmented={m: draw(0.5, 2 * images) for m in metrics},
        distorted={m: {"blur": draw(0.2), "noise": draw(0.2)} for m in metrics},
        worst={},
    )


def axes_of(figure, kind):
    return [axes for axes in figure.axes if axes.get_label().startswith(kind)]


@pytest.mark.parametrize(
    ("name", "start"), [("f.png", b"\x89PNG"), ("f.pdf", b"%PDF"), ("F.PNG", b"\x89PNG")]
)
def test_the_file_is_what_its_name_says(tmp_path, name, start):
    histograms(report(), tmp_path / name)
    assert (tmp_path / name).read_bytes().startswith(start)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    first = (tmp_path / name).read_bytes()
    histograms(report(), str(tmp_path / name))
    assert (tmp_path / name).read_bytes() == first


@pytest.mark.parametrize(("metrics", "attacks"), [(1, 1), (2, 1), (3, 2), (4, 6)])
def test_each_metric_has_a_panel_with_all_kinds_of_distances(tmp_path, metrics, attacks):
    names = [f"metric{k}" for k in range(metrics)]
    shown = report(names, [f"attack{k}" for k in range(attacks)])
    figure = histograms(shown, tmp_path / "figure.png")
    densities, medians = axes_of(figure, "densities"), axes_of(figure, "medians")
    assert [axes.get_label() for axes in densities] == [f"densities: {name}" for name in names]
    assert len({axes.get_xlim() for axes in figure.axes}) == 1
    expected = ["ordinary distortions", "BYOL augmentations"]
    for k in range(attacks):
        expected += [f"attack{k} white-box", f"attack{k} transferred"][: 1 if metrics == 1 else 2]
    for name, axes, above in zip(names, densities, medians, strict=True):
        assert [patch.get_label() for patch in axes.patches] == expected
        inflation = max(shown.inflation(name, attack) for attack in shown.attacks)
        assert above.get_title() == f"{name}\ninflation {inflation:#.3g}"
        texts = [text.get_text() for text in above.texts]
        assert texts[0] == f"{np.median(shown.ordinary(name)):#.3g}"
        assert len(texts) == len(expected)
    assert [label.get_text() for label in medians[0].get_yticklabels()] == expected


def test_medians_are_marked_where_they_are(tmp_path):
    shown = report()
    figure = histograms(shown, tmp_path / "figure.png")
    (above, _), (below, _) = axes_of(figure, "medians"), axes_of(figure, "densities")
    expected = [
        np.median(values)
        for values in (
            shown.ordinary("one"),
            shown.augmented["one"],
            shown.attacked["one", "linf:4/255:10"]["one"],
            shown.attacked["two", "linf:4/255:10"]["one"],
        )
    ]
    dots = [line.get_xdata()[0] for line in above.lines if line.get_marker() == "o"]
    assert dots == pytest.approx(expected)
    assert [line.get_xdata()[0] for line in below.lines] == pytest.approx(expected)


def test_distances_of_zero_are_no_error(tmp_path):
    histograms(report(zero=True), tmp_path / "figure.png")


def test_pyplot_is_not_touched(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    histograms(report(), tmp_path / "figure.png")


def test_other_endings_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"figure.jpg: a figure is written as .png or .pdf"):
        histograms(report(), tmp_path / "figure.jpg")


def test_missing_matplotlib_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(rlpips.MissingExtraError, match=r"rlpips\[plot\]"):
        histograms(report(), tmp_path / "figure.png")


def test_margins_tell_right_from_wrong_at_one(tmp_path):
    rng = np.random.default_rng(0)
    d0, judge = np.exp(rng.standard_normal(100)), np.where(np.arange(100) < 98, 0.2, 0.5)
    cases = {"natural": (d0, 2 * d0, judge), "attacked": (d0, 0.9 * d0, judge)}
    figure = margins({"one": cases, "two": cases}, tmp_path / "figure.png")
    for axes, above in zip(axes_of(figure, "densities"), axes_of(figure, "medians"), strict=True):
        assert [text.get_text() for text in above.texts] == ["2.00, 99 % right", "0.900, 1 % right"]
        for patch, right in zip(axes.patches, (True, False), strict=True):
            heights, edges, _ = patch.get_data()
            assert np.isclose(edges, 1).any()  # no bin holds both right and wrong
            assert (edges[np.argmax(heights)] >= 0.999) == right


def test_agreement_divides_pairs_by_what_people_saw(tmp_path):
    d, same = np.array([0.1, 0.2, 0.3, 0.4, 9.0]), np.array([1, 0.8, 0.2, 0, 0.5])
    figure = agreement({"one": (d, same)}, tmp_path / "figure.png")
    (above,) = axes_of(figure, "medians")
    assert above.get_title() == "one\nmAP " + f"{jnd_score(d, same):.3f}"
    assert [text.get_text() for text in above.texts] == ["0.150", "0.350"]
    agreement({"one": (d, np.zeros(5))}, tmp_path / "none.png")  # nobody saw any as the same
