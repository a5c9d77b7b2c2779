"""Noise from seeds: distribution, independence, mapping, and no global generator."""

import numpy as np
import torch

from funcexplain.networks.noise import normal, uniform
from tests.helpers import assert_same


def splitmix64(seed: int, count: int) -> list[int]:
    """Plain-integer twin of the hash: SplitMix64 whose state starts at a mixed seed."""

    def mix(z: int) -> int:
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
        return z ^ (z >> 31)

    gamma = 0x9E3779B97F4A7C15
    state = mix((seed + gamma) % 2**64)
    return [mix((state + (i + 1) * gamma) % 2**64) for i in range(count)]


def test_uniform_equals_its_integer_twin() -> None:
    for seed in (0, 1, 12345, 2**62):
        expected = [((bits >> 12) + 0.5) / 2**52 for bits in splitmix64(seed, 100)]
        assert uniform(torch.tensor(seed), (100,)).tolist() == expected


def test_splitmix64_twin_equals_the_published_values() -> None:
    # First outputs of the reference implementation for a state of 1234567.
    gamma, state, out = 0x9E3779B97F4A7C15, 1234567, []
    for _ in range(3):
        state = (state + gamma) % 2**64
        z = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
        out.append(z ^ (z >> 31))
    assert out == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_uniform_is_uniform_within_and_across_seeds() -> None:
    grid = torch.stack([uniform(torch.tensor(seed), (400,)) for seed in range(400)]).numpy()
    assert grid.min() > 0
    assert grid.max() < 1
    count = grid.size
    for sample in (grid.ravel(), grid[:, 0], grid[0]):
        # Kolmogorov-Smirnov distance; the bound is exceeded once in ten thousand.
        ordered = np.sort(sample)
        steps = np.arange(1, ordered.size + 1) / ordered.size
        assert np.abs(ordered - steps).max() < 2.3 / np.sqrt(ordered.size)
    centered = grid - 0.5
    for product in (
        centered[:, 1:] * centered[:, :-1],
        centered[1:] * centered[:-1],
    ):
        assert abs(product.mean()) * 12 < 4 / np.sqrt(count)


def test_normal_has_the_moments_of_the_normal_distribution() -> None:
    z = normal(torch.tensor(3), (200_000,), torch.float64)
    assert abs(float(z.mean())) < 0.01
    assert abs(float(z.var()) - 1) < 0.02
    assert abs(float((z**4).mean()) - 3) < 0.1


def test_mapped_seeds_draw_what_each_draws_alone() -> None:
    seeds = torch.tensor([5, 0, 5, 77])
    mapped = torch.func.vmap(lambda seed: normal(seed, (2, 3), torch.float32))(seeds)
    assert_same(mapped, torch.stack([normal(seed, (2, 3), torch.float32) for seed in seeds]))


def test_noise_does_not_touch_the_global_generator() -> None:
    before = torch.get_rng_state()
    normal(torch.tensor(0), (10,), torch.float32)
    assert torch.equal(before, torch.get_rng_state())
