import os
import threading
import time
from dataclasses import fields, replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from training.data.dataset import Pair, SegmentationDataset
from training.data.mask_decoding import RawMask
from training.data.scan import scan_cache
from training.data.scan.pixel_stats import count_values, perceptual_hash, pixel_digest
from training.data.scan.sample_stats import PixelBudget, compute_sample_stats
from training.data.scan.scanner import SampleStats, scan
from training.data.synthetic import CLASSES, generate_dataset, generate_scene


@pytest.fixture(autouse=True)
def scan_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "maskserve" / "facts"


@pytest.fixture
def samples(tmp_path: Path) -> SegmentationDataset:
    generate_dataset(tmp_path / "s", counts={"train": 5}, size=(40, 56))
    images, masks = tmp_path / "s/images/train", tmp_path / "s/masks/train"
    pairs = [Pair(path.stem, path, masks / f"{path.stem}.png") for path in sorted(images.iterdir())]
    for pair in pairs:
        for path in (pair.image, pair.mask):
            os.utime(path, (1_700_000_000, 1_700_000_000))  # what was just written is not kept yet
    return SegmentationDataset(pairs, CLASSES)


def stats_equal(one: SampleStats, two: SampleStats) -> bool:
    def equal(a: object, b: object) -> bool:
        if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
            return a.dtype == b.dtype and np.array_equal(a, b)
        return type(a) is type(b) and a == b

    return all(equal(getattr(one, each.name), getattr(two, each.name)) for each in fields(SampleStats))


def stats_of_pair(
    tmp_path: Path, image: Image.Image, mask: Image.Image, suffix: str = ".png", **how: object
) -> SampleStats:
    image.save(tmp_path / "a.jpg", **how)
    mask.save(tmp_path / f"m{suffix}")
    return compute_sample_stats(
        SegmentationDataset([Pair("a", tmp_path / "a.jpg", tmp_path / f"m{suffix}")], CLASSES), 0
    )


@pytest.mark.parametrize("highest", [2, 256, 300, 60_000, 1 << 24])
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 5), (40, 61)])
def test_a_tally_is_what_a_plain_count_gives(highest: int, size: tuple[int, int]) -> None:
    dtype = np.uint8 if highest <= 256 else np.uint16 if highest <= 65536 else np.uint32
    mask = np.random.default_rng(highest).integers(0, highest, size).astype(dtype)
    values, quarters, edges, more = count_values(mask)
    there, counts = np.unique(mask, return_counts=True)
    assert more == max(0, len(there) - 256)
    assert quarters.sum() == np.sort(counts)[::-1][:256].sum()
    around = np.pad(mask.astype(np.int64), 1, mode="edge")
    inner = around[1:-1, 1:-1]
    beside = [around[:-2, 1:-1], around[2:, 1:-1], around[1:-1, :-2], around[1:-1, 2:]]
    edge = np.any([other != inner for other in beside], axis=0)
    middle, centre = size[0] // 2, size[1] // 2
    for value, quarter, at_edge in zip(values.tolist(), quarters.tolist(), edges.tolist(), strict=True):
        held = mask == value
        assert quarter == [
            [held[:middle, :centre].sum(), held[:middle, centre:].sum()],
            [held[middle:, :centre].sum(), held[middle:, centre:].sum()],
        ]
        assert at_edge == (held & edge).sum()


def test_counts_past_2_to_the_24_are_exact() -> None:
    values, quarters, _, _ = count_values(np.zeros((2 * 4200 + 1, 2 * 4200 + 1), np.uint8))  # OpenCV counts in float32
    assert values.tolist() == [0]
    assert quarters.tolist() == [[[4200**2, 4200 * 4201], [4201 * 4200, 4201**2]]]


def test_a_pair_is_told_by_its_files(tmp_path: Path) -> None:
    image, labels = generate_scene(np.random.default_rng(1), (40, 56))
    exif = Image.Exif()
    exif[0x0112] = 6
    facts = stats_of_pair(tmp_path, Image.fromarray(image), Image.fromarray(labels), exif=exif)
    assert (facts.size, facts.mask_size, facts.orientation) == ((56, 40), (40, 56), 6)
    assert (facts.image_format, facts.mask_format, facts.kind, facts.lossy) == ("JPEG", "PNG", "grey", False)
    assert facts.values.tolist() == np.unique(labels).tolist()
    assert facts.errors == ()


def test_a_png_with_its_exif_at_the_end_is_turned_too(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 8
    Image.new("RGB", (9, 5)).save(tmp_path / "a.png", exif=exif)
    Image.new("L", (5, 9)).save(tmp_path / "m.png")
    facts = compute_sample_stats(SegmentationDataset([Pair("a", tmp_path / "a.png", tmp_path / "m.png")], CLASSES), 0)
    assert (facts.size, facts.orientation) == ((9, 5), 8)


@pytest.mark.parametrize(
    ("suffix", "how", "lossy"),
    [
        (".jpg", {}, True),
        (".webp", {"lossless": True, "exact": True}, False),
        (".webp", {"quality": 50}, True),
        (".tif", {"compression": "jpeg"}, True),
        (".tif", {"compression": "tiff_lzw"}, False),
        (".bmp", {}, False),
    ],
)
def test_a_lossy_mask_is_told_apart(tmp_path: Path, suffix: str, how: dict[str, object], lossy: bool) -> None:
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    Image.new("RGB" if suffix == ".webp" else "L", (40, 40)).save(tmp_path / f"m{suffix}", **how)
    facts = compute_sample_stats(
        SegmentationDataset([Pair("a", tmp_path / "a.png", tmp_path / f"m{suffix}")], CLASSES), 0
    )
    assert facts.lossy is lossy
    assert facts.mask_format in ("JPEG", "WEBP", "TIFF", "BMP")


def test_every_broken_file_is_a_sentence_with_its_name(tmp_path: Path, samples: SegmentationDataset) -> None:
    broken = {0: b"", 1: b"no image", 2: samples.pairs[2].image.read_bytes()[:400]}
    for index, data in broken.items():
        samples.pairs[index].image.write_bytes(data)
    samples.pairs[3].mask.unlink()
    found = scan(samples)
    for index in broken:
        assert found[index].size is None
        assert samples.pairs[index].image.name in found[index].errors[0]
        assert found[index].values.size  # the mask is told all the same
    assert samples.pairs[3].mask.name in found[3].errors[0]
    assert found[4].errors == ()


def test_a_drawer_that_raises_anything_is_an_error_of_its_pair(samples: SegmentationDataset) -> None:
    def raises(pair: Pair) -> RawMask:
        raise ZeroDivisionError("inside a format")

    found = scan(replace(samples, mask_reader=raises))
    assert [len(each.errors) for each in found] == [1] * 5
    assert "inside a format" in found[0].errors[0]


def test_a_giant_and_a_dot_in_one_set(tmp_path: Path) -> None:
    Image.new("1", (20_000, 20_000)).save(tmp_path / "giant.png")
    Image.new("1", (1, 1)).save(tmp_path / "dot.png")
    pairs = [Pair(name, tmp_path / f"{name}.png", tmp_path / f"{name}.png") for name in ("giant", "dot")]
    giant, dot = scan(SegmentationDataset(pairs, CLASSES))
    assert all("limit is 100,000,000" in sentence for sentence in giant.errors) and len(giant.errors) == 2
    assert dot.errors == () and dot.size == (1, 1) and dot.perceptual_hash == 0


def test_a_room_holds_no_more_than_it_has() -> None:
    room, lock, inside, most = PixelBudget(10), threading.Lock(), [0], [0]

    def enter(pixels: int) -> None:
        with room.reserve(pixels):
            with lock:
                inside[0] += min(pixels, 10)
                most[0] = max(most[0], inside[0])
            time.sleep(0.001)
            with lock:
                inside[0] -= min(pixels, 10)

    threads = [threading.Thread(target=enter, args=(pixels,)) for pixels in [4, 6, 3, 1000, 7, 5] * 5]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads)
    assert 0 < most[0] <= 10


def test_the_second_scan_reads_no_image(samples: SegmentationDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    first = scan(samples)
    monkeypatch.setattr("training.data.scan.scanner.examine", None)  # would be called by whoever reads
    told: list[tuple[int, int]] = []
    second = scan(samples, lambda done, total: told.append((done, total)))
    assert all(stats_equal(a, b) for a, b in zip(first, second, strict=True))
    assert told[-1] == (5, 5)


def test_what_changed_is_read_again_and_what_is_gone_is_forgotten(
    samples: SegmentationDataset, scan_cache_folder: Path
) -> None:
    scan(samples)
    Image.new("L", (56, 40), 3).save(samples.pairs[1].mask)
    assert scan(samples)[1].values.tolist() == [3]
    samples.pairs[0].image.unlink()
    scan(SegmentationDataset(samples.pairs[1:], CLASSES))
    (file,) = scan_cache_folder.glob("*.npz")
    assert samples.pairs[0].name not in " ".join(scan_cache._load_entries(file))


def test_a_file_that_was_just_written_is_not_trusted(samples: SegmentationDataset) -> None:
    os.utime(samples.pairs[0].mask)
    scan(samples)
    size = samples.pairs[0].mask.stat()
    Image.new("L", (56, 40), 4).save(samples.pairs[0].mask)
    data = samples.pairs[0].mask.read_bytes()
    samples.pairs[0].mask.write_bytes(data + b"\0" * (size.st_size - len(data)))
    os.utime(samples.pairs[0].mask, ns=(size.st_atime_ns, size.st_mtime_ns))
    assert scan(samples)[0].values.tolist() == [4]


def test_masks_drawn_otherwise_are_other_masks(samples: SegmentationDataset) -> None:
    def nines(pair: Pair) -> RawMask:
        return RawMask(np.full((40, 56), 9, np.uint8))

    scan(samples)
    assert scan(replace(samples, mask_reader=nines))[0].values.tolist() == [9]
    assert scan(samples)[0].values.tolist() != [9]


@pytest.mark.parametrize("harm", ["cut", "noise", "empty", "folder", "columns"])
def test_a_broken_cache_costs_time_and_nothing_else(
    samples: SegmentationDataset, scan_cache_folder: Path, harm: str
) -> None:
    first = scan(samples)
    (file,) = scan_cache_folder.glob("*.npz")
    data = file.read_bytes()
    if harm == "folder":
        file.unlink()
        file.mkdir()
    elif harm == "columns":
        np.savez(file, text=np.frombuffer(b'{"keys": ["a"], "formats": []}', np.uint8))
    else:
        file.write_bytes({"cut": data[: len(data) // 2], "noise": os.urandom(len(data)), "empty": b""}[harm])
    assert all(stats_equal(a, b) for a, b in zip(first, scan(samples), strict=True))


def test_a_cache_that_cannot_be_written_fails_no_scan(
    samples: SegmentationDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert len(scan(samples)) == 5


def test_two_at_once_leave_a_whole_cache(samples: SegmentationDataset, scan_cache_folder: Path) -> None:
    threads = [threading.Thread(target=scan, args=(samples,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (file,) = scan_cache_folder.iterdir()  # and no half-written one
    assert len(scan_cache._load_entries(file)) == 5


def test_a_stop_keeps_what_was_read(samples: SegmentationDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.data.scan.scanner.CHUNK", 1)

    def stop(done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scan(samples, stop)
    told: list[int] = []
    scan(samples, lambda done, total: told.append(done))
    assert told[0] == 3


def test_equal_pixels_have_equal_digests_whatever_the_file(tmp_path: Path) -> None:
    image, _ = generate_scene(np.random.default_rng(1), (40, 56))
    assert pixel_digest(image) == pixel_digest(np.asfortranarray(image))
    assert pixel_digest(image) != pixel_digest(image[:, ::-1])
    assert pixel_digest(np.zeros((2, 3, 3), np.uint8)) != pixel_digest(np.zeros((3, 2, 3), np.uint8))


def test_likeness_is_near_for_the_same_scene_and_far_for_others() -> None:
    scenes = [generate_scene(np.random.default_rng(seed), (144, 192))[0] for seed in range(12)]
    marks = [perceptual_hash(each) for each in scenes]
    for image, mark in zip(scenes, marks, strict=True):
        smaller = cv2.resize(image, (120, 90), interpolation=cv2.INTER_AREA)
        brighter = np.clip(image.astype(int) + 12, 0, 255).astype(np.uint8)
        _, jpeg = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 40])
        for other in (smaller, brighter, cv2.imdecode(jpeg, cv2.IMREAD_COLOR)):
            assert (perceptual_hash(other) ^ mark).bit_count() <= 6
    assert min((a ^ b).bit_count() for i, a in enumerate(marks) for b in marks[:i]) > 6
    assert perceptual_hash(np.full((30, 40, 3), 7, np.uint8)) == 0


def test_a_palette_that_ends_too_soon_is_black_beyond(samples: SegmentationDataset) -> None:
    def short(pair: Pair) -> RawMask:
        return RawMask(np.uint8([[0, 1, 7]]), "palette", (0x010203, 0xFF0000))

    facts = compute_sample_stats(replace(samples, mask_reader=short), 0)
    assert facts.values.tolist() == [0, 1, 7]
    assert facts.palette_colors.tolist() == [0x010203, 0xFF0000, 0]
