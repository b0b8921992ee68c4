import os
import threading
import time
from dataclasses import fields, replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from tests.training.make_layouts import write_huge_image
from training.data.dataset import Pair, SegmentationDataset
from training.data.mask_decoding import RawMask
from training.data.scan import sample_stats, scan_cache
from training.data.scan.pixel_stats import count_values, perceptual_hash, pixel_digest
from training.data.scan.sample_stats import PixelBudget, compute_sample_stats
from training.data.scan.scanner import SampleStats, scan_split
from training.data.synthetic import CLASSES, generate_dataset, generate_scene


@pytest.fixture(autouse=True)
def scan_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "maskserve" / "scan"


@pytest.fixture
def dataset(tmp_path: Path) -> SegmentationDataset:
    generate_dataset(tmp_path / "s", counts={"train": 5}, size=(40, 56))
    images, masks = tmp_path / "s/images/train", tmp_path / "s/masks/train"
    pairs = [Pair(path.stem, path, masks / f"{path.stem}.png") for path in sorted(images.iterdir())]
    for pair in pairs:
        for path in (pair.image, pair.mask):
            os.utime(path, (1_700_000_000, 1_700_000_000))  # new files are not cached
    return SegmentationDataset(pairs, CLASSES)


def stats_equal(one: SampleStats, two: SampleStats) -> bool:
    def equal(a: object, b: object) -> bool:
        if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
            return a.dtype == b.dtype and np.array_equal(a, b)
        return type(a) is type(b) and a == b

    return all(equal(getattr(one, each.name), getattr(two, each.name)) for each in fields(SampleStats))


def stats_of_pair(
    tmp_path: Path, image: Image.Image, mask: Image.Image, suffix: str = ".png", **options: object
) -> SampleStats:
    image.save(tmp_path / "a.jpg", **options)
    mask.save(tmp_path / f"m{suffix}")
    return compute_sample_stats(
        SegmentationDataset([Pair("a", tmp_path / "a.jpg", tmp_path / f"m{suffix}")], CLASSES), 0
    )


@pytest.mark.parametrize("highest", [2, 256, 300, 60_000, 1 << 24])
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 5), (40, 61)])
def test_value_counts_equal_a_plain_count(highest: int, size: tuple[int, int]) -> None:
    dtype = np.uint8 if highest <= 256 else np.uint16 if highest <= 65536 else np.uint32
    mask = np.random.default_rng(highest).integers(0, highest, size).astype(dtype)
    values, quarters, edges, extra = count_values(mask)
    present, counts = np.unique(mask, return_counts=True)
    assert extra == max(0, len(present) - 256)
    assert quarters.sum() == np.sort(counts)[::-1][:256].sum()
    padded = np.pad(mask.astype(np.int64), 1, mode="edge")
    inner = padded[1:-1, 1:-1]
    neighbors = [padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:]]
    edge = np.any([other != inner for other in neighbors], axis=0)
    middle, center = size[0] // 2, size[1] // 2
    for value, quarter, at_edge in zip(values.tolist(), quarters.tolist(), edges.tolist(), strict=True):
        equal = mask == value
        assert quarter == [
            [equal[:middle, :center].sum(), equal[:middle, center:].sum()],
            [equal[middle:, :center].sum(), equal[middle:, center:].sum()],
        ]
        assert at_edge == (equal & edge).sum()


def test_counts_past_2_to_the_24_are_exact() -> None:
    """OpenCV counts in float32."""
    values, quarters, _, _ = count_values(np.zeros((2 * 4096 + 1, 2 * 4096 + 1), np.uint8))
    assert values.tolist() == [0]
    assert quarters.tolist() == [[[4096**2, 4096 * 4097], [4097 * 4096, 4097**2]]]


def test_statistics_of_a_pair(tmp_path: Path) -> None:
    image, labels = generate_scene(np.random.default_rng(1), (40, 56))
    exif = Image.Exif()
    exif[0x0112] = 6
    stats = stats_of_pair(tmp_path, Image.fromarray(image), Image.fromarray(labels), exif=exif)
    assert (stats.size, stats.mask_size, stats.orientation) == ((56, 40), (40, 56), 6)
    assert (stats.image_format, stats.mask_format, stats.kind, stats.lossy) == ("JPEG", "PNG", "gray", False)
    assert stats.values.tolist() == np.unique(labels).tolist()
    assert stats.errors == ()


def test_at_most_max_images_of_a_split_are_compared_with_their_masks(
    dataset: SegmentationDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample_stats, "mask_alignment", lambda gradients, mask: 1.1)
    monkeypatch.setattr(sample_stats, "MAX_IMAGES", 2)
    all_stats = [compute_sample_stats(dataset, index) for index in range(len(dataset))]
    assert [stats.alignment for stats in all_stats] == [1.1, 0, 0, 1.1, 0]


def test_a_png_with_exif_after_the_pixels_is_rotated(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 8
    Image.new("RGB", (9, 5)).save(tmp_path / "a.png", exif=exif)
    Image.new("L", (5, 9)).save(tmp_path / "m.png")
    stats = compute_sample_stats(SegmentationDataset([Pair("a", tmp_path / "a.png", tmp_path / "m.png")], CLASSES), 0)
    assert (stats.size, stats.orientation) == ((9, 5), 8)


@pytest.mark.parametrize(
    ("suffix", "options", "lossy"),
    [
        (".jpg", {}, True),
        (".webp", {"lossless": True, "exact": True}, False),
        (".webp", {"quality": 50}, True),
        (".tif", {"compression": "jpeg"}, True),
        (".tif", {"compression": "tiff_lzw"}, False),
        (".bmp", {}, False),
    ],
)
def test_lossy_masks_are_recognized(tmp_path: Path, suffix: str, options: dict[str, object], lossy: bool) -> None:
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    Image.new("RGB" if suffix == ".webp" else "L", (40, 40)).save(tmp_path / f"m{suffix}", **options)
    stats = compute_sample_stats(
        SegmentationDataset([Pair("a", tmp_path / "a.png", tmp_path / f"m{suffix}")], CLASSES), 0
    )
    assert stats.lossy is lossy
    assert stats.mask_format in ("JPEG", "WEBP", "TIFF", "BMP")


def test_broken_files_are_errors_with_their_name(tmp_path: Path, dataset: SegmentationDataset) -> None:
    broken = {0: b"", 1: b"no image", 2: dataset.pairs[2].image.read_bytes()[:400]}
    for index, data in broken.items():
        dataset.pairs[index].image.write_bytes(data)
    dataset.pairs[3].mask.unlink()
    found = scan_split(dataset)
    for index in broken:
        assert found[index].size is None
        assert dataset.pairs[index].image.name in found[index].errors[0]
        assert found[index].values.size  # the mask is still counted
    assert dataset.pairs[3].mask.name in found[3].errors[0]
    assert found[4].errors == ()


def test_any_exception_of_a_mask_reader_is_an_error_of_its_pair(dataset: SegmentationDataset) -> None:
    def raises(pair: Pair) -> RawMask:
        raise ZeroDivisionError("inside a format")

    found = scan_split(replace(dataset, mask_reader=raises))
    assert [len(each.errors) for each in found] == [1] * 5
    assert "inside a format" in found[0].errors[0]


def test_images_of_one_pixel_and_beyond_the_limit(tmp_path: Path) -> None:
    write_huge_image(tmp_path / "huge.png")
    Image.new("1", (1, 1)).save(tmp_path / "dot.png")
    pairs = [Pair(name, tmp_path / f"{name}.png", tmp_path / f"{name}.png") for name in ("huge", "dot")]
    huge, dot = scan_split(SegmentationDataset(pairs, CLASSES))
    assert all("limit is 100,000,000" in message for message in huge.errors) and len(huge.errors) == 2
    assert dot.errors == () and dot.size == (1, 1) and dot.perceptual_hash == 0


def test_the_pixel_budget_is_not_exceeded() -> None:
    budget, lock, used, highest = PixelBudget(10), threading.Lock(), [0], [0]

    def hold(pixels: int) -> None:
        with budget.reserve(pixels):
            with lock:
                used[0] += min(pixels, 10)
                highest[0] = max(highest[0], used[0])
            time.sleep(0.001)
            with lock:
                used[0] -= min(pixels, 10)

    threads = [threading.Thread(target=hold, args=(pixels,)) for pixels in [4, 6, 3, 1000, 7, 5] * 5]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads)
    assert 0 < highest[0] <= 10


def test_the_second_scan_reads_no_file(dataset: SegmentationDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    first = scan_split(dataset)
    monkeypatch.setattr("training.data.scan.scanner.compute_sample_stats", None)
    calls: list[tuple[int, int]] = []
    second = scan_split(dataset, lambda done, total: calls.append((done, total)))
    assert all(stats_equal(a, b) for a, b in zip(first, second, strict=True))
    assert calls[-1] == (5, 5)


def test_changed_files_are_read_again_and_deleted_ones_leave_the_cache(
    dataset: SegmentationDataset, scan_cache_folder: Path
) -> None:
    scan_split(dataset)
    Image.new("L", (56, 40), 3).save(dataset.pairs[1].mask)
    assert scan_split(dataset)[1].values.tolist() == [3]
    dataset.pairs[0].image.unlink()
    scan_split(SegmentationDataset(dataset.pairs[1:], CLASSES))
    (file,) = scan_cache_folder.glob("*.npz")
    assert dataset.pairs[0].name not in " ".join(scan_cache._load_entries(file))


def test_a_new_file_is_not_cached(dataset: SegmentationDataset) -> None:
    os.utime(dataset.pairs[0].mask)
    scan_split(dataset)
    size = dataset.pairs[0].mask.stat()
    Image.new("L", (56, 40), 4).save(dataset.pairs[0].mask)
    data = dataset.pairs[0].mask.read_bytes()
    dataset.pairs[0].mask.write_bytes(data + b"\0" * (size.st_size - len(data)))
    os.utime(dataset.pairs[0].mask, ns=(size.st_atime_ns, size.st_mtime_ns))
    assert scan_split(dataset)[0].values.tolist() == [4]


def test_the_cache_depends_on_the_mask_reader(dataset: SegmentationDataset) -> None:
    def nines(pair: Pair) -> RawMask:
        return RawMask(np.full((40, 56), 9, np.uint8))

    scan_split(dataset)
    assert scan_split(replace(dataset, mask_reader=nines))[0].values.tolist() == [9]
    assert scan_split(dataset)[0].values.tolist() != [9]


@pytest.mark.parametrize("damage", ["cut", "noise", "empty", "folder", "columns"])
def test_a_broken_cache_is_ignored(dataset: SegmentationDataset, scan_cache_folder: Path, damage: str) -> None:
    first = scan_split(dataset)
    (file,) = scan_cache_folder.glob("*.npz")
    data = file.read_bytes()
    if damage == "folder":
        file.unlink()
        file.mkdir()
    elif damage == "columns":
        np.savez(file, text=np.frombuffer(b'{"keys": ["a"], "formats": []}', np.uint8))
    else:
        file.write_bytes({"cut": data[: len(data) // 2], "noise": os.urandom(len(data)), "empty": b""}[damage])
    assert all(stats_equal(a, b) for a, b in zip(first, scan_split(dataset), strict=True))


def test_an_unwritable_cache_does_not_stop_a_scan(
    dataset: SegmentationDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert len(scan_split(dataset)) == 5


def test_concurrent_scans_leave_a_valid_cache(dataset: SegmentationDataset, scan_cache_folder: Path) -> None:
    threads = [threading.Thread(target=scan_split, args=(dataset,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (file,) = scan_cache_folder.iterdir()  # no temporary file is left
    assert len(scan_cache._load_entries(file)) == 5


def test_an_interrupted_scan_is_cached(dataset: SegmentationDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.data.scan.scanner.CHUNK_SIZE", 1)

    def stop(done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scan_split(dataset, stop)
    calls: list[int] = []
    scan_split(dataset, lambda done, total: calls.append(done))
    assert calls[0] == 3


def test_digests_depend_on_pixels_and_size_only(tmp_path: Path) -> None:
    image, _ = generate_scene(np.random.default_rng(1), (40, 56))
    assert pixel_digest(image) == pixel_digest(np.asfortranarray(image))
    assert pixel_digest(image) != pixel_digest(image[:, ::-1])
    assert pixel_digest(np.zeros((2, 3, 3), np.uint8)) != pixel_digest(np.zeros((3, 2, 3), np.uint8))


@pytest.mark.parametrize("height", [1, 32])
def test_signals_drawn_as_images_are_not_alike(height: int) -> None:
    """A hash of 32 x 32 pixels averages over a hundred columns: bursts of noise became near duplicates."""
    row = np.random.default_rng(0).integers(0, 256, (1, 4096, 1), dtype=np.uint8)
    assert perceptual_hash(np.broadcast_to(row, (height, 4096, 3)).copy()) == 0


def test_perceptual_hashes_are_close_for_one_scene_and_far_for_others() -> None:
    scenes = [generate_scene(np.random.default_rng(seed), (144, 192))[0] for seed in range(12)]
    hashes = [perceptual_hash(each) for each in scenes]
    for image, expected in zip(scenes, hashes, strict=True):
        smaller = cv2.resize(image, (120, 90), interpolation=cv2.INTER_AREA)
        brighter = np.clip(image.astype(int) + 12, 0, 255).astype(np.uint8)
        _, jpeg = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 40])
        for other in (smaller, brighter, cv2.imdecode(jpeg, cv2.IMREAD_COLOR)):
            assert (perceptual_hash(other) ^ expected).bit_count() <= 6
    assert min((a ^ b).bit_count() for i, a in enumerate(hashes) for b in hashes[:i]) > 6
    assert perceptual_hash(np.full((30, 40, 3), 7, np.uint8)) == 0


def test_indices_past_the_end_of_a_palette_are_black(dataset: SegmentationDataset) -> None:
    def short(pair: Pair) -> RawMask:
        return RawMask(np.uint8([[0, 1, 7]]), "palette", (0x010203, 0xFF0000))

    stats = compute_sample_stats(replace(dataset, mask_reader=short), 0)
    assert stats.values.tolist() == [0, 1, 7]
    assert stats.palette_colors.tolist() == [0x010203, 0xFF0000, 0]
