"""What the documentation shows is run: its Python, its shell sessions; and its commands are ones that exist."""

import argparse
import doctest
import importlib
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch

from rlpips.cli import main
from rlpips.cli.parser import make_parser

ROOT = Path(__file__).parents[1]
PAGES = [*sorted((ROOT / "docs").rglob("*.md")), ROOT / "weights" / "README.md"]
pytestmark = pytest.mark.skipif(not (ROOT / "docs").is_dir(), reason="needs the source tree")


def name_of(page):
    """Name a page in the tests' list."""
    return page.stem if page.parent.name == "docs" else f"{page.parent.name}-{page.stem}"


def blocks(page, *languages):
    """Return the fenced blocks of a page in these languages: language and text, in order."""
    found = re.findall(r"^```(\w+)\n(.*?)^```$", page.read_text(), re.M | re.S)
    return [(language, text) for language, text in found if language in languages]


@pytest.fixture
def folder(tmp_path, monkeypatch, real_weights, weights):
    """A folder as a reader has it: the examples, and a run of `rlpips train`."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    (tmp_path / "RUN").mkdir()
    shutil.copy(weights, tmp_path / "RUN" / "metric.safetensors")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "python", "pycon", "console")], ids=name_of)
def test_a_page_does_what_it_says(page, folder, capsys):
    scope = {}
    torch.manual_seed(0)
    for language, text in blocks(page, "python", "pycon", "console"):
        if language == "python":
            exec(compile(text, str(page), "exec"), scope)
        elif language == "pycon":
            test = doctest.DocTestParser().get_doctest(text, scope, page.name, str(page), 0)
            result = doctest.DocTestRunner(verbose=False).run(test, clear_globs=False)
            scope = test.globs
            assert not result.failed, capsys.readouterr().out
        else:
            command, _, output = text.partition("\n")
            capsys.readouterr()
            assert main(shlex.split(command.removeprefix("$ rlpips "))) == 0
            assert capsys.readouterr().out == output


def commands(page):
    """Return the arguments of the calls of `rlpips` in the shell blocks of a page."""
    for _, text in blocks(page, "sh"):
        for line in text.replace("\\\n", " ").splitlines():
            words = shlex.split(line.rpartition("&&")[2], comments=True)
            if words[:1] == ["rlpips"]:
                yield words[1:]
            elif words[:1] == ["torchrun"] or words[:3] == ["python", "-m", "rlpips"]:
                yield words[words.index("rlpips") + 1 :]


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md"], ids=name_of)
def test_commands_are_ones_that_exist(page):
    for arguments in commands(page):
        make_parser().parse_args(arguments)


def leaves(parser, *words):
    """Return the words of every command that a parser knows, and of their commands."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return [leaf for word, part in action.choices.items() for leaf in leaves(part, *words, word)]
    return [words]


def test_the_page_of_the_command_line_has_an_example_of_every_command():
    shown = list(commands(ROOT / "docs" / "command-line.md"))
    assert [leaf for leaf in leaves(make_parser()) if not any(s[: len(leaf)] == [*leaf] for s in shown)] == []


def test_the_reference_has_a_page_for_every_folder_and_module_with_public_names():
    pages = {page.stem for page in (ROOT / "docs" / "api").glob("*.md")} - {"index"}
    assert pages == set(re.findall(r"api/(\w+)\.md", (ROOT / "mkdocs.yml").read_text())) - {"index"}
    stub = (ROOT / "rlpips" / "__init__.pyi").read_text()
    assert pages >= set(re.findall(r"from \. import (\w+)", stub))
    assert pages >= set(re.findall(r"from \.([a-z]\w*) import", stub))
    for page in pages:
        assert importlib.import_module(f"rlpips.{page}").__doc__
        assert f"\n::: rlpips.{page}\n" in (ROOT / "docs" / "api" / f"{page}.md").read_text()


def test_a_public_name_is_in_one_folder_only():
    found = {}
    for page in (ROOT / "docs" / "api").glob("[!i]*.md"):
        module = importlib.import_module(f"rlpips.{page.stem}")
        for name in getattr(module, "__all__", ()):
            found.setdefault(id(getattr(module, name)), []).append(f"{page.stem}.{name}")
    assert [places for places in found.values() if len(places) > 1] == []


def rows(page):
    """Return the rows of the tables of a page, as lists of cells."""
    text = page.read_text().replace("\N{NO-BREAK SPACE}", " ")
    lines = [line.strip("| ") for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.split("|")] for line in lines]


def test_the_numbers_of_the_readme_are_those_of_the_benchmarks():
    measured = rows(ROOT / "docs" / "benchmarks.md")
    checked = 0
    for _, *cells in rows(ROOT / "README.md"):
        if re.match(r"\d", cells[0]):
            assert any(row[1 : len(cells) + 1] == cells for row in measured), cells
            checked += 1
    assert checked >= 6


def test_links_from_outside_the_site_lead_somewhere():
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "weights" / "README.md"]:
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page}: {link}"
