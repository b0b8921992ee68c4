from pathlib import Path

import pytest

from models.errors import ConfigError
from training.config import TrainConfig
from training.config_io import load_config, save_config

CONFIGS = sorted((Path(__file__).parents[2] / "training" / "configs").glob("*.yaml"))


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_shipped_configs_load(file: Path) -> None:
    assert load_config(file, []) != TrainConfig()


def test_overrides_take_precedence_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("epochs: 3\nlr: 0.5\n")
    config = load_config(file, ["epochs=7", "crop=96,128", "scale=0.9,1.1", "encoder=resnet34", "side=null"])
    assert (config.epochs, config.lr, config.crop, config.scale) == (7, 0.5, (96, 128), (0.9, 1.1))


@pytest.mark.parametrize("text", ["None", "none", "null", ""])
def test_none_unsets_a_limit_as_the_settings_print_it(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(f"epochs: 3\nminutes: {text}\n")
    config = load_config(tmp_path / "config.yaml", [f"epochs={text}", f"grad_clip={text}", f"crop={text}"])
    assert config == TrainConfig()
    with pytest.raises(ConfigError, match=r"lr='?None'? is not possible"):
        load_config(None, ["lr=None"])


def test_saved_config_loads_unchanged(tmp_path: Path) -> None:
    config = load_config(None, ["epochs=7", "crop=96,128"])
    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml", []) == config


def test_every_setting_has_a_description_or_choices() -> None:
    for name, field in TrainConfig.model_fields.items():
        assert field.description or "Literal" in str(field.annotation), name


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["epoch=3"], "did you mean epochs"),
        (["xyzzy=3"], "--settings"),
        (["epochs"], "key=value"),
        (["epochs=0"], "expected at least 1"),
        (["skips=4s"], "skips=4s"),
        (["epochs=[3"], "is not YAML"),
        (["crop=16"], "crop"),
    ],
)
def test_wrong_setting_is_named(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(None, overrides)


@pytest.mark.parametrize(
    ("text", "message"), [("- a\n- b\n", "list"), ("a: [", "is not YAML"), ("lr: fast", "lr=fast"), ("1: 2", "'1'")]
)
def test_wrong_file_is_named(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_config(file, [])


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be opened"):
        load_config(tmp_path / "none.yaml", [])
