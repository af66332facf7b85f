"""Metrics on answers that are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import expit
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef
from torch.nn import functional

from faster_pruner.objectives import metrics
from faster_pruner.objectives.classification import CLASSIFICATION, MULTI_LABEL, REGRESSION
from faster_pruner.objectives.objective import Objective, Predicted


def scores(objective: Objective, values: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    return objective.score(Predicted(values, np.arange(len(values)), labels))


VALUES = np.array([[2.0, 0.0], [0.0, 2.0], [0.0, 1.0], [3.0, 0.0]])
LABELS = np.array([0, 1, 0, 0])


def test_classification_on_known_answers() -> None:
    found = scores(CLASSIFICATION.judged_by(("accuracy", "f1", "matthews", "loss")), VALUES, LABELS)
    assert found["accuracy"] == pytest.approx(75.0)
    assert found["f1"] == pytest.approx(100 * 2 / 3)
    assert found["matthews"] == pytest.approx(100 / np.sqrt(3))
    assert found["loss"] == pytest.approx(
        float(functional.cross_entropy(torch.from_numpy(VALUES), torch.from_numpy(LABELS)))
    )


def test_f1_of_more_than_two_classes_is_the_mean_over_them() -> None:
    values, labels = np.eye(3)[[0, 1, 1, 2]], np.array([0, 1, 2, 2])
    # class 0: 1; class 1: precision 1/2, recall 1; class 2: precision 1, recall 1/2
    assert scores(CLASSIFICATION, values, labels)["f1"] == pytest.approx(100 * (1 + 2 / 3 + 2 / 3) / 3)


def test_regression_on_known_answers() -> None:
    found = scores(REGRESSION, np.array([[1.0], [2.0], [4.0]]), np.array([1.0, 2.0, 3.0]))
    assert list(found) == ["pearson", "spearman", "squared_error"]
    assert found["spearman"] == pytest.approx(100.0)
    assert found["pearson"] == pytest.approx(100 * np.corrcoef([1, 2, 4], [1, 2, 3])[0, 1])
    assert found["squared_error"] == pytest.approx(1 / 3)


def test_constant_predictions_correlate_with_nothing() -> None:
    found = scores(REGRESSION, np.ones((3, 1)), np.arange(3.0))
    assert (found["pearson"], found["spearman"]) == (0.0, 0.0)


def test_regression_of_several_outputs() -> None:
    values, labels = np.array([[1.0, 2.0], [3.0, 5.0]]), np.array([[1.0, 2.0], [3.0, 4.0]])
    assert scores(REGRESSION, values, labels)["squared_error"] == pytest.approx(0.25)


def test_several_labels_on_known_answers() -> None:
    """Three rows of three classes: 2 labels found, 1 missed, 1 made up; the last class is never there nor said."""
    values = np.array([[3.0, -1.0, -5.0], [2.0, -4.0, -1.0], [-2.0, 0.2, -2.0]])
    labels = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0], [1.0, 1.0, 0.0]])
    found = scores(MULTI_LABEL, values, labels)
    assert next(iter(found)) == "micro_f1"
    assert found["micro_f1"] == pytest.approx(100 * 2 * 2 / (2 * 2 + 1 + 1))
    assert found["macro_f1"] == pytest.approx(100 * (0.5 + 1.0 + 0.0) / 3)
    assert found["all_correct"] == pytest.approx(100 / 3)
    loss = functional.binary_cross_entropy_with_logits(torch.from_numpy(values), torch.from_numpy(labels))
    assert found["loss"] == pytest.approx(float(loss))


def test_loss_of_several_labels_does_not_overflow() -> None:
    values = np.array([[2000.0, -2000.0]], dtype=np.float32)
    assert scores(MULTI_LABEL, values, np.array([[1.0, 0.0]]))["loss"] == 0.0
    assert scores(MULTI_LABEL, values, np.array([[0.0, 0.0]]))["loss"] == pytest.approx(1000.0)


def test_calibration_error_of_a_calibrated_and_an_overconfident_model() -> None:
    sure = np.tile([[0.0, 20.0]], (10, 1))
    assert metrics.expected_calibration_error(sure, np.ones(10)) == pytest.approx(0.0, abs=1e-6)
    assert metrics.expected_calibration_error(sure, np.array([1] * 7 + [0] * 3)) == pytest.approx(0.3, abs=1e-6)


@pytest.mark.parametrize("rows", [1, 2, 3, 40])
@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.filterwarnings("ignore")
def test_what_is_counted_is_what_scikit_learn_counts(classes: int, rows: int) -> None:
    """Few rows, as in samples: of one class only, and without some of the classes."""
    generator = np.random.default_rng(classes * rows)
    for _ in range(20):
        values, labels = generator.normal(size=(rows, classes)), generator.integers(0, classes, rows)
        said = values.argmax(axis=1)
        found = scores(CLASSIFICATION.judged_by(("accuracy", "f1", "matthews")), values, labels)
        average = "binary" if classes == 2 else "macro"
        expected = {
            "accuracy": accuracy_score(labels, said),
            "f1": f1_score(labels, said, average=average, zero_division=0),
            "matthews": matthews_corrcoef(labels, said),
        }
        assert found == pytest.approx({name: 100 * value for name, value in expected.items()})


@pytest.mark.parametrize("rows", [1, 2, 40])
def test_several_labels_are_counted_as_scikit_learn_counts_them(rows: int) -> None:
    generator = np.random.default_rng(rows)
    for _ in range(20):
        values = generator.normal(size=(rows, 3)).astype(np.float32)
        labels = generator.integers(0, 2, (rows, 3)).astype(np.float32)
        found = scores(MULTI_LABEL, values, labels)
        for average in ("micro", "macro"):
            expected = f1_score(labels.astype(int), expit(values) > 0.5, average=average, zero_division=0)
            assert found[f"{average}_f1"] == pytest.approx(100 * expected)
