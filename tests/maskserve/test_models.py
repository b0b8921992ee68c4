"""`maskserve models`: the list, one network, the encoders, and the errors."""

import inspect
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from maskserve import model_tables
from maskserve.parsing import parse_lengths, parse_size
from models.analysis import complexity
from models.architectures import ARCHITECTURES, default_options
from models.architectures.heads import HEADS
from models.errors import ConfigError
from tests.maskserve.command_line import assert_fails, run_maskserve


def capture_output(show: Callable[[Console], None], width: int = 120) -> str:
    console = Console(width=width)
    with console.capture() as captured:
        show(console)
    return captured.get()


def list_rows(output: str) -> dict[str, list[str]]:
    return {line.partition("  ")[0]: line.partition("  ")[2].split() for line in output.splitlines()}


@pytest.mark.slow
def test_list_has_a_row_for_every_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(complexity, "PROBE_WIDTHS", (64, 128))  # the receptive fields take long, and do not matter here
    output = capture_output(lambda console: model_tables.print_architectures((64, 64), 21, console), width=80)
    rows = list_rows(output)
    assert {f"fcn head={head}" for head in HEADS} | set(ARCHITECTURES) - {"fcn"} <= set(rows)
    assert "cannot" not in output
    assert rows["torchvision/fcn_resnet50"][-2] == "8"
    assert max(map(len, output.splitlines())) <= 80


@pytest.fixture
def narrow_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Receptive fields up to 700 pixels are measured on images of half the usual width."""
    monkeypatch.setattr(complexity, "PROBE_WIDTHS", (512, 1024))


@pytest.mark.usefixtures("narrow_probes")
def test_rows_of_the_list(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two heads and one architecture with a long name; the slow test above has all."""
    names = ("fcn", "torchvision/deeplabv3_mobilenet_v3_large")
    monkeypatch.setattr(model_tables, "ARCHITECTURES", {name: ARCHITECTURES[name] for name in names})
    monkeypatch.setattr(model_tables, "HEADS", {head: HEADS[head] for head in ("linear", "psp")})
    output = capture_output(lambda console: model_tables.print_architectures((360, 480), 21, console), width=80)
    rows = list_rows(output)
    assert rows["fcn head=linear"] == ["resnet18", "11.2", "M", "13.4", "8", "499"]
    assert rows["fcn head=psp"][-1] == rows["torchvision/deeplabv3_mobilenet_v3_large"][-1] == "whole"
    assert max(map(len, output.splitlines())) <= 80
    assert "480x360 (padded to 480x384)" in output


@pytest.mark.usefixtures("narrow_probes")
def test_one_network_with_options(tmp_path: Path) -> None:
    words = ("encoder=resnet50", "output_stride=8", "head=d6", "--size", "640x448", "--classes", "5")
    done = run_maskserve("models", "fcn", *words, cwd=tmp_path, COLUMNS="120")
    assert (done.returncode, done.stderr) == (0, "")
    assert "receptive field: 635 pixels" in done.stdout
    assert "image of 640x448. " in done.stdout
    assert "conv 3x3 dilated 4" in done.stdout
    lines = {line.split()[0]: line.split() for line in done.stdout.splitlines() if line.strip()}
    assert lines["encoder"][1] == "resnet50"
    assert lines["dropout"][1] == "0.1"
    assert lines["encoder.layer4"][-5:-2] == ["2048", "8", "427"]


def test_encoders_are_listed_and_filtered() -> None:
    assert capture_output(lambda console: model_tables.print_encoders("resnet1*", console)).split() == [
        "resnet18", "resnet101", "resnet152",
    ]  # fmt: skip
    assert (
        "tu-convnext_tiny" in capture_output(lambda console: model_tables.print_encoders("convnext", console)).split()
    )
    names = capture_output(lambda console: model_tables.print_encoders(None, console), width=10).splitlines()
    assert len(names) > 500 and "resnet50" in names and max(map(len, names)) > 20


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("fnc", [], "'fnc' is not known; did you mean fcn"),
        ("smp/unet", [], "did you mean smp/Unet"),
        ("linknet", [], "did you mean smp/Linknet"),
        ("deeplabv3", [], "did you mean smp/DeepLabV3"),
        ("resnet50", [], "it is an encoder: architecture=fcn encoder=resnet50"),
        ("fcn", ["aux=maybe"], "aux=maybe is invalid: expected true or false"),
        ("fcn", ["encoder=5"], "encoder=5 is invalid: expected text"),
        ("fcn", ["strides=8"], "no option 'strides'"),
        ("fcn", ["encodr=resnet50"], "did you mean encoder?"),
        ("fcn", ["resnet50"], "'resnet50' is not an option; write key=value, such as encoder="),
        ("fcn", ["encoder=resnet81"], "did you mean resnet18"),
        ("fcn", ["dropout=much"], "dropout=much is invalid: expected a number"),
        ("fcn", ["encoder=[1"], "is not valid YAML"),
    ],
    ids=str,
)
def test_invalid_arguments_give_one_line(name: str, settings: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)) as raised:
        model_tables.print_architecture(name, settings, (64, 64), 5, Console(quiet=True))
    assert "\n" not in str(raised.value)


def test_no_encoder_matches() -> None:
    with pytest.raises(ConfigError, match="No encoder matches 'zzz'; list all with"):
        model_tables.print_encoders("zzz", Console(quiet=True))
    with pytest.raises(ConfigError, match="did you mean resnet18"):
        model_tables.print_encoders("resnte18", Console(quiet=True))


def test_command_line_prints_the_error_and_exits_with_2(tmp_path: Path) -> None:
    done = run_maskserve("models", "fcn", "encoder=resnet81", "--size", "64x64", cwd=tmp_path)
    assert_fails(done, 2, "did you mean resnet18")


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_option_has_a_help_text(name: str) -> None:
    assert set(model_tables.option_help(ARCHITECTURES[name])) == set(default_options(name))


def test_help_texts_come_from_the_docstring() -> None:
    def build(classes: int, width: int = 3, depth: int = 2) -> None:
        """A network. Raises: nothing.

        width: of its maps: in channels
        depth: layers
        other: not an option
        """

    assert model_tables.option_help(build) == {"width": "of its maps: in channels", "depth": "layers"}  # type: ignore[arg-type]
    assert list(inspect.signature(build).parameters) == ["classes", "width", "depth"]


def test_values_are_yaml_and_weights_are_not_downloaded() -> None:
    options = model_tables.parse_options("fcn", ["dropout=0.5", "aux=true", "skips=none", "weights=imagenet"])
    assert options == {"dropout": 0.5, "aux": True, "skips": None, "weights": "imagenet"}
    network = model_tables.build_network("fcn", 5, options)
    assert network.architecture.options.get("weights") is None


def test_sizes_are_width_first() -> None:
    assert parse_size("480x360") == (360, 480)
    assert parse_size(" 1X16384 ") == (16384, 1)
    for text in ("480", "480x", "x", "480*360", "16385x9", "-1x5", "4 80x360"):
        with pytest.raises(ConfigError, match="expected WIDTHxHEIGHT"):
            parse_size(text)


def test_architecture_that_cannot_be_built_says_why_in_its_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(classes: int) -> None:
        raise ImportError("the library [old] is too old")

    monkeypatch.setattr(model_tables, "ARCHITECTURES", {"broken": broken})
    monkeypatch.setattr("models.architectures.ARCHITECTURES", {"broken": broken})
    monkeypatch.setattr(model_tables, "HEADS", {})
    output = capture_output(lambda console: model_tables.print_architectures((64, 64), 5, console), width=80)
    assert "broken cannot be built: the library [old] is too old" in " ".join(output.split())


def test_signals_have_the_stride_and_the_field_of_images_in_time() -> None:
    rule = model_tables.sample_input("T", 12, 500.0)
    output = capture_output(
        lambda console: model_tables.print_architecture("fcn", ["head=linear"], (5000,), 4, console, rule), width=120
    )
    text = " ".join(output.split())
    assert "one logit per 8 time steps (16 ms), receptive field: 499 time steps (998 ms)" in text
    assert "conv 7 /2" in text and "max pool 3 /2" in text.replace("1x3", "3")
    assert "a signal of 5000 (padded to 5024)" in text


def test_sizes_and_axes_of_signals_and_volumes() -> None:
    assert parse_lengths("5000", 1) == (5000,)
    assert parse_lengths("64x48x32", 3) == (32, 48, 64)
    assert model_tables.sample_input("HW", None, None).is_photograph
    assert model_tables.sample_input("DHW", None, None).channels == ("band1",)
    for call, message in [
        (lambda: parse_lengths("5000x2", 1), "expected time steps"),
        (lambda: parse_lengths("5000", 3), "expected WIDTHxHEIGHTxDEPTH"),
        (lambda: model_tables.sample_input("TW", None, None), "choose HW for images, T for signals"),
        (lambda: model_tables.sample_input("DHW", None, 5.0), "--rate is for signals"),
    ]:
        with pytest.raises(ConfigError, match=message):
            call()
