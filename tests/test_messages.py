"""Messages that name options of the command line name the parameters of Python, too."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import gpu_extract
from gpu_extract.options import ExtractOptions

# These modules speak to users of the command line only.
COMMAND_LINE = {"cli.py", "cli_options.py", "settings.py", "survey_text.py"}
# Parameters with another name than their option.
RENAMED = {"size": "tile_size", "size_um": "tile_size_um", "range": "value_range", "normalize": "normalization"}
MODULES = sorted(path for path in Path(gpu_extract.__file__).parent.rglob("*.py") if path.name not in COMMAND_LINE)


def texts(tree):
    """Yield the text of each string and f-string, without docstrings."""
    inner = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            inner.add(node.value)
        if isinstance(node, ast.JoinedStr):
            inner.update(ast.walk(node))
            inner.discard(node)
    for node in ast.walk(tree):
        if node in inner:
            continue
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, ast.JoinedStr):
            yield "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.stem)
def test_an_option_in_a_message_comes_with_its_parameter(module):
    names = {*ExtractOptions.__annotations__, "nucleus", "cytosol"}
    for text in texts(ast.parse(module.read_text())):
        for option in re.findall(r"--([a-z][a-z-]+)", text):
            name = option.replace("-", "_")
            name = RENAMED.get(name, name)
            if name in names:
                assert re.search(rf"(?<![-\w]){name}\b", text.replace(f"--{option}", "")), text
