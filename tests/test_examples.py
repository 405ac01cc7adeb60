"""The experiments in examples/, small: their figures are what the library's truth implies."""

import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "examples"))

pytest.importorskip("sklearn")
common = pytest.importorskip("common")

pytestmark = pytest.mark.slow
needs_images = pytest.mark.skipif(
    not common.FASHION_MNIST.exists(), reason="dataset-fashion-mnist is not installed"
)


@pytest.fixture
def quick(tmp_path):
    """Run an experiment in its small version, as from the command line; return its figures."""
    from tests.conftest import set_precision

    def run(module):
        set_precision("float32")
        picture = tmp_path / "picture.png"
        figures = module.main(picture, quick=True)
        assert picture.stat().st_size > 10_000
        return figures

    return run


@needs_images
def test_what_influence_is_made_of(quick):
    import what_influence_is_made_of

    r = quick(what_influence_is_made_of)
    assert r["influence"] > 0.999
    assert r["without the training loss"] < 0.99
    assert r["without the Hessian"] < 0.95
    assert r["inner product of images"] < 0.9


def test_leave_one_out(quick):
    import leave_one_out

    found = quick(leave_one_out)
    r, slope = found["softmax regression, CG"]
    assert r > 0.999
    assert slope == pytest.approx(1, abs=0.1)
    assert found["softmax regression, LiSSA"][0] > 0.99
    r, slope = found["conv net, not convex"]
    assert r > 0.99
    assert slope == pytest.approx(1, abs=0.4)


@needs_images
def test_smooth_hinge(quick):
    import smooth_hinge

    r = quick(smooth_hinge)
    assert r["auto"] > 0.9
    assert r["auto"] == pytest.approx(r[0.01], abs=1e-6)
    assert r[0.0] < 0.5
    assert r[3.0] < 0.8


@needs_images
def test_two_models(quick):
    import two_models

    (_, rbf_other, rbf_rank), (_, conv_other, conv_rank) = quick(two_models).values()
    assert rbf_other < 0.1 < conv_other
    assert rbf_rank < 0.25
    assert rbf_rank < conv_rank


@needs_images
def test_training_set_attack(quick):
    import training_set_attack

    flipped = quick(training_set_attack)
    assert flipped[20] >= max(flipped[2], 0.6)


def test_domain_mismatch(quick):
    import domain_mismatch

    found = quick(domain_mismatch)
    assert found["found"] > 10 * found["chance"]
    assert found["after"] < 0.7 * found["before"]


def test_fixing_labels(quick):
    import fixing_labels

    found = quick(fixing_labels)
    fixed, accuracy = found["self-influence"]
    assert fixed[1] > 0.7
    assert fixed[1] > 3 * found["random"][0][1]
    assert accuracy[1] > found["random"][1][1] + 0.02


@needs_images
def test_cleaning(quick):
    import cleaning

    table, images = quick(cleaning).values()
    assert table["found"] > 0.6
    assert table["suspects mended"] > table["wrong labels in"]
    # At least half of what the wrong labels cost; 114 test examples, so ties happen.
    half = 0.5 * (table["true labels"] + table["wrong labels in"])
    assert table["suspects mended"] >= half - 1e-9
    assert images["found"] > 0.5
