"""What docs/proofs.md names is there: a proof that was renamed or removed is noticed."""

import ast
import functools
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "proofs.md").read_text()


@functools.cache
def functions(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def missing(pattern: str) -> list[str]:
    named = set(re.findall(pattern, TEXT))
    assert named, "the page names none"
    return [
        f"{path} {name}"
        for path, name in sorted(named)
        if not (ROOT / path).exists() or name not in functions(ROOT / path)
    ]


def test_every_test_that_the_page_names_exists() -> None:
    assert missing(r"`(tests/[\w/]+\.py)::(\w+)`") == []


def test_every_place_that_the_page_names_exists() -> None:
    assert missing(r"`((?:broker|control|gpu_worker|ingress|compose)/[\w/]+\.py):(\w+)`") == []
