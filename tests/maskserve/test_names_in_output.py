"""Names of files, classes, settings and models in the output of commands and in messages: shown as they are, never sent raw."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskserve.client import Client
from maskserve.parsing import parse_size
from maskserve.predict.config import PredictConfig
from models import architectures
from models.engines.selection import engine_choices
from models.errors import MaskserveError
from models.inference.tta import TTAOptions
from models.outputs.options import OutputOptions
from models.spec import ClassInfo, InputRule
from service.request_parsing import SegmentParams
from service.settings import Settings
from tests.maskserve.command_line import run_maskserve
from tests.service.tiny_bundle import write_tiny_bundle
from training.config_io import load_config
from training.data import load_split
from training.data.class_file import read_class_file
from training.data.tools.remap import parse_rules
from training.freezing.input_rule import parse_input_rule
from training.loss_spec import parse_loss

IMAGE, CLASS = "a\x1b[31mb", "ro\x1b]0;title\x07ad"
SHOWN_IMAGE, SHOWN_CLASS = r"a\x1b[31mb", r"ro\x1b]0;title\x07ad"
BYTES = os.fsdecode(b"b\xfcro")


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set with such names of images and of a class, a mask without its image, a broken image; and a bundle for it."""
    root = tmp_path_factory.mktemp("named")
    (root / "data/images").mkdir(parents=True)
    (root / "data/masks").mkdir()
    for index, name in enumerate((IMAGE, BYTES, "c", "d\ne")):
        pixels = np.random.default_rng(index).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"data/images/{name}.png")
        Image.fromarray(pixels[..., 0] // 128).save(root / f"data/masks/{name}.png")
    Image.fromarray(np.zeros((40, 40), np.uint8)).save(root / f"data/masks/{IMAGE}2.png")
    (root / "data/classes.csv").write_text(f"ground\n{CLASS}\n")
    write_tiny_bundle(root / "bundle", f"m{CLASS}", class_names=["ground", CLASS])
    (root / "broken").mkdir()
    (root / f"broken/{IMAGE}.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    return root


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        ("data inspect data --sheet SHEET", [SHOWN_IMAGE, SHOWN_CLASS]),
        ("data lint data", [SHOWN_IMAGE + "2.png", SHOWN_CLASS]),
        ("data stats data", [SHOWN_CLASS]),
        ("data split data OUT.csv", ["Rename the file"]),
        ("evaluate bundle data --split all --no-speed --out OUT", [SHOWN_CLASS]),
        ("evaluate bundle broken", []),
        ("predict bundle broken --out OUT", [SHOWN_IMAGE]),
        ("predict bundle data/images --classes road --out OUT", [SHOWN_CLASS]),
    ],
)
def test_no_command_sends_control_characters(command: str, shown: list[str], named: Path, tmp_path: Path) -> None:
    words = [str(tmp_path / word) if word.startswith(("OUT", "SHEET")) else word for word in command.split()]
    done = run_maskserve(*words, cwd=named)
    printed = done.stdout + done.stderr
    assert not set("\x1b\x07\r") & set(printed), printed
    printed.encode()
    assert "Traceback" not in printed and all(name in printed for name in shown), printed


NAME, SHOWN = "C:\\new\x1b[1m\\é", r"C:\new\x1b[1m\é"


def two_classes(tmp_path: Path) -> None:
    (tmp_path / "classes.csv").write_text(f"{NAME},1,2,3\n{NAME},4,5,6\n", encoding="utf-8")
    read_class_file(tmp_path / "classes.csv")


MESSAGES: dict[str, Callable[[Path], object]] = {
    "size": lambda _: parse_size(NAME),
    "format of predict": lambda _: PredictConfig(model="m", output="o", format=NAME),
    "encoding": lambda _: OutputOptions(masks=NAME),  # type: ignore[arg-type]
    "loss": lambda _: parse_loss(NAME),
    "input rule": lambda _: parse_input_rule(NAME, InputRule(rule="native")),
    "test-time augmentation": lambda _: TTAOptions.parse(NAME),
    "architecture": lambda _: architectures.build(NAME, 2),
    "class file": two_classes,
    "split": lambda tmp_path: load_split(tmp_path, NAME),
    "engine": lambda _: list(engine_choices(None, NAME)),  # type: ignore[arg-type]
    "rule of remap": lambda _: parse_rules([f"{NAME}=1"], [ClassInfo(name="ground", rgb=(0, 0, 0))]),
    "parameter of a request": lambda _: SegmentParams.parse([("format", NAME)]),
    "setting of the service": lambda tmp_path: Settings(bundle=tmp_path, allowed_hosts=(NAME,)),
    "setting of the training": lambda _: load_config(None, [f"workers={NAME}"]),
    "address": lambda _: Client(NAME),
}


@pytest.mark.parametrize("kind", MESSAGES)
def test_messages_show_names_as_they_are(kind: str, tmp_path: Path) -> None:
    with pytest.raises((MaskserveError, ValueError)) as caught:
        MESSAGES[kind](tmp_path)
    assert f"'{SHOWN}'" in str(caught.value)
