"""Data sets of signals: what is recognized, split and painted; bad label files are named."""

import csv
from pathlib import Path

import numpy as np
import pytest

from models.errors import DataError
from models.readers.annotations import Interval, from_intervals, write_annotations
from models.spec import InputRule, Scaling, Spacing
from training.data import load_available_splits, load_split, recognize_dataset
from training.data.dataset import Pair
from training.data.leads import arrange_leads
from training.data.scan.sample_stats import error_message
from training.data.signals import read_signal
from training.data.synthetic_signals import CLASSES, generate_signals, write_record
from training.data.tools.convert import convert_dataset
from training.data.tools.split import split_dataset

LUDB = Path(__file__).parents[3] / ".." / "shared" / "data" / "ludb" / "data"
VALUES = np.random.default_rng(0).normal(size=(1000, 2)).astype(np.float32)


def lead_rule(rate: float) -> InputRule:
    scaling = Scaling(kind="zscore", low=(), high=())
    return InputRule(
        rule="native", axes="T", channels=("lead",), dtype="float32", scaling=scaling,
        spacing=Spacing(values=(rate,), unit="Hz"),
    )  # fmt: skip


def write_csv(file: Path, values: np.ndarray = VALUES, rate: float = 100.0) -> None:
    np.savetxt(file, values, delimiter=",", fmt="%.5g", header=f"rate={rate}\nx,y", comments="# ")
    file.write_text(file.read_text().replace("# x,y", "x,y"))


def test_a_record_without_its_signal_file_is_named_once(tmp_path: Path) -> None:
    header = tmp_path / "a.hea"
    header.write_text("a 1 250 100\na.dat 16\n")
    with pytest.raises(DataError) as caught:
        read_signal(Pair("a", header, header))
    assert error_message(header, caught.value).startswith(f"{header}: its signal file 'a.dat' cannot be read")


def write_folder(root: Path, names: list[str]) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        write_csv(root / f"{name}.csv")
        (root / f"{name}.events.csv").write_text("onset,offset,class\n1.0,2.5,spike\n4,5.25,wave\n")


def test_the_generated_set_is_read_as_it_was_drawn(tmp_path: Path) -> None:
    generate_signals(tmp_path / "a", 3, {"train": 4, "val": 2, "test": 2}, seconds=8)
    generate_signals(tmp_path / "b", 3, {"train": 4, "val": 2, "test": 2}, seconds=8)
    opened = load_available_splits(tmp_path / "a")
    assert {split: len(dataset) for split, dataset in opened.items()} == {"train": 4, "val": 2, "test": 2}
    assert [entry.name for entry in opened["train"].classes] == [entry.name for entry in CLASSES]
    sample, labels = opened["train"].sample_and_labels(0)
    assert (sample.axes, sample.channels, sample.rate, labels.shape) == ("T", ("front", "side"), 250.0, (2000,))
    assert set(np.unique(labels)) == {0, 1, 2, 3}
    inside = np.abs(sample.values - np.median(sample.values, axis=0)).max(axis=1)
    assert inside[labels > 0].mean() > 1.5 * inside[labels == 0].mean()
    groups = {split: {pair.group for pair in dataset.pairs} for split, dataset in opened.items()}
    assert len(groups["train"]) == 2 and not groups["train"] & groups["test"]
    for file in (tmp_path / "a").rglob("*.dat"):
        assert file.read_bytes() == (tmp_path / "b" / file.relative_to(tmp_path / "a")).read_bytes()


def test_each_annotated_lead_is_a_sample_and_what_lies_outside_is_unlabelled(tmp_path: Path) -> None:
    for number in range(1, 5):
        write_record(tmp_path, str(number), VALUES, ("ii", "V1"), rate=500)
        waves = [Interval(200, 240, "P"), Interval(260, 310, "QRS"), Interval(400, 500, "T")]
        (tmp_path / f"{number}.ii").write_bytes(write_annotations(from_intervals(waves)))
        (tmp_path / f"{number}.v1").write_bytes(write_annotations(from_intervals(waves[1:])))
    dataset = load_split(tmp_path, "train")
    assert {pair.name for pair in dataset.pairs} <= {
        f"{number}/{lead}" for number in range(1, 5) for lead in ("ii", "V1")
    }
    assert all(pair.group == pair.name.split("/")[0] for pair in dataset.pairs)
    assert [entry.name for entry in dataset.classes] == ["background", "P", "QRS", "T"]
    first = next(index for index, pair in enumerate(dataset.pairs) if pair.lead == "ii")
    sample, labels = dataset.sample_and_labels(first)
    assert (sample.channels, sample.values.shape) == (("lead",), (1000, 1))
    expected = np.zeros(1000, np.uint8)
    expected[:200] = expected[500:] = 255
    expected[200:240], expected[260:310], expected[400:500] = 1, 2, 3
    np.testing.assert_array_equal(labels, expected)


def test_a_planned_rate_resamples_values_and_labels_alike(tmp_path: Path) -> None:
    write_folder(tmp_path, ["a", "b", "c"])
    from dataclasses import replace

    dataset = replace(load_split(tmp_path, "train"), input=lead_rule(40).model_copy(update={"channels": ("x", "y")}))
    sample, labels = dataset.sample_and_labels(0)
    assert (sample.rate, sample.values.shape, labels.shape) == (40.0, (400, 2), (400,))
    assert np.flatnonzero(np.diff(labels.astype(int))).tolist() == [39, 99, 159, 209]
    assert sample.statistics is not None and sample.statistics.shape == (2, 2)


@pytest.mark.parametrize(
    ("label", "text", "expected"),
    [
        (".events.csv", "onset,offset,class\n1.5,2.0,a\n", {"a": (150, 200)}),
        (".events.csv", "onset,offset,class\n150,200,a\n", {"a": (150, 200)}),
        (".events.csv", "onset_s,duration_s,label\n1,2,a\n", {"a": (100, 300)}),
        (".events.tsv", "class\tonset_samples\toffset_samples\na\t7\t9\n", {"a": (7, 9)}),
        (".txt", "0.5\t1.25\ta\n\\\t100\t200\n", {"a": (50, 125)}),
        (".labels.csv", "label\n" + "none\n" * 400 + "a\n" * 600, {"a": (400, 1000)}),
        (".labels.csv", "0\n" * 990 + "1\n" * 10, {"class1": (990, 1000)}),
    ],
)
def test_label_files(tmp_path: Path, label: str, text: str, expected: dict[str, tuple[int, int]]) -> None:
    for name in "abc":
        write_csv(tmp_path / f"{name}.csv")
        (tmp_path / f"{name}{label}").write_text(text)
    dataset = load_split(tmp_path, "train")
    labels = dataset.labels(0)
    names = [entry.name for entry in dataset.classes]
    for name, (start, end) in expected.items():
        assert np.flatnonzero(labels == names.index(name))[[0, -1]].tolist() == [start, end - 1]


def test_labels_of_every_step_in_an_array(tmp_path: Path) -> None:
    labels = np.random.default_rng(1).choice(np.array([0, 1, 2, 255], np.uint8), 1000)
    for name in "abc":
        np.savez(tmp_path / f"{name}.npz", values=VALUES, rate=50)
        np.save(tmp_path / f"{name}.labels.npy", labels)
    (tmp_path / "classes.csv").write_text("calm\nbusy\nbroken\n")
    dataset = load_split(tmp_path, "train")
    assert [entry.name for entry in dataset.classes] == ["calm", "busy", "broken"]
    np.testing.assert_array_equal(dataset.labels(0), labels)


def test_events_of_one_lead_make_each_lead_a_sample(tmp_path: Path) -> None:
    for name in "abc":
        write_csv(tmp_path / f"{name}.csv")
        (tmp_path / f"{name}.events.csv").write_text("onset,offset,class,lead\n1.5,2,a,x\n3.5,4,a,y\n")
    dataset = load_split(tmp_path, "train")
    found = {pair.lead: np.flatnonzero(dataset.labels(index)).min() for index, pair in enumerate(dataset.pairs)}
    assert found == {"x": 150, "y": 350}


def test_splits_come_from_a_table_from_lists_from_folders_or_by_patient(tmp_path: Path) -> None:
    def names(root: Path) -> dict[str, set[str]]:
        return {split: {pair.name for pair in each.pairs} for split, each in load_available_splits(root).items()}

    plain = tmp_path / "plain"
    write_folder(plain, [f"p{index // 2}_{index % 2}" for index in range(40)])
    patients = [{name[:-2] for name in found} for found in names(plain).values()]
    assert len(patients) == 3 and not set.intersection(*patients) and sum(map(len, patients)) == 20
    assert {split: len(each) for split, each in names(plain).items()} == {"train": 26, "val": 6, "test": 8}

    (plain / "splits.csv").write_text(
        "record,split\n" + "".join(f"p{i}_{j},{'train' if i else 'val'}\n" for i in range(9) for j in (0, 1))
    )
    assert {split: len(each) for split, each in names(plain).items()} == {"train": 16, "val": 2}

    nested = tmp_path / "nested"
    write_folder(nested, [f"patient{index // 2:03d}/s{index:04d}_re" for index in range(20)])
    assert {pair.group for pair in load_split(nested, "train").pairs} <= {f"patient{index:03d}" for index in range(10)}

    folders = tmp_path / "folders"
    write_folder(folders, ["train/a", "train/b", "test/c", "val/d"])
    assert names(folders) == {"train": {"train/a", "train/b"}, "val": {"val/d"}, "test": {"test/c"}}

    listed = tmp_path / "listed"
    write_folder(listed, ["a", "b", "c"])
    (listed / "train.txt").write_text("a.csv\nb\n")
    (listed / "val.txt").write_text("c\n")
    assert names(listed) == {"train": {"a", "b"}, "val": {"c"}}


def test_a_table_may_name_records_of_another_folder(tmp_path: Path) -> None:
    generate_signals(tmp_path / "data", 0, {"all": 4}, seconds=4)
    table = tmp_path / "lists" / "splits.csv"
    table.parent.mkdir()
    with table.open("w", newline="") as stream:
        names = sorted(file.stem for file in (tmp_path / "data" / "all").glob("*.hea"))
        rows = [
            (f"../data/all/{name}", split) for name, split in zip(names, ("train", "train", "val", "test"), strict=True)
        ]
        csv.writer(stream).writerows([("record", "split"), *rows])
    opened = load_available_splits(table)
    assert {split: len(each) for split, each in opened.items()} == {"train": 2, "val": 1, "test": 1}
    assert opened["test"].sample(0).values.shape == (1000, 2)


BAD: dict[str, tuple[str, str, str]] = {
    "class": (
        ".events.csv",
        "onset,offset\n1,2\n",
        "a.events.csv: the table has the columns onset, offset and no class",
    ),
    "time": (".events.csv", "onset,offset,class\n1,soon,x\n", "a.events.csv: line 2: '1' and 'soon' are no times"),
    "length": (".labels.csv", "0\n1\n", "a.labels.csv: the file has 2 labels, the recording 1,000 time steps"),
    "columns": (".labels.csv", "p,q\n0,1\n", "a.labels.csv: the table has the columns p, q; expected events"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_label_file_is_named(tmp_path: Path, case: str) -> None:
    ending, text, expected = BAD[case]
    for name in ("a", "b"):
        write_csv(tmp_path / f"{name}.csv")
        (tmp_path / f"{name}{ending}").write_text(text if name == "a" else "onset,offset,class\n1,2,x\n")
    (tmp_path / "splits.csv").write_text("record,split\na,train\nb,val\n")
    with pytest.raises(DataError) as caught:
        load_split(tmp_path, "train").labels(0)
    assert expected in str(caught.value)


def test_folders_of_images_are_read_as_before(tmp_path: Path) -> None:
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
        for name in "ab":
            np.save(tmp_path / folder / f"{name}.npy", np.zeros((8, 8), np.uint8))
            (tmp_path / folder / f"{name}.txt").write_text("0 0.5 0.5 1 1\n")
    assert recognize_dataset(tmp_path).format == "folder"


@pytest.mark.skipif(not LUDB.is_dir(), reason="the folder ../shared/data/ludb is missing")
def test_ludb() -> None:
    recognition = recognize_dataset(LUDB)
    assert recognition.format == "wfdb" and not recognition.others
    opened = load_available_splits(LUDB, recognition=recognition)
    assert sum(map(len, opened.values())) == 160 * 12
    assert [entry.name for entry in opened["train"].classes] == ["background", "P", "QRS", "T"]
    sample, labels = opened["train"].sample_and_labels(0)
    assert sample.rate == 500.0 and labels.shape == (5000,) and set(np.unique(labels)) == {0, 1, 2, 3, 255}


def test_data_split_writes_a_table_of_records_that_is_read_again(tmp_path: Path) -> None:
    generate_signals(tmp_path / "data", 0, {"all": 24}, seconds=2)
    table, assigned = split_dataset(tmp_path / "data", tmp_path / "lists", 0.2, 0.2)
    opened = load_available_splits(table)
    for split, pairs in assigned.items():
        assert {pair.image.resolve() for pair in opened[split].pairs} == {pair.image.resolve() for pair in pairs}
    groups = [{pair.group for pair in dataset.pairs} for dataset in opened.values()]
    assert sum(map(len, groups)) == 12 == len(set.union(*groups))


def test_leads_apart_and_together(tmp_path: Path) -> None:
    for number in range(1, 4):
        write_record(tmp_path, str(number), VALUES, ("ii", "v1"), rate=500)
        for lead, start in (("ii", 100), ("v1", 110)):
            waves = [Interval(start, 200, "QRS"), Interval(300, 400, "QRS")]
            (tmp_path / f"{number}.{lead}").write_bytes(write_annotations(from_intervals(waves)))
    apart = load_split(tmp_path, "train")
    joined = arrange_leads(apart, "together")
    assert len(joined) * 2 == len(apart) and {pair.name for pair in joined.pairs} <= {"1", "2", "3"}
    sample, labels = joined.sample_and_labels(0)
    assert sample.channels == ("ii", "v1")
    assert (labels[:100] == 255).all() and (labels[110:200] == 1).all() and (labels[200:300] == 0).all()
    again = arrange_leads(joined, "each")
    assert [pair.name for pair in again.pairs] == [pair.name for pair in apart.pairs]


def test_tools_for_images_refuse_signals(tmp_path: Path) -> None:
    generate_signals(tmp_path / "data", 0, {"train": 2, "val": 1, "test": 1}, seconds=2)
    with pytest.raises(DataError, match="has signals; `data remap` and `data convert` are for images"):
        convert_dataset(tmp_path / "data", tmp_path / "out", "coco")
