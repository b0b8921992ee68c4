"""Every subcommand and option, and every command of the documentation: help, a result or a sentence, never a traceback.

The tests walk the parser and the pages, so a new option or a new command is covered when it is added.
"""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from maskserve.cli import app as cli_app
from tests.maskserve.command_line import assert_fails, run_maskserve

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMAND = re.compile(r"^    maskserve (.*?)(?: {2,}.*| +# .*)?$", re.MULTILINE)
DOCUMENTED = sorted({match for page in PAGES for match in COMMAND.findall(page.read_text(encoding="utf-8"))})


def walk(command: Any, name: str = "") -> dict[str, Any]:
    """Every command by its full name, such as `data lint`; the root is the empty name."""
    found = {name: command}
    for child, subcommand in getattr(command, "commands", {}).items():
        found |= walk(subcommand, f"{name} {child}".strip())
    return found


COMMANDS = walk(typer.main.get_command(cli_app.app))
GROUPS = {name for name, command in COMMANDS.items() if hasattr(command, "commands")}
RUN_WITHOUT_ARGUMENTS = {"demo", "models", "key"}  # the others need some


def valued_options(name: str) -> list[Any]:
    """The options of a command that take a value."""
    return [each for each in COMMANDS[name].params if each.param_type_name == "option" and not each.is_flag]


def required_words(name: str) -> list[str]:
    """Values for what a command requires; none of them exists."""
    words = name.split()
    for each in COMMANDS[name].params:
        if each.param_type_name == "argument" and (each.required or each.metavar in ("DATA", "BUNDLE")):
            words.append("none")
        elif each.required:
            words += [each.opts[0], "out"]
    return words


@pytest.mark.parametrize("name", sorted(COMMANDS.keys() - RUN_WITHOUT_ARGUMENTS))
def test_without_arguments(name: str, tmp_path: Path) -> None:
    done = run_maskserve(*name.split(), cwd=tmp_path)
    assert_fails(done, 2)
    assert "Usage: " in done.stdout if name in GROUPS else len(done.stderr) > 20
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_an_unknown_word(name: str, tmp_path: Path) -> None:
    assert_fails(run_maskserve(*name.split(), "--nonsense", cwd=tmp_path), 2, "No such option", "--nonsense")
    if name in GROUPS:
        assert_fails(run_maskserve(*name.split(), "nonsense", cwd=tmp_path), 2, "No such command 'nonsense'")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("lint .", "Did you mean `maskserve data lint`?"),
        ("--port 3000 serve bundle", "as in `maskserve serve --port`"),
        ("predict images bundle --out masks", "images is not a bundle, but bundle is: name the bundle first"),
        ("evaluate images bundle", "name the bundle first"),
        ("explain images bundle --out page", "name the bundle first"),
    ],
)
def test_words_in_another_order(line: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "SHA256SUMS").touch()
    assert_fails(run_maskserve(*line.split(), cwd=tmp_path), 2, message)


@pytest.mark.parametrize("name", [name for name in sorted(COMMANDS) if valued_options(name)])
def test_an_option_without_its_value(name: str, tmp_path: Path) -> None:
    for option in valued_options(name):
        if option.opts[0] != "--ray":  # its value may be left out
            assert_fails(run_maskserve(*name.split(), option.opts[0], cwd=tmp_path), 2, "requires an argument")


@pytest.mark.parametrize("name", [name for name in sorted(COMMANDS) if valued_options(name) and name != "demo"])
def test_a_wrong_value(name: str, tmp_path: Path) -> None:
    """On inputs that do not exist; a number that is none is refused by the parser, all others by the command."""
    for option in valued_options(name):
        done = run_maskserve(*required_words(name), option.opts[0], "nonsense", cwd=tmp_path)
        assert done.returncode in (1, 2), (option.opts[0], done.stdout)
        assert_fails(done, done.returncode)
        if option.type_descriptor.annotation in (int, float):
            assert f"Invalid value for '{option.opts[0]}': 'nonsense'; expected a " in done.stderr, done.stderr


def test_bare_maskserve_shows_the_help_in_the_order_of_use(tmp_path: Path) -> None:
    for arguments in ([], ["--debug"]):
        printed = run_maskserve(*arguments, cwd=tmp_path).stdout
        names = re.findall(r"^│ ([a-z]+)  ", printed, re.MULTILINE)
        assert names == [
            "demo", "data", "models", "plan", "train", "export", "import", "evaluate", "compare", "explain", "bench",
            "predict", "serve", "key", "containerize",
        ]  # fmt: skip
    for name in ("", "data lint", "train"):
        assert "<bool>" not in run_maskserve(*name.split(), "--help", cwd=tmp_path).stdout


def test_the_version_is_printed_also_where_only_the_client_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_app, "ROOT", tmp_path)
    done = run_maskserve("--version", "--debug", cwd=tmp_path)
    assert done.returncode == 0 and re.fullmatch(r"maskserve \d+\.\d+\.\d+\S*\n", done.stdout)


def test_the_documentation_names_every_subcommand() -> None:
    assert len(DOCUMENTED) > 45
    for name in COMMANDS.keys() - GROUPS:
        assert any(command.startswith(name) for command in DOCUMENTED) or name in (
            "demo",
            "models",
            "data stats",
            "key",
        ), name


def test_options_that_the_text_names_exist() -> None:
    """Commands in code spans, such as `maskserve export --no-int8`; those in blocks of code are run below."""
    named = 0
    for page in [*PAGES, ROOT / "CONTRIBUTING.md"]:
        for words in re.findall(r"`(?:[A-Z_]+=\S+ )?maskserve ([a-z][^`]*)`", page.read_text(encoding="utf-8")):
            name = max((name for name in COMMANDS if f"{words} ".startswith(f"{name} ")), key=len, default="")
            assert name, f"{page.name}: no subcommand in `maskserve {words}`"
            known = {option for each in COMMANDS[name].params for option in (*each.opts, *each.secondary_opts)}
            options = re.findall(r"(?<=\s)--[a-z][\w-]*", words)
            assert set(options) <= known | {"--help", "--debug"}, f"{page.name}: `maskserve {words}`"
            named += len(options)
    assert named > 10


def mark_heavy(command: str) -> Any:
    """Some take seconds to fail: a training builds its network before it opens the data, others try to connect."""
    heavy = re.match("(train|plan) .*=|import torchvision|predict .*(s3|http):", command)
    return pytest.param(command, marks=pytest.mark.slow if heavy else ())


@pytest.mark.parametrize("command", [mark_heavy(command) for command in DOCUMENTED])
def test_a_documented_command_without_its_files(command: str, tmp_path: Path) -> None:
    """Every option exists and every value is accepted, and what is missing is named. test_quick_start.py has the files."""
    words = [word.replace("http://127.0.0.1:3000", "http://127.0.0.1:1") for word in shlex.split(command)]
    offline = {"HF_HUB_OFFLINE": "1", "https_proxy": "http://127.0.0.1:1", "HOME": str(tmp_path / "home")}
    if words[:2] == ["data", "shapes"]:
        words += ["--train", "1", "--val", "1", "--test", "1"]
    done = run_maskserve(*words, cwd=tmp_path, **offline)
    assert "Traceback" not in done.stderr
    assert "Usage:" not in done.stderr, done.stderr  # the parser accepts it
    assert done.returncode in (0, 1, 2) and (done.returncode == 0 or done.stderr.count("error: ") == 1), done.stderr
