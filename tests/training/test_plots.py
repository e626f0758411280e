# SPDX-License-Identifier: MIT
"""Pictures of a training and of a classifier: contents are read from the figures, for all kinds of names and data."""

import math

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from hf_internimage.training import plot_style, plots
from hf_internimage.training.classification import plots as classification_plots


@pytest.fixture
def figures(monkeypatch):
    """Return the list of saved figures. A character that no font has is an error, as every UserWarning in tests."""
    saved = []
    save = Figure.savefig

    def keep(figure, path, **options):
        save(figure, path, **options)
        saved.append(figure)

    monkeypatch.setattr(Figure, "savefig", keep)
    return saved


def visible(figure):
    """Yield texts and tick labels that are drawn."""
    for axis in figure.axes:
        yield from axis.texts
        for side, labels in ((axis.xaxis, axis.get_xticklabels()), (axis.yaxis, axis.get_yticklabels())):
            if axis.axison and side.get_visible():
                yield from (label for label in labels if label.get_text())


def texts(figure):
    titles = [axis.get_title(loc="left") for axis in figure.axes]
    return [figure.get_suptitle(), *titles, *(text.get_text() for text in visible(figure))]


def overlaps(figure):
    """Return pairs of texts that cover each other."""
    boxes = [(text.get_text(), text.get_window_extent().padded(-1)) for text in visible(figure)]
    return [(a, b) for row, (a, first) in enumerate(boxes) for b, second in boxes[row + 1 :] if first.overlaps(second)]


def history():
    entries = []
    for step in range(10, 201, 10):
        loss = math.nan if step == 50 else 2 / step
        entries.append({"loss": loss, "grad_norm": 1.0, "learning_rate": 1e-3 / step, "epoch": step / 50, "step": step})
        if step % 50 == 0:
            metrics = {"eval_loss": 3 / step, "eval_accuracy": step / 300, "eval_runtime": 2.0}
            entries.append({**metrics, "eval_samples_per_second": 9.0, "epoch": step / 50, "step": step})
    return [*entries, {"train_runtime": 9.0, "train_loss": 0.1, "epoch": 4, "step": 200}]


def test_training_curves(figures, tmp_path):
    plots.draw_training(history(), tmp_path / "a.png")
    (figure,) = figures
    loss, metrics, rate = figure.axes
    assert [axis.get_title(loc="left") for axis in figure.axes] == ["loss", "metrics", "learning rate"]
    assert [line.get_label() for line in loss.lines] == ["training", "evaluation"]
    assert [line.get_label() for line in metrics.lines] == ["accuracy"]
    steps, values = loss.lines[0].get_data()
    assert list(steps) == list(range(10, 201, 10))
    assert np.isnan(values[4])
    assert values[0] == 0.2
    assert list(loss.lines[1].get_xdata()) == [50, 100, 150, 200]
    assert rate.lines[0].get_ydata()[-1] == 1e-3 / 200
    assert Image.open(tmp_path / "a.png").width > 700


@pytest.mark.parametrize("entries", [[], [{"train_runtime": 1.0, "step": 5}], history()[:1]], ids=["none", "no", "one"])
def test_short_trainings_have_a_picture(entries, tmp_path):
    plots.draw_training(entries, tmp_path / "a.png")
    assert Image.open(tmp_path / "a.png").width > 50


LONG = [f"great crested grebe (Podiceps cristatus), number {index}" for index in range(100)]
NAMES = {
    "2": ["cat", "dog"],
    "10": [str(index) for index in range(10)],
    "10 long": LONG[:10],
    "20 long": LONG[:20],
    "40": [f"class {index}" for index in range(40)],
    "100 long": LONG,
    "formulas": ["$x^2$", "a_b", r"\alpha$", "50 %"],
    "scripts": ["собака", "Ελλάδα", "قطة", "ünï", "two\nlines"],
    "no font": ["猫", "हिन्दी", "\U0001f408", "dog"],
}


def random_result(classes, count=2000):
    generator = np.random.default_rng(0)
    truth = generator.integers(classes, size=count)
    return truth, np.where(
        generator.random(count) < 0.8, truth, (truth + generator.integers(classes, size=count)) % classes
    )


@pytest.mark.parametrize("kind", NAMES)
def test_confusions_are_readable(kind, figures, tmp_path):
    names = NAMES[kind]
    truth, predicted = random_result(len(names))
    classification_plots.draw_confusions(truth, predicted, names, tmp_path / "a.png")
    (figure,) = figures
    assert not overlaps(figure)
    assert any(f"{(truth == predicted).sum():,} of 2,000" in text for text in texts(figure))
    assert not any(text.get_parse_math() for text in visible(figure))  # "$x^2$" is a name, not a formula
    if kind == "no font":
        assert {"class 0", "class 1", "class 2", "dog"} <= set(texts(figure))
    elif kind == "scripts":
        assert {"собака", "two lines"} <= set(texts(figure))
    elif "long" not in kind:
        assert set(names) <= set(texts(figure))
    if kind == "20 long":
        assert len({text for text in texts(figure) if text.startswith("great")}) == 20  # still told apart


def test_confusion_matrix_counts(figures, tmp_path):
    truth, predicted = np.array([0, 0, 0, 0, 1, 1, 1, 1]), np.array([0, 0, 0, 1, 0, 0, 1, 1])
    classification_plots.draw_confusions(truth, predicted, ["cat", "dog", "ape"], tmp_path / "a.png")
    axis = figures[0].axes[0]
    shares = axis.images[0].get_array()
    assert shares.tolist() == [[0.75, 0.25, 0.0], [0.5, 0.5, 0.0], [0.0, 0.0, 0.0]]
    cells = {text.get_position(): text.get_text() for text in axis.texts}
    assert cells == {(0, 0): "3", (1, 0): "1", (0, 1): "2", (1, 1): "2"}  # (column, row)


def test_most_frequent_confusions_come_first(figures, tmp_path):
    truth = np.array([7] * 10 + [3] * 4 + list(range(50)))
    predicted = np.array([8] * 6 + [7] * 4 + [4] * 4 + list(range(50)))
    classification_plots.draw_confusions(truth, predicted, [f"n{index}" for index in range(50)], tmp_path / "a.png")
    axis = figures[0].axes[0]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["n7  →  n8", "n3  →  n4"]
    assert [text.get_text().split() for text in axis.texts] == [["6", "(55%)"], ["4", "(80%)"]]
    assert axis.get_ylim()[0] > axis.get_ylim()[1]  # downwards
    classification_plots.draw_confusions(truth, truth, [f"n{index}" for index in range(50)], tmp_path / "b.png")
    assert "64 of 64 images are classified right" in texts(figures[1])


def test_worst_mistakes_are_the_surest():
    truth = np.array([0, 1, 2, 3, 4])
    classes = np.array([[0, 1], [0, 1], [0, 2], [3, 1], [0, 4]])
    scores = np.array([[0.9, 0.1], [0.5, 0.1], [0.8, 0.1], [0.9, 0.1], [0.5, 0.4]])
    assert classification_plots.worst_mistakes(truth, classes, scores) == [2, 1, 4]
    assert classification_plots.worst_mistakes(truth, classes, scores, count=1) == [2]
    assert classification_plots.worst_mistakes(truth[:1], classes[:1], scores[:1]) == []


@pytest.mark.parametrize("kind", ["2", "100 long", "formulas", "scripts", "no font"])
def test_sheet_of_mistakes(kind, figures, tmp_path):
    names = NAMES[kind]
    images = [Image.new("RGB", (40 + 30 * index, 90), (10 * index, 0, 0)) for index in range(7)]
    truth, predicted = [index % len(names) for index in range(7)], [(index + 1) % len(names) for index in range(7)]
    classification_plots.draw_mistakes(images, truth, predicted, [0.123] * 7, names, tmp_path / "a.png", "title")
    (figure,) = figures
    assert not overlaps(figure)
    assert "title" in texts(figure)
    drawn = [axis for axis in figure.axes if axis.images]
    assert len(drawn) == 7
    first, *_, last = drawn[0].texts
    assert first.get_text().startswith("12%")
    assert (first.get_color(), last.get_color()) == (plot_style.RED, plot_style.GREY)
    middle = drawn[3].images[0].get_array()[128, 128]
    assert middle.tolist() == [30, 0, 0]


def test_no_mistakes(tmp_path):
    classification_plots.draw_mistakes([], [], [], [], ["a", "b"], tmp_path / "a.png", "No mistakes.")
    assert Image.open(tmp_path / "a.png").width > 50


@pytest.mark.parametrize(
    ("rows", "count", "expected"), [(5, 3, [0, 2, 4]), (2, 9, [0, 1]), (7, 1, [0]), (4, 0, []), (100, 2, [0, 99])]
)
def test_rows_to_draw_are_spread_evenly(rows, count, expected):
    assert plot_style.rows_to_draw(rows, count) == expected


def test_settings_of_others_stay_and_do_not_matter(tmp_path):
    with matplotlib.rc_context({"font.size": 33, "savefig.dpi": 10}):
        before = dict(matplotlib.rcParams)
        plots.draw_training(history(), tmp_path / "a.png")
        assert dict(matplotlib.rcParams) == before
    plots.draw_training(history(), tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
