"""The page of a report."""

import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import sklearn.metrics
import torch
from PIL import Image

from tests.training.examples import results
from tests.training.recorder import Recorder
from training import html_report
from training.figures import FIGURES
from training.results import Results

VOID = {"meta", "link", "br", "img", "path", "use"}


class Page(HTMLParser):
    """Parses a page; fails if an element is not closed, or an id comes twice."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.open: list[str] = []
        self.headings: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []
        assert len(self.ids) == len(set(self.ids))

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag, attrs):
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            if name in ("src", "href", "xlink:href", "srcset", "action", "data"):
                self.references.append(value)
            self.references += re.findall(r"url\(([^)]*)\)", value or "")

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if {"td", "th"} & set(self.open[-2:]):
            self.rows[-1][-1] += data
        if self.open and self.open[-1] in ("h1", "h2", "h3"):
            self.headings.append(data)
        if self.open and self.open[-1] == "style":
            assert "url(" not in data
            assert "@import" not in data


@pytest.fixture(scope="module")
def found() -> Results:
    torch.manual_seed(0)
    return results(examples=90)


@pytest.fixture(scope="module")
def page(found, tmp_path_factory) -> Page:
    return Page(html_report.write(tmp_path_factory.mktemp("run"), found).read_text())


def rows(page: Page, first: str) -> list[list[str]]:
    return [row[1:] for row in page.rows if row and row[0] == first]


def test_nothing_outside_is_referred_to(page):
    references = page.references
    assert any(reference.startswith("data:image/png") for reference in references)
    assert [r for r in references if not r.startswith(("data:", "#"))] == []


def test_what_is_referred_to_inside_is_there(page):
    inside = {r[1:] for r in page.references if r.startswith("#")}
    assert inside
    assert inside <= set(page.ids)


def test_numbers_of_the_classes_are_those_of_scikit_learn(found, page):
    report = sklearn.metrics.classification_report(
        found.labels, found.predicted, target_names=found.inputs.classes, output_dict=True
    )
    averages = {"macro avg": "macro average", "weighted avg": "weighted average"}
    for name in (*found.inputs.classes, *averages):
        expected = report[name]
        assert rows(page, averages.get(name, name))[0] == [
            *(f"{expected[key]:.4f}" for key in ("precision", "recall", "f1-score")),
            f"{expected['support']:.0f}",
        ]


def test_confusions_are_those_of_the_matrix(found, page):
    matrix = sklearn.metrics.confusion_matrix(found.labels, found.predicted)
    shown = {
        (row[0], row[1]): int(row[2]) for row in page.rows if len(row) == 3 and row[2].isdigit()
    }
    names = found.inputs.classes
    assert shown == {
        (names[i], names[j]): matrix[i, j] for i, j in np.ndindex(3, 3) if i != j and matrix[i, j]
    }


def test_layers_and_their_sums(page):
    assert rows(page, "1") == [["Linear", "4", "320", "4", "324"]]
    assert rows(page, "2") == [["ReLU", "4", "0", "0", "0"]]
    assert rows(page, "3") == [["Linear", "3", "12", "3", "15"]]
    assert rows(page, "total") == [["332", "7", "339"]]


def test_settings_and_facts_are_told(tmp_path):
    found = results()
    text = html_report.write(tmp_path, found).read_text()
    for name, value in (
        ("--seed", "0"), ("--threads", "1"), ("--flip", "no"), ("--augment", "yes"),
        ("--limit-train", "not set"), ("--hidden", "none"), ("--optimizer", "adamw"),
        ("input", "1×8×10"), ("mean", "100"), ("time", "1 h 2 min"),
        ("weights of epoch", "2 of 2"), ("training images/s", "10"),
        ("parameters", "339"),
    ):  # fmt: skip
        assert f"<dt>{name}</dt><dd>{value}</dd>" in text


def test_the_figures_are_files_too_and_reach_the_logger(tmp_path):
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "kernels.png").touch()  # of a former report
    recorder = Recorder()
    html_report.write(tmp_path, results(points=True), recorder)
    names = set(FIGURES) - {"kernels", "mistakes"}
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {f"{n}.png" for n in names}
    for path in (tmp_path / "figures").iterdir():
        with Image.open(path) as image:
            image.verify()
    assert set(recorder.images) == {(41, f"report/{name}") for name in names}
    assert recorder.curves == [(41, f"precision_recall/class {i}") for i in range(3)]


def test_points_are_said_to_have_no_pictures(tmp_path):
    text = html_report.write(tmp_path, results(points=True)).read_text()
    assert "no images" in text
    assert "Kernels of the first layer" not in text


def test_a_run_that_did_not_end_has_a_report(tmp_path):
    found = replace(results(), metrics={}, curves={})
    text = html_report.write(tmp_path, found).read_text()
    assert "did not get to its end" in text
    assert "Learning rate" not in text


def test_names_are_text_whatever_is_in_them(found, tmp_path):
    classes = ("<b>&", '"quoted"', "$x^2$")
    named = replace(found, inputs=replace(found.inputs, classes=classes))
    shown = Page(html_report.write(tmp_path, named).read_text())
    for name in classes:
        assert len(rows(shown, name)) >= 1


def test_a_hundred_classes_are_numbered(tmp_path):
    shown = Page(html_report.write(tmp_path, results(classes=100, examples=300)).read_text())
    assert rows(shown, "99 class 99")
    assert "Confusion matrix" in shown.headings
