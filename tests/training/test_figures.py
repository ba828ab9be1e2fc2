"""The figures of a report."""

import io
from dataclasses import replace

import matplotlib
import numpy as np
import pytest
import sklearn.metrics
from PIL import Image

from tests.training.examples import results
from training import figures
from training.figures import draw
from training.rendering import DPI, to_png, to_svg, to_tensor


@pytest.mark.parametrize(("classes", "channels"), [(2, 1), (12, 3), (13, 1), (100, 3)])
def test_every_figure_is_drawn(classes, channels):
    drawn = draw(results(classes, examples=3 * classes + 20, channels=channels))
    assert list(drawn) == list(figures.FIGURES)
    for figure in drawn.values():
        assert to_png(figure).startswith(b"\x89PNG")


def test_points_have_no_images():
    drawn = draw(results(points=True))
    assert set(figures.FIGURES) - set(drawn) == {"mistakes", "kernels"}


def test_a_run_without_curves_has_none_of_its_training():
    bare = results()
    bare.curves.clear()
    assert set(draw(bare)) == {"confusion_matrix", "precision_recall", "mistakes", "kernels"}


def test_the_users_own_style_does_not_show():
    found = results()
    plain = to_png(draw(found)["loss"])
    with matplotlib.rc_context({"lines.linewidth": 9, "font.size": 30, "axes.facecolor": "red"}):
        assert to_png(draw(found)["loss"]) == plain
        assert matplotlib.rcParams["font.size"] == 30


def test_characters_of_other_scripts_come_from_installed_fonts(monkeypatch, caplog):
    monkeypatch.setattr(figures, "FALLBACKS", ("No Such Font", "STIXGeneral"))
    figure = draw(results())["confusion_matrix"]
    assert figure.axes[0].xaxis.label.get_family() == ["DejaVu Sans", "STIXGeneral"]
    to_png(figure)
    assert caplog.messages == []  # matplotlib tells of every font it does not find


def test_a_character_that_no_font_has_is_drawn_without_a_warning():
    found = results()
    named = replace(found, inputs=replace(found.inputs, classes=("\ue000", "b", "c")))
    for name, figure in draw(named).items():
        assert to_png(figure)
        assert to_svg(figure, name)


@pytest.mark.parametrize("metric", ["loss", "accuracy"])
def test_learning_curves_show_what_was_logged(metric):
    found = results()
    axes = figures.FIGURES[metric](found).axes[0]
    train, validation, kept = axes.lines
    assert list(zip(*train.get_data(), strict=True)) == found.curves[f"{metric}/train"]
    assert list(zip(*validation.get_data(), strict=True)) == found.curves[f"{metric}/validation"]
    assert kept.get_xdata()[0] == 40  # the weights of the second epoch
    assert axes.get_xlabel() == "step"


def test_a_long_curve_is_drawn_in_pieces_that_keep_its_mean_and_range():
    found = results()
    values = np.random.default_rng(0).random(10_000)
    found.curves["loss/train"] = list(enumerate(values.tolist(), start=1))
    axes = figures.loss(found).axes[0]
    steps, means = axes.lines[0].get_data()
    assert len(steps) == figures.POINTS
    assert means[0] == pytest.approx(values[:50].mean())
    assert steps[0] == pytest.approx(25.5)
    shade = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert shade.max() == values.max()
    assert shade.min() == values.min()


def test_gradient_norms_of_few_layers_are_named_and_of_many_coloured_by_depth():
    few, many = (figures.gradient_norms(results(layers=n)) for n in (3, 40))
    assert [text.get_text() for text in few.legends[0].get_texts()] == [
        "layer0",
        "layer1",
        "layer2",
    ]
    assert many.legends == []
    assert len(many.axes[0].lines) == 40
    ends = [text.get_text() for text in many.axes[1].get_yticklabels()]
    assert ends == ["first\n(layer0)", "last\n(layer39)"]


def test_the_confusion_matrix_shows_its_counts():
    found = results(classes=4, examples=100)
    axes = figures.confusion_matrix(found).axes[0]
    shown = {(int(t.get_position()[1]), int(t.get_position()[0])): t.get_text() for t in axes.texts}
    assert shown == {place: str(count) for place, count in np.ndenumerate(found.confusion) if count}
    shade = axes.images[0].get_array()
    np.testing.assert_allclose(shade, found.confusion / found.confusion.sum(1, keepdims=True))
    assert [label.get_text() for label in axes.get_xticklabels()] == list(found.inputs.classes)


def test_precision_and_recall_are_those_of_scikit_learn():
    found = results(classes=3, examples=90)
    figure = figures.precision_recall(found)
    for label, line in enumerate(figure.axes[0].lines):
        precision, recall, _ = sklearn.metrics.precision_recall_curve(
            found.labels == label, found.probabilities[:, label]
        )
        points = set(zip(recall.tolist(), precision.tolist(), strict=True))
        assert set(zip(*line.get_data(), strict=True)) <= points
        assert {line.get_xdata()[0], line.get_xdata()[-1]} == {0.0, 1.0}
        score = sklearn.metrics.average_precision_score(
            found.labels == label, found.probabilities[:, label]
        )
        assert line.get_label() == f"{score:.3f} class {label}"


def test_of_many_classes_the_hardest_are_shown():
    figure = figures.precision_recall(results(classes=30, examples=300))
    assert len(figure.axes[0].lines) == figures.NAMED
    assert (
        figure.legends[0].get_title().get_text().endswith(f"of the {figures.NAMED} hardest classes")
    )


def test_mistakes_show_image_true_and_predicted_class():
    found = results(channels=3)
    axes = figures.mistakes(found).axes[0]
    row = found.mistakes[0]
    np.testing.assert_allclose(
        axes.images[0].get_array(), found.raw[row].permute(1, 2, 0).numpy() / 255
    )
    assert axes.texts[0].get_text() == (
        f"class {found.labels[row]}\n→ class {found.predicted[row]} "
        f"{found.probabilities[row].max():.1%}"
    )
    assert len(axes.images) == len(axes.texts) == len(found.mistakes)


@pytest.mark.parametrize(
    ("name", "shown"),
    [("exactly14chars", "exactly14chars"), ("the cats of class 12", "the cat…ass 12")],
)
def test_long_names_lose_their_middle(name, shown):
    assert figures._shortened(name) == shown


class TestRendering:
    def test_png_on_white(self):
        png = to_png(figures.loss(results()))
        with Image.open(io.BytesIO(png)) as image:
            assert image.width == round(figures.WIDTH * DPI)
            assert image.convert("RGB").getpixel((0, 0)) == (255, 255, 255)
            picture = to_tensor(png)
            assert picture.shape == (3, image.height, image.width)

    def test_svg_takes_the_colour_of_the_page_and_keeps_its_text(self):
        svg = to_svg(figures.loss(results()), "loss")
        assert svg.startswith("<svg")
        assert svg.endswith("</svg>")
        assert "currentColor" in svg
        assert figures.FOREGROUND not in svg
        assert ">training batches</text>" in svg

    def test_svg_is_the_same_every_time(self):
        first, second = (to_svg(figures.loss(results()), "loss") for _ in range(2))
        assert first == second
