"""What the documentation shows is run: its Python, its shell sessions; and its commands are ones that exist."""

import doctest
import importlib
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch

from rlpips.cli import commands as cli

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
pytestmark = pytest.mark.skipif(not PAGES, reason="needs the source tree")


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


@pytest.mark.parametrize(
    "page", [p for p in PAGES if blocks(p, "python", "pycon", "console")], ids=lambda p: p.stem
)
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
            assert cli.main(shlex.split(command.removeprefix("$ rlpips "))) == 0
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


@pytest.mark.parametrize(
    "page", [*PAGES, ROOT / "README.md", ROOT / "weights" / "README.md"], ids=lambda p: p.stem
)
def test_commands_are_ones_that_exist(page):
    for arguments in commands(page):
        cli._parser().parse_args(arguments)


def test_the_reference_has_a_page_for_every_module_of_public_names():
    pages = set(re.findall(r"api/(\w+)\.md", (ROOT / "mkdocs.yml").read_text())) - {"index"}
    stub = (ROOT / "rlpips" / "__init__.pyi").read_text()
    assert pages >= set(re.findall(r"from \.(?: import )?([a-z]\w*)", stub))
    for page in pages:
        module = importlib.import_module(f"rlpips.{page}")
        assert module.__doc__


def test_links_from_outside_the_site_lead_somewhere():
    for page in [*ROOT.glob("*.md"), ROOT / "weights" / "README.md"]:
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page}: {link}"
