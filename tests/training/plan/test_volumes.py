import numpy as np
import pytest

from models.spec import ClassInfo
from training.config import TrainConfig
from training.data.scan.volume_stats import VolumeStats
from training.lint.findings import LintReport
from training.plan.budget import StepProfiler
from training.plan.profiling import MachineProfile
from training.plan.rules import Plan
from training.plan.volumes import (
    choose_patch,
    choose_scaling,
    choose_spacing,
    choose_topology,
    choose_volume_resolution,
    symmetric_axes,
)

CLASSES = [ClassInfo(name=name, rgb=(index, 0, 0)) for index, name in enumerate(("background", "one", "two"))]


def make_report(all_stats: list[VolumeStats], classes: list[ClassInfo] = CLASSES) -> LintReport:
    report = LintReport(classes)
    report.sample_stats["train"] = all_stats
    return report


# Spacing, median size, patch and strides of nnU-Net's plans (3d_fullres) where the voxels of its patch fit.
@pytest.mark.parametrize(
    ("size", "spacing", "voxels", "patch", "strides"),
    [
        ((36, 50, 35), (1, 1, 1), 64**3, (40, 56, 40), [[1, 1, 1], [2, 2, 2], [2, 2, 2], [2, 2, 2]]),
        (
            (20, 320, 319), (3.6, 0.625, 0.625), 20 * 320 * 320, (20, 320, 320),
            [[1, 1, 1], [1, 2, 2], [1, 2, 2], [2, 2, 2], [2, 2, 2], [1, 2, 2]],
        ),
        ((1, 400, 400), (1, 1, 1), 64**3, (1, 416, 416), [[1, 1, 1], *[[1, 2, 2]] * 5]),
    ],
)  # fmt: skip
def test_patch_and_strides_follow_size_and_spacing(
    size: tuple[int, ...], spacing: tuple[float, ...], voxels: int, patch: tuple[int, ...], strides: list[list[int]]
) -> None:
    found, _ = choose_patch(np.array(size, float), np.array(spacing), voxels)
    assert found == patch and choose_topology(np.array(found, float), np.array(spacing))[0] == strides


@pytest.mark.parametrize("voxels", [32**3, 64**3, 128**3])
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (5.0, 0.8, 0.8), (0.3, 0.3, 2.0)])
def test_patch_fits_and_is_divided_by_its_strides(voxels: int, spacing: tuple[float, ...]) -> None:
    for size in ((90, 512, 512), (512, 512, 90), (30, 40, 20)):
        patch, _ = choose_patch(np.array(size, float), np.array(spacing), voxels)
        strides, kernels = choose_topology(np.array(patch, float), np.array(spacing))
        multiple = np.prod(strides, axis=0)
        assert np.prod(patch) <= 1.3 * voxels and all(
            length % step == 0 for length, step in zip(patch, multiple, strict=True)
        )
        coarse = np.array(spacing) >= 2 * min(spacing)
        assert [side == 1 for side in kernels[0]] == coarse.tolist() and strides[0] == [1, 1, 1]


def test_spacing_is_the_median_and_finer_along_a_coarse_axis() -> None:
    sizes = [(20, 400, 400)] * 11
    stats = [VolumeStats(size, spacing=(4.0 + 0.2 * n, 0.7, 0.8)) for n, size in enumerate(sizes)]
    spacing, why = choose_spacing(make_report(stats), TrainConfig())
    assert spacing == pytest.approx((4.2, 0.7, 0.8)) and "10th percentile" in why
    assert choose_spacing(make_report(stats[:3]), TrainConfig(spacing=(1, 2, 3)))[0] == (1, 2, 3)
    unknown = [*stats, VolumeStats((5, 5, 5))]
    assert choose_spacing(make_report(unknown), TrainConfig())[0] is None


def test_ct_is_clipped_to_its_foreground_and_mr_gets_z_scores() -> None:
    values = np.linspace(-100, 300, 4001, dtype=np.float32)[:, None]
    ct = [VolumeStats((9, 9, 9), channels=("gray",), low=(-1024.0,), high=(2000.0,), foreground=values)]
    scaling, why = choose_scaling(make_report(ct), TrainConfig(), ("gray",))
    assert (scaling.kind, *scaling.low, *scaling.high) == ("window", pytest.approx(-98), pytest.approx(298))
    assert "Hounsfield" in why
    mr = [VolumeStats((9, 9, 9), channels=("MRI",), low=(0.0,), high=(1.7e6,), foreground=values)]
    assert choose_scaling(make_report(mr), TrainConfig(), ("MRI",))[0].kind == "zscore"
    assert choose_scaling(make_report(mr), TrainConfig(), ("CT",))[0].kind == "window"


def test_volumes_are_mirrored_only_where_their_halves_are_alike() -> None:
    random = np.random.default_rng(0)

    def stats() -> VolumeStats:
        halves = np.zeros((256, 3, 2), np.int64)
        halves[1:3] = random.integers(80, 120, (2, 3, 2))
        halves[2, 1] = random.integers(10, 30), random.integers(150, 200)  # class two lies at the back
        return VolumeStats((9, 9, 9), orientation="LPS", halves=halves)

    axes, why = symmetric_axes(make_report([stats() for _ in range(30)]))
    assert axes == "DW" and "H: two lies mostly in the back half" in why
    sides = [CLASSES[0], *(ClassInfo(name=name, rgb=(1, 1, 1)) for name in ("left kidney", "right kidney"))]
    assert symmetric_axes(make_report([stats() for _ in range(30)], sides))[0] == "D"
    assert symmetric_axes(make_report([stats() for _ in range(3)]))[0] == ""


def test_resolution_is_halved_at_once_where_few_patches_fit_into_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = MachineProfile("cpu", "2 CPU cores", 2, 8 << 30, bf16=False)
    seconds = {16: 2.0, 24: 0.4}  # of a step, by width
    monkeypatch.setattr(StepProfiler, "step_seconds", lambda _, plan: seconds[plan["width"]])

    def choose(minutes: float, **settings: object) -> tuple[Plan, float]:
        plan = Plan({"minutes": minutes, **settings})
        strides, kernels = choose_topology(np.array([20.0, 320, 320]), np.array([3.6, 0.625, 0.625]))
        for name, value in (
            ("architecture", "unet"),
            ("strides", strides),
            ("kernel", kernels),
            ("width", 16),
            ("batch", 2),
        ):
            plan.set(name, value, "")
        return plan, choose_volume_resolution(plan, StepProfiler(3, machine))

    plan, found = choose(40)  # of which a tenth is kept for validation
    assert plan["strides"] == [[1, 2, 2], [1, 2, 2], [2, 2, 2], [2, 2, 2], [1, 2, 2]] and found == 0.4
    assert plan["width"] == 24 and len(plan["kernel"]) == 5 and "only 2,1" in plan.settings["strides"].reason
    assert choose(400)[0]["width"] == 16 and choose(40, width=16)[1] == 2.0
