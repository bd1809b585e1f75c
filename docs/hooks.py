"""What mkdocs does not do by itself: formulas, pages of the reference, and pages from outside of docs/.

Formulas are written in LaTeX, in blocks of the language `math`, which GitHub shows as they are. Here they
become MathML, which browsers draw without a script.

Pages link to files outside of docs/ by their path, as in `../weights/README.md`, so that they work where
they are read as files. Those that `_OUTSIDE` names are pages or pictures of the site, too, and so is the
README's section of measurements, whose tables `<!-- table: START OF THEIR HEAD -->` shows on another page.
Notebooks become pages with what they printed and drew.
"""

import ast
import base64
import json
import re
from pathlib import Path
from typing import Any

from griffe import Attribute, Docstring, ExprCall, Extension, Object
from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

_ROOT = Path(__file__).parents[1]
_README = (_ROOT / "README.md").read_text()
_OUTSIDE = ("weights/README.md", "CHANGELOG.md")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that no file in docs/ holds."""
    for path in _OUTSIDE:
        files.append(File.generated(config, path, abs_src_path=str(_ROOT / path)))
    for notebook in sorted((_ROOT / "examples").glob("*.ipynb")):
        text, pictures = _notebook(notebook)
        path = f"examples/{notebook.stem}"
        files.append(File.generated(config, f"{path}.md", content=text))
        for name, data in pictures.items():
            files.append(File.generated(config, f"examples/{name}", content=data))
    measured = _of_readme(r"^## (Measured\n.*?)^## ")
    files.append(File.generated(config, "measured.md", content=f"# {measured}"))
    for entry in config.nav:
        for path in entry.get("Reference", [])[1:]:
            module = f"rlpips.{Path(path).stem}"
            files.append(File.generated(config, path, content=f"# {module}\n\n::: {module}\n"))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Bring formulas and links to the form that the site has."""
    if "/" not in page.file.src_uri:  # files beside docs/ are beside its pages in the site
        markdown = markdown.replace("](../", "](")
    markdown = re.sub(r"^```math\n(.*?)^```$", lambda found: _mathml(found[1]), markdown, flags=re.M | re.S)
    markdown = re.sub(r"^<!-- table: (.*) -->$", lambda found: _table(found[1]), markdown, flags=re.M)
    markdown = re.sub(r"\]\(((?:\.\./)?)README\.md#measured\)", r"](\1measured.md)", markdown)
    markdown = re.sub(r"\]\(([\w/]+)\.ipynb\)", r"](\1.md)", markdown)
    # what the site has no page for keeps its name
    return re.sub(r"\[([^\]]*)\]\((?:(?:rlpips|benchmarks|tests)/[^)]*|[\w/]*\.py)\)", r"\1", markdown)


def on_page_content(html: str, page: Page, **_: Any) -> None:
    """See that a page of the reference describes something."""
    path = page.file.src_uri
    if path.startswith("api/") and path != "api/index.md" and "doc-heading" not in html:
        raise PluginError(f"{path} is empty; a package says in __all__ what it offers")


class Doctests(Extension):
    """Makes code blocks of the examples in docstrings, which Markdown would take for quotations."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Change the docstring of what was read from the source."""
        if obj.docstring:
            text = obj.docstring.value
            obj.docstring.value = re.sub(
                r"^>>> .*?(?=\n\n|\Z)", r"```pycon\n\g<0>\n```", text, flags=re.M | re.S
            )


class RecipeFields(Extension):
    """Describes the fields of a recipe by the text that `option` gives each, as the command line does."""

    def on_attribute_instance(self, *, attr: Attribute, **_: Any) -> None:
        """Take the default and the text out of a call of `option`."""
        if isinstance(attr.value, ExprCall) and str(attr.value.function) == "option":
            default, text = attr.value.arguments[:2]
            attr.value = default
            words = ast.literal_eval(str(text))
            attr.docstring = Docstring(f"{words[0].upper()}{words[1:]}.", parent=attr)


def _notebook(path: Path) -> tuple[str, dict[str, bytes]]:
    """Turn a notebook into Markdown, and the pictures that it shows, by name."""
    parts: list[str] = []
    pictures: dict[str, bytes] = {}
    for cell in json.loads(path.read_text())["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "image/png" in data:
                name = f"{path.stem}-{len(pictures)}.png"
                pictures[name] = base64.b64decode("".join(data["image/png"]))
                parts.append(f"![What this draws]({name})")
            else:
                printed = "".join(output.get("text", data.get("text/plain", "")))
                parts.append(f"```text\n{printed.rstrip()}\n```")
    return "\n\n".join(parts), pictures


def _of_readme(pattern: str) -> str:
    """Find a part of the README, the first group of a pattern."""
    found = re.search(pattern, _README, re.M | re.S)
    assert found, f"the README holds nothing like {pattern}"
    return found[1]


def _table(start: str) -> str:
    """Copy the table of the README whose head starts so."""
    return _of_readme(rf"^({re.escape(start)}.*?\n)(?!\|)")


def _mathml(latex: str) -> str:
    return f'<div class="formula">{convert(latex.strip(), display="block")}</div>'
