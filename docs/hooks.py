"""What mkdocs does not do by itself: formulas, notebooks, pages from elsewhere, checks of the reference.

Formulas are written in LaTeX, in blocks of the language `math`, which GitHub shows as they are. Here they
become MathML, which browsers draw without a script.

Pages link to files outside of docs/ by their path, as in `../weights/README.md`, so that the links work on
GitHub, too. The files in `_OUTSIDE` are pages of the site. Notebooks become pages with what they printed and
drew.

A page of the reference, `api/NAME.md`, describes the folder or module `rlpips.NAME`. The build fails if the
page does not list every name in its `__all__`. `<!-- names -->` in a page becomes the table of all of them.
"""

import ast
import base64
import functools
import json
import re
from pathlib import Path
from typing import Any

from griffe import Attribute, Docstring, ExprCall, Extension, Module, Object, load
from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

_ROOT = Path(__file__).parents[1]
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
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Bring formulas and links to the form that the site has."""
    if "/" not in page.file.src_uri:  # files beside docs/ are beside its pages in the site
        markdown = markdown.replace("](../", "](")
    markdown = re.sub(r"^```math\n(.*?)^```$", lambda found: _mathml(found[1]), markdown, flags=re.M | re.S)
    if "<!-- names -->" in markdown:
        markdown = markdown.replace("<!-- names -->", _table_of_names())
    markdown = re.sub(r"\]\(([\w/]+)\.ipynb\)", r"](\1.md)", markdown)
    # what the site has no page for keeps its name
    return re.sub(r"\[([^\]]*)\]\((?:(?:rlpips|benchmarks|tests)/[^)]*|[\w/]*\.py)\)", r"\1", markdown)


def on_page_content(html: str, page: Page, **_: Any) -> None:
    """Check that a page of the reference lists every public name of what it describes."""
    path = page.file.src_uri
    if path.startswith("api/") and path != "api/index.md":
        module = f"rlpips.{Path(path).stem}"
        listed = [name for name in _public_names()[module] if f'id="{module}.{name}"' in html]
        if missing := _public_names()[module].keys() - listed:
            raise PluginError(f"{path} does not list {', '.join(sorted(missing))}; do they have docstrings?")


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


@functools.cache
def _public_names() -> dict[str, dict[str, str]]:
    """Return the public names of each folder and module in the reference, with what each name is."""
    package = load("rlpips", search_paths=[_ROOT], docstring_parser="google")
    found = {}
    for path in sorted((_ROOT / "docs" / "api").glob("*.md")):
        if path.stem != "index":
            module = package[path.stem]
            assert isinstance(module, Module)
            names = module.exports or [
                name
                for name, member in module.members.items()
                if not name.startswith("_") and not member.is_alias and not member.is_attribute
            ]
            assert names, f"rlpips/{path.stem} has no public names"
            found[module.path] = {str(name): _first_line(module[str(name)]) for name in names}
    return found


def _first_line(item: Any) -> str:
    """Return the first line of the docstring of a name, wherever it is defined."""
    item = item.final_target if item.is_alias else item
    return item.docstring.value.partition("\n")[0] if item.docstring else ""


def _table_of_names() -> str:
    """Make a table of the public names of each folder and module, in the order of the site's reference."""
    stub = (_ROOT / "rlpips" / "__init__.pyi").read_text()
    at_top = {
        (module, name)
        for module, names in re.findall(r"^from \.(\w+) import \(?([\w\s,]*)\)?$", stub, re.M)
        for name in re.findall(r"(\w+) as", names)
    }
    parts = []
    for page in re.findall(r"api/(?!index)(\w+)\.md", (_ROOT / "mkdocs.yml").read_text()):
        module = f"rlpips.{page}"
        parts.append(f"## [`{module}`]({page}.md)\n\n| name | is |\n| --- | --- |")
        for name, what in _public_names()[module].items():
            short = "&nbsp;*" if (page, name) in at_top else ""
            parts[-1] += f"\n| [`{name}`]({page}.md#{module}.{name}){short} | {what} |"
    return "\n\n".join(parts)


def _mathml(latex: str) -> str:
    return f'<div class="formula">{convert(latex.strip(), display="block")}</div>'
