import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.errors import DataError
from models.spec import VOID, default_rgb
from tests.training.layouts import (
    DIAGONAL,
    HEIGHT,
    SQUARE,
    WIDTH,
    coco,
    coco_below_images,
    coco_of_cvat,
    content,
    label_studio,
    mask,
    panoptic,
    picture,
    roboflow,
    write,
)
from training.data import has_split, load
from training.data.coco import recognises
from training.data.coco_json import read_categories
from training.data.samples import Samples
from training.data.splits import hashed_split

SPLITS = ("train", "val", "test")
INSIDE = np.zeros((HEIGHT, WIDTH), np.uint8)
INSIDE[1:4, 2:6] = 1
WHOLE = [0, 0, WIDTH, 0, WIDTH, HEIGHT, 0, HEIGHT]


def opened(root: Path, *annotations: dict[str, Any], names: tuple[str, ...] = ("a.jpg",), **more: Any) -> Samples:
    """The training split of a data set of these annotations, on the picture 100 where they do not say."""
    for name in names:
        picture(root / "images" / name)
    entries = [{"image_id": 100, "category_id": 1, **entry} for entry in annotations]
    write(root / "annotations" / "instances_train.json", content(names, entries, **more))
    write(root / "annotations" / "instances_val.json", content(names, entries, **more))
    return load(root, "train")


def test_what_no_instance_covers_is_background_and_sparse_ids_are_labels_in_their_order(tmp_path: Path) -> None:
    samples = opened(tmp_path, {"category_id": 90, "segmentation": [SQUARE]})
    assert [entry.name for entry in samples.classes] == ["background", "person", "toothbrush"]
    assert [entry.rgb for entry in samples.classes] == [default_rgb(label) for label in range(3)]
    assert (samples.labels(0) == 2 * INSIDE).all()


def test_a_category_that_is_called_background_is_the_background(tmp_path: Path) -> None:
    categories = [{"id": 1, "name": "person"}, {"id": 2, "name": "Background"}]
    samples = opened(tmp_path, {"segmentation": [SQUARE]}, categories=categories)
    assert [entry.name for entry in samples.classes] == ["Background", "person"]
    assert (samples.labels(0) == INSIDE).all()


def test_colours_of_the_categories_are_kept(tmp_path: Path) -> None:
    categories = [
        {"id": 1, "name": "person", "color": [220, 20, 60]},
        {"id": 2, "name": "dog", "color": "#ff0000"},
        {"id": 3, "name": "cat", "color": [1, 2, 300]},
    ]
    classes = opened(tmp_path, {"segmentation": [SQUARE]}, categories=categories).classes
    assert [entry.rgb for entry in classes[1:]] == [(220, 20, 60), default_rgb(2), default_rgb(3)]


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("order", [1, -1])
def test_smaller_regions_lie_over_larger_ones_in_whatever_order_they_come(
    told: bool, order: int, tmp_path: Path
) -> None:
    regions = [{"category_id": 90, "segmentation": [WHOLE]}, {"category_id": 1, "segmentation": [SQUARE]}]
    if told:
        regions = [{**region, "area": area} for region, area in zip(regions, (48, 12.0), strict=True)]
    assert (opened(tmp_path, *regions[::order]).labels(0) == 2 - INSIDE).all()


def test_the_outlines_of_one_region_are_joined(tmp_path: Path) -> None:
    labels = opened(tmp_path, {"segmentation": [SQUARE, [6, 0, 8, 0, 8, 6, 6, 6], [1, 1, 2, 2]]}).labels(0)
    wanted = INSIDE.copy()
    wanted[:, 6:] = 1
    assert (labels == wanted).all()


def test_an_outline_without_a_list_around_it_is_read(tmp_path: Path) -> None:
    assert (opened(tmp_path, {"segmentation": SQUARE}).labels(0) == INSIDE).all()


@pytest.mark.parametrize("counts", [[13, 3, 3, 3, 3, 3, 3, 3, 14], "=3300000;"])
def test_run_lengths_are_read_plain_and_packed(counts: Any, tmp_path: Path) -> None:
    samples = opened(tmp_path, {"segmentation": {"size": [HEIGHT, WIDTH], "counts": counts}})
    assert (samples.labels(0) == INSIDE).all()


def test_a_crowd_is_void_below_the_things_that_were_drawn_one_by_one(tmp_path: Path) -> None:
    crowd = {"iscrowd": 1, "area": 1, "segmentation": {"size": [HEIGHT, WIDTH], "counts": [0, 48]}}
    samples = opened(tmp_path, {"segmentation": [SQUARE]}, crowd)
    assert (samples.labels(0) == np.where(INSIDE, 1, VOID)).all()
    assert any("1 regions marked `iscrowd` are void" in note for note in samples.notes)


def test_what_cvat_calls_a_crowd_is_a_mask_painted_by_brush(tmp_path: Path) -> None:
    brushed = {
        "iscrowd": 1,
        "segmentation": {"size": [HEIGHT, WIDTH], "counts": [0, 48]},
        "attributes": {"occluded": 0},
    }
    samples = opened(tmp_path, brushed)
    assert (samples.labels(0) == 1).all()
    assert samples.notes == ()


def test_a_box_without_outline_is_void_and_told(tmp_path: Path) -> None:
    samples = opened(
        tmp_path, {"segmentation": [], "bbox": [0, 0, 8, 2]}, {"segmentation": [SQUARE]}, {"segmentation": [WHOLE[:4]]}
    )
    wanted = INSIDE.copy()
    wanted[:2] = VOID
    wanted[1, 2:6] = 1
    assert (samples.labels(0) == wanted).all()
    assert any("1 boxes have no outline" in note for note in samples.notes)


def test_boxes_alone_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds boxes alone"):
        opened(tmp_path, {"segmentation": [], "bbox": [0, 0, 8, 2]})


def test_a_picture_without_annotation_is_background_and_told(tmp_path: Path) -> None:
    samples = opened(tmp_path, {"segmentation": [SQUARE]}, names=("a.jpg", "b.jpg"))
    assert [pair.name for pair in samples.pairs] == ["a", "b"]
    assert (samples.labels(1) == 0).all()
    assert any("1 of 2 pictures have no annotation" in note for note in samples.notes)


def test_masks_have_the_size_that_the_file_tells(tmp_path: Path) -> None:
    images = [{"id": 100, "file_name": "a.jpg", "height": 20, "width": 10}]
    assert opened(tmp_path, {"segmentation": [SQUARE]}, images=images).labels(0).shape == (20, 10)


def test_pictures_that_are_not_there_are_left_out_and_told(tmp_path: Path) -> None:
    opened(tmp_path, {"segmentation": [SQUARE]}, names=("a.jpg", "b.jpg"))
    (tmp_path / "images" / "b.jpg").unlink()
    samples = load(tmp_path, "train")
    assert [pair.name for pair in samples.pairs] == ["a"]
    assert any("lists 1 pictures that are not in" in note and "b.jpg" in note for note in samples.notes)
    (tmp_path / "images" / "a.jpg").unlink()
    with pytest.raises(DataError, match=r"lists 2 pictures, and none is in .*; put them into"):
        load(tmp_path, "train")


@pytest.mark.parametrize(
    "written",
    ["b c.jpg", "images/b c.jpg", "..\\..\\media\\upload\\4\\b c.jpg", "/data/local-files/b%20c.jpg", "./b c.jpg"],
)
def test_a_picture_is_found_by_the_end_of_its_path(written: str, tmp_path: Path) -> None:
    picture(tmp_path / "images" / "b c.jpg")
    write(tmp_path / "result.json", content([written]))
    (pair,) = load(tmp_path, hashed_split("b c")).pairs
    assert pair.image == tmp_path / "images" / "b c.jpg"


def test_names_are_found_in_either_unicode_form(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "Stra\u00dfe_a\u0308.jpg")
    for split in ("train", "val"):
        write(tmp_path / "annotations" / f"instances_{split}.json", content(["Stra\u00dfe_\u00e4.jpg"]))
    assert len(load(tmp_path, "train")) == 1


def test_of_two_pictures_of_a_name_the_folder_decides(tmp_path: Path) -> None:
    for folder in ("day", "night"):
        picture(tmp_path / "images" / folder / "1.jpg")
    opened(tmp_path, {"segmentation": [SQUARE]}, names=("night/1.jpg", "day/1.jpg"))
    samples = load(tmp_path, "train")
    assert [(pair.name, pair.image.parent.name) for pair in samples.pairs] == [("day/1", "day"), ("night/1", "night")]
    assert samples.labels(0).max() == 0
    assert samples.labels(1).max() == 1
    write(tmp_path / "annotations" / "instances_train.json", content(["1.jpg"]))
    with pytest.raises(DataError, match=r"lists 1\.jpg, which may be .*1\.jpg or .*1\.jpg"):
        load(tmp_path, "train")


def test_two_entries_for_one_picture_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"lists x/a\.jpg and y/a\.jpg, but .*a\.jpg alone is there"):
        picture(tmp_path / "images" / "a.jpg")
        write(tmp_path / "annotations" / "instances_train.json", content(["x/a.jpg", "y/a.jpg"]))
        load(tmp_path, "train")


def test_a_picture_of_another_split_is_not_taken_for_one_that_is_missing(tmp_path: Path) -> None:
    for split in ("train", "val"):
        picture(tmp_path / split / "1.jpg")
        write(tmp_path / "annotations" / f"instances_{split}.json", content(["1.jpg"]))
    assert load(tmp_path, "val").pairs[0].image == tmp_path / "val" / "1.jpg"
    (tmp_path / "val" / "1.jpg").unlink()
    with pytest.raises(DataError, match="none is in"):
        load(tmp_path, "val")


def test_pictures_that_differ_by_suffix_alone_keep_it(tmp_path: Path) -> None:
    samples = opened(tmp_path, {"segmentation": [SQUARE]}, names=("a.jpg", "a.png", "b.png"))
    assert [pair.name for pair in samples.pairs] == ["a.jpg", "a.png", "b"]


def test_one_file_is_split_by_the_hash_of_the_names(tmp_path: Path) -> None:
    coco_of_cvat(tmp_path)
    names = [{pair.name for pair in load(tmp_path, split).pairs} for split in SPLITS]
    assert sum(map(len, names)) == len(set.union(*names)) == 60
    assert "frame_000000" in set.union(*names)


def test_roboflows_group_of_the_classes_is_no_class(tmp_path: Path) -> None:
    roboflow(tmp_path)
    samples = load(tmp_path, "val")
    assert [entry.name for entry in samples.classes] == ["background", "person", "dog"]
    assert samples.pairs[0].image.parent.name == "valid"
    assert (samples.labels(0) == INSIDE).all()


def test_what_stuff_leaves_out_is_void_and_no_class(tmp_path: Path) -> None:
    coco_below_images(tmp_path)
    samples = load(tmp_path, "train")
    assert [entry.name for entry in samples.classes] == ["person", "toothbrush"]
    assert (samples.labels(0) == np.where(INSIDE, 0, VOID)).all()


def test_panoptic_segments_are_read_by_colour_and_the_rest_is_void(tmp_path: Path) -> None:
    panoptic(tmp_path)
    samples = load(tmp_path, "train")
    assert [entry.name for entry in samples.classes] == ["person", "toothbrush"]
    assert (samples.labels(0) == np.where(DIAGONAL, 1, VOID)).all()
    assert samples.pairs[0].mask == tmp_path / "annotations" / "panoptic_train2017" / "train_1.png"


def test_a_panoptic_crowd_is_void(tmp_path: Path) -> None:
    panoptic(tmp_path)
    ids = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    ids[:3, :, 0], ids[3:, :, 1] = 7, 1
    mask(tmp_path / "annotations" / "panoptic_train2017" / "train_1.png", ids)
    segments = [{"id": 7, "category_id": 1, "iscrowd": 0}, {"id": 256, "category_id": 90, "iscrowd": 1}]
    entry = {"image_id": 100, "file_name": "train_1.png", "segments_info": segments}
    write(tmp_path / "annotations" / "panoptic_train2017.json", content(["train_1.jpg"], [entry]))
    labels = load(tmp_path, "train").labels(0)
    assert (labels[:3] == 0).all()
    assert (labels[3:] == VOID).all()


def test_a_panoptic_picture_without_png_is_unpaired_and_a_missing_folder_told(tmp_path: Path) -> None:
    panoptic(tmp_path)
    lonely = picture(tmp_path / "train2017" / "train_2.jpg")
    file = tmp_path / "annotations" / "panoptic_train2017.json"
    entry = {"image_id": 100, "file_name": "train_1.png", "segments_info": [{"id": 7, "category_id": 1}]}
    write(
        file, content(["train_1.jpg", "train_2.jpg"], [entry, {**entry, "image_id": 101, "file_name": "train_2.png"}])
    )
    assert load(tmp_path, "train").unpaired == (lonely,)
    (tmp_path / "annotations" / "panoptic_train2017").rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="panoptic_train2017 is missing"):
        load(tmp_path, "train")


def test_panoptic_comes_before_instances_and_what_is_left_is_told(tmp_path: Path) -> None:
    panoptic(tmp_path)
    coco(tmp_path)
    samples = load(tmp_path, "train")
    assert len(samples.classes) == 2
    (note,) = samples.notes
    assert "read are those of panoptic, and not annotations/instances_test2017.json" in note
    assert "captions" not in note and "keypoints" not in note
    for split in ("train", "test"):
        (tmp_path / "annotations" / f"panoptic_{split}2017.json").unlink()
    assert len(load(tmp_path, "train").classes) == 3  # the panoptic file of val alone hides nothing


def test_without_val_a_part_of_train_is_held_out(tmp_path: Path) -> None:
    names = [f"{index}.jpg" for index in range(60)]
    for name in names:
        picture(tmp_path / "train2017" / name)
    write(tmp_path / "annotations" / "instances_train2017.json", content(names))
    train, val = (load(tmp_path, split).pairs for split in ("train", "val"))
    assert len(train) + len(val) == 60
    assert 0 < len(val) < 20
    assert [has_split(tmp_path, split) for split in SPLITS] == [True, True, False]


def test_two_files_that_claim_one_split_are_refused(tmp_path: Path) -> None:
    opened(tmp_path, {"segmentation": [SQUARE]})
    write(tmp_path / "annotations" / "instances_train2014.json", content(["a.jpg"]))
    with pytest.raises(DataError, match=r"instances_train\.json and .*instances_train2014\.json both claim"):
        load(tmp_path, "train")


def test_two_files_without_splits_are_refused(tmp_path: Path) -> None:
    label_studio(tmp_path)
    write(tmp_path / "more.json", content(["a.jpg"]))
    with pytest.raises(DataError, match=r"more\.json and .*result\.json both claim to be the whole"):
        load(tmp_path, "train")


def test_classes_are_those_of_all_splits(tmp_path: Path) -> None:
    opened(tmp_path, {"segmentation": [SQUARE]})
    file = tmp_path / "annotations" / "instances_val.json"
    write(file, content(["a.jpg"], categories=[{"id": 1, "name": "person"}, {"id": 44, "name": "dog"}]))
    names = ["background", "person", "dog", "toothbrush"]
    assert all([entry.name for entry in load(tmp_path, split).classes] == names for split in ("train", "val"))
    write(file, content(["a.jpg"], categories=[{"id": 1, "name": "dog"}]))
    with pytest.raises(DataError, match="the category 1 is 'dog' here and 'person' before"):
        load(tmp_path, "train")


def test_categories_are_found_without_reading_the_regions(tmp_path: Path) -> None:
    categories = [{"id": id, "name": f"c\u00e4t{id}" * 400} for id in range(200)]
    odd = {"info": {"categories": ["none"], "description": 'two "categories"'}, "annotations": [], "images": []}
    file = write(tmp_path / "x.json", {**odd, "categories": categories})
    assert file.stat().st_size > 1 << 17
    file.write_text(file.read_text()[:-1] + ', "annotations": [broken')
    with pytest.raises(DataError, match="categories"):
        read_categories(file)
    odd["info"].pop("categories")
    file = write(tmp_path / "y.json", {**odd, "categories": categories})
    file.write_text(file.read_text()[:-1] + ', "annotations": [broken')
    assert read_categories(file) == categories


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"images": [', "is no JSON at line 1, column 13"),
        ("", "is no JSON at line 1"),
        ("[]", "a list came"),
        ('{"images": [], "annotations": []}', "the list `categories` is missing"),
        ('{"categories": [{"id": 1, "name": "a"}]}', "the list `images` is missing"),
        ('{"categories": [{"id": 1}], "images": [], "annotations": []}', r"categories\[0\] needs"),
        ('{"categories": [{"id": -1, "name": "a"}], "images": [], "annotations": []}', r"categories\[0\] needs"),
        ('{"categories": [{"id": 1, "name": "a"}], "images": []}', "the list `annotations` is missing"),
        ('{"categories": [{"id": 1, "name": "a"}], "images": [{"id": 1}], "annotations": []}', r"images\[0\] needs"),
        ('{"images": [{"id": 1, "file_name": "a", "height": 0, "width": 9}], "annotations": []}', r"images\[0\] needs"),
        (
            '{"images": [{"id": 1, "file_name": "a", "height": 1e6, "width": 1e6}], "annotations": []}',
            "100,000,000 pixels",
        ),
    ],
)
def test_what_is_no_coco_file_is_told(text: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "instances_train.json").write_text(text)
    with pytest.raises(DataError, match=rf"instances_train\.json: .*{told}"):
        load(tmp_path, "train")


@pytest.mark.parametrize(
    ("annotation", "told"),
    [
        ({"image_id": 7, "segmentation": [SQUARE]}, "needs the `image_id` of a picture"),
        ({"segmentation": ["abcdef"]}, "needs .* a `segmentation`"),
        ({"segmentation": [SQUARE[:-1]]}, "odd count"),
        ({"segmentation": {"size": [HEIGHT, WIDTH]}}, "needs .* a `segmentation`"),
        ({"segmentation": {"size": [HEIGHT, WIDTH], "counts": [-1, 49]}}, "needs .* a `segmentation`"),
        ({"segmentation": {"size": [WIDTH, HEIGHT], "counts": [48]}}, "of a picture of 6 x 8 .* the image is 8 x 6"),
        ({"segmentation": {"size": [HEIGHT, WIDTH], "counts": [47]}}, "cover 47 pixels"),
        (3, "needs"),
    ],
)
def test_a_wrong_annotation_is_told_with_its_place(annotation: Any, told: str, tmp_path: Path) -> None:
    good = {"image_id": 100, "category_id": 1, "segmentation": [SQUARE]}
    picture(tmp_path / "a.jpg")
    wrong = {**good, **annotation} if isinstance(annotation, dict) else annotation
    value = content(["a.jpg"], [good])
    write(tmp_path / "annotations" / "instances_train.json", {**value, "annotations": [good, wrong]})
    with pytest.raises(DataError, match=rf"annotations\[1\].*{told}"):
        load(tmp_path, "train")


def test_a_region_that_is_found_wrong_when_drawn_names_file_and_picture(tmp_path: Path) -> None:
    samples = opened(tmp_path, {"area": 9, "segmentation": {"size": [HEIGHT, WIDTH], "counts": [40]}})
    with pytest.raises(DataError, match=r"instances_train\.json: the mask of a\.jpg: run lengths cover 40"):
        samples.labels(0)


def test_an_unknown_category_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the category 5, which `categories` does not tell of"):
        opened(tmp_path, {"category_id": 5, "segmentation": [SQUARE]})


@pytest.mark.parametrize(
    ("categories", "told"),
    [
        ([], "1 classes; a mask tells 2 to 255"),
        ([{"id": id, "name": str(id)} for id in range(1203)], "1204 classes"),
        ([{"id": 1, "name": "dog"}, {"id": 2, "name": "dog"}], "names a category twice"),
    ],
)
def test_categories_that_make_no_classes_are_told(categories: list[Any], told: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=told):
        opened(tmp_path, {"segmentation": [SQUARE]}, categories=categories)


def test_other_files_in_json_make_no_coco(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "a.jpg")
    mask(tmp_path / "annotations" / "a.png", DIAGONAL)
    write(tmp_path / "annotations" / "a.json", {"version": "5.0", "shapes": [], "imagePath": "a.jpg"})  # Labelme's
    write(tmp_path / "result.json", [{"id": 1, "annotations": []}])  # Label Studio's own
    write(tmp_path / "package.json", {"name": "x", "images": "none"})
    write(tmp_path / "sa_1.json", {"image": {"image_id": 1}, "annotations": [{"id": 1, "bbox": [1, 2, 3, 4]}]})
    assert not recognises(tmp_path)


@pytest.mark.parametrize("key", ["annotations", "images", "categories"])
def test_a_coco_file_of_any_name_is_known_by_how_it_begins(key: str, tmp_path: Path) -> None:
    value = content(["a.jpg"])
    picture(tmp_path / "a.jpg")
    write(tmp_path / "anything.json", {"info": {"contributor": "someone"}, key: value[key], **value})
    assert recognises(tmp_path)


def test_masks_beside_a_coco_file_are_read_unless_it_is_asked_for(tmp_path: Path) -> None:
    opened(tmp_path, {"segmentation": [SQUARE]})
    mask(tmp_path / "masks" / "a.png", DIAGONAL)
    assert not recognises(tmp_path)
    assert (load(tmp_path, "train", "coco").labels(0) == INSIDE).all()


def test_a_file_that_changed_is_read_again(tmp_path: Path) -> None:
    assert opened(tmp_path, {"segmentation": [SQUARE]}).labels(0).max() == 1
    assert opened(tmp_path, {"segmentation": [WHOLE], "category_id": 90}).labels(0).min() == 2


@pytest.mark.parametrize("layout", [coco, panoptic])
def test_what_draws_the_masks_goes_to_a_worker_as_it_is(layout: Any, tmp_path: Path) -> None:
    layout(tmp_path)
    samples = load(tmp_path, "train")
    there = pickle.loads(pickle.dumps(samples))
    assert (there.labels(0) == samples.labels(0)).all()
    assert there.pairs == samples.pairs


def test_a_million_polygons_are_a_few_arrays(tmp_path: Path) -> None:
    samples = opened(tmp_path, *[{"segmentation": [SQUARE]}] * 2000)
    few = opened(tmp_path, {"segmentation": [SQUARE]})
    per_region = (len(pickle.dumps(samples.draw)) - len(pickle.dumps(few.draw))) / 1999
    assert per_region < 8 * 4 + 48  # its eight numbers, and what is known of it
