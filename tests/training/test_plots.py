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
    assert [axis.get_title(loc="left") for axis in figure.axes] == [
        "loss",
        "metrics of the validation",
        "learning rate",
    ]
    assert [line.get_label() for line in loss.lines] == ["training", "validation"]
    assert [text.get_text() for text in loss.get_legend().get_texts()] == ["training", "validation"]
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
    files = [f"{name}.png" for name in (NAMES["scripts"] + NAMES["formulas"])[:7]]
    classification_plots.draw_mistakes(images, files, truth, predicted, [0.123] * 7, names, tmp_path / "a.png", "title")
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


def test_a_sheet_of_few_mistakes_has_no_blank_room(figures, tmp_path):
    sizes = {}
    for count in (1, 3, 6, 7):
        images, numbers = [Image.new("RGB", (40, 40))] * count, [0] * count
        classification_plots.draw_mistakes(
            images, ["a.png"] * count, numbers, numbers, [0.5] * count, ["a", "b"], tmp_path / "a.png", "title"
        )
        assert len(figures[-1].axes) == (count if count < 7 else 12)
        sizes[count] = Image.open(tmp_path / "a.png").width
    assert sizes[1] < sizes[6] / 4
    assert sizes[3] < sizes[6] * 0.6
    assert sizes[6] == sizes[7]


def test_no_mistakes(tmp_path):
    classification_plots.draw_mistakes([], [], [], [], [], ["a", "b"], tmp_path / "a.png", "No mistakes.")
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


@pytest.mark.parametrize(
    ("text", "most", "expected"),
    [
        ("abcdefghi", 9, "abcdefghi"), ("abcdefghijkl", 9, "abcde…jkl"), ("abcd  ghi  l", 9, "abcd…l"),
        ("abcd", 3, "a…d"), ("", 3, ""),
    ],
)  # fmt: skip
def test_long_names_keep_their_ends(text, most, expected):
    assert plot_style.cut(text, most) == expected


def test_panels_of_images():
    figure, axes = plot_style.image_panels((200, 100), ["a", "b", "c"], panel_inches=2.0, dpi=50, legend_inches=0.5)
    assert figure.get_size_inches().tolist() == [6.0, 1.0 + 0.4 + 0.5]
    assert figure.dpi == 50
    assert [axis.get_title(loc="left") for axis in axes] == ["a", "b", "c"]
    assert not any(axis.axison for axis in axes)
    alone, _ = plot_style.image_panels((100, 200), ["a"], panel_inches=2.0, dpi=50)
    assert alone.get_size_inches().tolist() == [2.0, 4.4]


def test_points_of_short_curves_are_marked(figures, tmp_path):
    for count, marker in ((40, "o"), (41, "None")):
        entries = [{"loss": 1.0, "learning_rate": 0.5, "step": step} for step in range(count)]
        plots.draw_training(entries, tmp_path / "a.png")
        assert [axis.lines[0].get_marker() or "None" for axis in figures[-1].axes] == [marker] * 2
    loss, rate = figures[0].axes
    assert [text.get_text() for text in loss.get_legend().get_texts()] == ["training"]
    assert rate.get_legend() is None
    assert rate.get_xlabel() == loss.get_xlabel() == "step"
    assert loss.get_xlim() == rate.get_xlim() == (0, 1.02 * 39)


def test_metrics_have_colours_and_names_of_their_own(figures, tmp_path):
    hidden = ("own_loss", "samples_per_second", "steps_per_second", "model_preparation_time", "runtime")
    names = ("mean_iou", "accuracy", *hidden)
    entry = {f"eval_{name}": 0.5 for name in names} | {"step": 3, "eval_text": "x", "test_accuracy": 1.0}
    plots.draw_training([entry, {"eval_accuracy": 0.25}, {"eval_accuracy": 0.75, "step": 6}], tmp_path / "a.png")
    (metrics,) = figures[0].axes
    assert [line.get_label() for line in metrics.lines] == ["accuracy", "mean IoU"]
    assert [metrics.yaxis.get_major_formatter()(share) for share in (0.25, 0.75)] == ["25.0 %", "75.0 %"]
    assert list(metrics.lines[0].get_xdata()) == [3, 6]  # without a step there is no place for it
    assert list(metrics.lines[0].get_ydata()) == [0.5, 0.75]
    assert len({line.get_color() for line in metrics.lines}) == 2


@pytest.mark.parametrize(
    ("classes", "matrix", "numbers"), [(20, True, True), (21, True, False), (40, True, False), (41, False, None)]
)
def test_kinds_of_pictures_of_confusions(classes, matrix, numbers, figures, tmp_path):
    truth = np.arange(classes)
    classification_plots.draw_confusions(truth, np.roll(truth, 1), [f"n{row}" for row in truth], tmp_path / "a.png")
    axis = figures[0].axes[0]
    assert bool(axis.images) is matrix
    if matrix:
        assert bool(axis.texts) is numbers
        assert (axis.get_xlabel(), axis.get_ylabel()) == ("predicted class", "true class")
    else:
        assert len(axis.texts) == 25  # the most frequent ones


def test_counts_fit_their_cells(figures, tmp_path):
    sizes = ((999, 9, "999"), (1000, 7, "1000"), (9_999, 7, "9999"), (10_000, 7, "10k"), (12_600, 7, "13k"))
    for count, size, text in sizes:
        truth = np.array([0] * count + [1])
        classification_plots.draw_confusions(truth, truth, ["cat", "dog"], tmp_path / "a.png")
        first, second = figures[-1].axes[0].texts
        assert (first.get_text(), first.get_fontsize(), second.get_text()) == (text, size, "1")


def test_a_share_of_more_than_a_half_is_written_in_white(figures, tmp_path):
    truth, predicted = np.array([0, 0, 1, 1, 1]), np.array([0, 1, 1, 1, 0])
    classification_plots.draw_confusions(truth, predicted, ["cat", "dog"], tmp_path / "a.png")
    colours = {text.get_position(): text.get_color() for text in figures[0].axes[0].texts}
    ink = plot_style.INK
    assert colours == {(0, 0): ink, (1, 0): ink, (0, 1): ink, (1, 1): "white"}


def test_what_is_below_a_mistake(figures, tmp_path):
    images = [Image.new("RGB", (300, 200)), Image.new("RGB", (63, 200)), *[Image.new("L", (64, 64))] * 5]
    files = [f"a very long name of a file, number {index}.jpeg" for index in range(6)] + ["猫.png"]
    arguments = ([0] * 7, [1] * 7, [0.876] * 7, ["cat", "dog"])
    classification_plots.draw_mistakes(images, files, *arguments, tmp_path / "a.png", "a title")
    axes = figures[0].axes
    assert figures[0].get_suptitle() == "a title"
    assert len(axes) == 12  # two rows of six
    assert not any(axis.axison for axis in axes)
    assert [len(axis.images) for axis in axes] == [1] * 7 + [0] * 5
    assert axes[0].images[0].get_array().shape == (256, 256, 3)
    assert [text.get_text() for text in axes[0].texts] == ["88%  dog", "is cat", "a very long name o…er 0.jpeg"]
    assert [text.get_color() for text in axes[0].texts] == [plot_style.RED, plot_style.GREY, plot_style.GREY]
    last = axes[6].texts[-1].get_text()
    assert last in ("image 7", "猫.png")  # as the installed fonts allow
    long = "x" * 30 + " " + "y" * 30
    classification_plots.draw_mistakes(images[:1], ["f"], [0], [1], [1.0], ["a", long], tmp_path / "b.png", "")
    assert len(figures[1].axes[0].texts) == 4  # two lines at most, one for the true class, one for the file


def test_metrics_of_a_single_validation_are_bars(figures, tmp_path):
    entries = [{"loss": 2.0, "learning_rate": 0.5, "step": 3}]
    entries += [{"eval_loss": 1.5, "eval_map_50": 0.5, "eval_accuracy": 0.125, "step": 3}]
    plots.draw_training(entries, tmp_path / "a.png")
    loss, metrics = figures[0].axes  # and no line of one point for the learning rate
    assert [label.get_text() for label in loss.get_yticklabels()] == ["training", "validation"]
    assert [text.get_text() for text in loss.texts] == ["2", "1.5"]
    assert not loss.lines
    assert not metrics.lines
    assert [bar.get_width() for bar in metrics.patches] == [0.125, 0.5]
    assert [text.get_text() for text in metrics.texts] == ["12.5 %", "50.0 %"]
    assert [label.get_text() for label in metrics.get_yticklabels()] == ["accuracy", "mAP 50"]
    assert metrics.get_xlim() == (0, 1)


def test_classes_are_drawn_lowest_first(figures, tmp_path):
    names = ["cat", "dog", "ape", "猫" * 40]
    measures = {"recall": [0.5, 0.25, None, 1.0], "precision": [0.75, None, 1.0, 0.5]}
    plots.draw_classes(names, measures, tmp_path / "a.png")
    (axis,) = figures[0].axes
    assert axis.get_title(loc="left") == "recall and precision of each class"
    assert [label.get_text() for label in axis.get_yticklabels()][:2] == ["dog", "cat"]
    recall, precision = axis.containers
    assert [bar.get_width() for bar in recall] == [0.25, 0.5, 1.0]
    assert [bar.get_width() for bar in precision] == [0, 0.75, 0.5]
    drawn = [text.get_text() for text in axis.texts]
    assert drawn == ["25.0 %", "50.0 %", "100.0 %", "never predicted", "75.0 %", "50.0 %"]
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["recall", "precision"]


def test_of_many_classes_the_lowest_are_drawn(figures, tmp_path):
    values = [index / 100 for index in range(100)][::-1]
    plots.draw_classes([f"class {index}" for index in range(100)], {"IoU": values}, tmp_path / "a.png")
    (axis,) = figures[0].axes
    assert axis.get_title(loc="left") == "IoU of the 40 lowest of 100 classes"
    assert [bar.get_width() for bar in axis.patches] == [index / 100 for index in range(40)]
    assert axis.get_yticklabels()[0].get_text() == "class 99"
    assert axis.get_legend() is None
    assert not overlaps(figures[0])


def test_an_evaluation_without_a_class_has_a_picture(tmp_path):
    plots.draw_classes(["a"], {"IoU": [None]}, tmp_path / "a.png")
    assert Image.open(tmp_path / "a.png").width > 50
