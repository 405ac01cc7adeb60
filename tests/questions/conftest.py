import pytest

# Training examples.
N = 40


@pytest.fixture
def train(rng):
    return rng.normal(size=(N, 4)), rng.integers(0, 3, N)


@pytest.fixture
def test(rng):
    return rng.normal(size=(5, 4)), rng.integers(0, 3, 5)
