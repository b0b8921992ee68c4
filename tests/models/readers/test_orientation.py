import itertools

import nibabel
import numpy as np
import pytest
from nibabel.orientations import io_orientation

from models.readers import nifti
from models.readers.limits import ReadLimits
from models.readers.orientation import axis_names, canonical_affine, spacing_of, to_canonical, to_file_grid
from models.readers.statistics import sample_statistics
from models.readers.volume_spacing import ResampledValues, resampled_size, resize_nearest, resize_values, to_spacing
from models.sample import Sample
from models.spec import Spacing

ORIENTATIONS = [
    (order, signs) for order in itertools.permutations(range(3)) for signs in itertools.product((1, -1), repeat=3)
]


def phantom() -> np.ndarray:
    """An asymmetric volume in RAS: 8 to the right, 9 to the front, 10 to the head."""
    volume = np.zeros((8, 9, 10), np.uint8)
    volume[1:3, 2:7, 3:9] = 1
    volume[5, 1:4, 0:2] = 2
    volume[6:, 8, 9] = 3
    return volume


def segment_stand_in(values: np.ndarray) -> np.ndarray:
    """A rule on positions in canonical orientation: it would give other labels if a volume arrived turned or mirrored."""
    d, h, w = np.indices(values.shape)
    return ((values > 0) * (1 + (2 * d + 3 * h + 5 * w) % 4)).astype(np.uint8)


@pytest.mark.parametrize(("order", "signs"), ORIENTATIONS)
def test_same_labels_from_each_of_the_48_orientations(order: tuple[int, ...], signs: tuple[int, ...]) -> None:
    ras = nibabel.Nifti1Image(phantom(), nibabel.affines.from_matvec(np.diag([1.0, 2.0, 3.0]), [5, 6, 7]))
    turned = ras.as_reoriented(np.array([[order.index(axis), signs[order.index(axis)]] for axis in range(3)], float))
    expected = segment_stand_in(nifti.decode(ras.to_bytes(), ReadLimits(10**6)).values[..., 0])
    sample = nifti.decode(turned.to_bytes(), ReadLimits(10**6))
    labels = segment_stand_in(sample.values[..., 0])
    assert (labels == expected).all() and sample.spacing.values == pytest.approx((3, 2, 1))
    written = nibabel.Nifti1Image(to_file_grid(labels, sample.frame.grid), turned.affine)
    assert written.shape == turned.shape
    # Back in RAS by nibabel, the answer lies on the voxels of the phantom.
    in_ras = np.asarray(nibabel.as_closest_canonical(written).dataobj)
    assert (in_ras == np.asarray(nibabel.as_closest_canonical(
        nibabel.Nifti1Image(to_file_grid(expected, nifti.decode(ras.to_bytes(), ReadLimits(10**6)).frame.grid), ras.affine)
    ).dataobj)).all()  # fmt: skip
    assert axis_names(turned.affine) == "".join(nibabel.aff2axcodes(turned.affine))


def test_canonical_axes_run_to_head_back_and_left() -> None:
    values, grid = to_canonical(phantom(), np.eye(4))
    assert (values == phantom().transpose(2, 1, 0)[:, ::-1, ::-1]).all()
    np.testing.assert_array_equal(canonical_affine(grid)[:3, :3], [[0, 0, -1], [0, -1, 0], [1, 0, 0]])
    voxel = np.array([3, 4, 5, 1])  # d, h, w
    i, j, k = (np.linalg.inv(grid.affine) @ canonical_affine(grid) @ voxel)[:3].round().astype(int)
    assert values[3, 4, 5] == phantom()[i, j, k]


@pytest.mark.parametrize("seed", range(20))
def test_oblique_volume_gets_its_nearest_orientation(seed: int) -> None:
    random = np.random.default_rng(seed)
    rotation, _ = np.linalg.qr(random.normal(size=(3, 3)))
    steps = random.uniform(0.5, 4, 3)
    affine = nibabel.affines.from_matvec(rotation * steps, random.normal(size=3))
    array = random.integers(0, 99, (4, 5, 6))
    values, grid = to_canonical(array, affine)
    assert (to_file_grid(values, grid) == array).all()
    assert sorted(spacing_of(grid)) == pytest.approx(sorted(steps))
    turned = canonical_affine(grid)[:3, :3] / np.array(spacing_of(grid))
    total = -turned[0, 2] - turned[1, 1] + turned[2, 0]
    others = [
        sum(abs(rotation[world, axis]) for world, axis in enumerate(order))
        for order in itertools.permutations(range(3))
    ]
    assert total == pytest.approx(max(others)) and total > 1
    greedy = io_orientation(affine)
    if (greedy[:, 0] == [grid.order[2], grid.order[1], grid.order[0]]).all():
        assert axis_names(affine) == "".join(nibabel.aff2axcodes(affine))


def test_spacing_there_and_back_keeps_labels_and_the_position_of_edges() -> None:
    labels = np.zeros((6, 20, 24), np.uint8)
    labels[2:5, 4:14, 6:20] = 1
    sample = Sample(labels[..., None].astype(np.float32), "DHW", ("gray",), Spacing(values=(3.0, 1.0, 1.0), unit="mm"))
    finer = to_spacing(sample, Spacing(values=(1.0, 1.0, 0.5), unit="mm"))
    assert finer.size == (18, 20, 48) and finer.spacing.values == pytest.approx((1.0, 1.0, 0.5))
    again = resize_nearest((finer.values[..., 0] > 0.5).astype(np.uint8), sample.size)
    assert (again == labels).all()
    assert to_spacing(sample, Spacing(values=(3.0, 1.0, 1.005), unit="mm")) is sample
    assert resampled_size((1, 5, 5), Spacing(values=(1, 1, 1), unit="mm"), Spacing(values=(9, 9, 9), unit="mm")) == (
        1,
        1,
        1,
    )


def test_resize_is_linear_between_voxels_and_an_average_where_it_shrinks() -> None:
    ramp = np.arange(8, dtype=np.float32).reshape(8, 1, 1, 1) * np.ones((1, 2, 3, 2), np.float32)
    assert resize_values(ramp, (16, 2, 3))[:, 0, 0, 0].tolist() == [0, *[0.25 + 0.5 * step for step in range(14)], 7]
    half = resize_values(ramp, (4, 2, 3))[:, 1, 2, 1]
    assert half[1:-1].tolist() == [2.5, 4.5]  # the centers of the new voxels
    line = np.zeros((64, 1, 1, 1), np.float32)
    line[30] = 64
    assert resize_values(line, (16, 1, 1)).sum() == pytest.approx(16, rel=1e-5)  # no thin structure is skipped


@pytest.mark.parametrize("size", [(12, 4, 8), (3, 14, 5), (7, 4, 5)])
def test_resizing_slice_by_slice_is_that_of_the_whole(size: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).integers(-500, 500, (7, 9, 5, 2)).astype(np.int16)
    whole = resize_values(values, size)
    monkeypatch.setattr("models.readers.volume_spacing.GROUP_VALUES", 1)
    np.testing.assert_array_equal(resize_values(values, size), whole)
    window = (slice(1, 3), slice(2, 40), slice(0, 4))
    resampled = ResampledValues(values, size)
    np.testing.assert_array_equal(resampled[window], whole[window])
    np.testing.assert_array_equal(sample_statistics(resampled), sample_statistics(whole))
