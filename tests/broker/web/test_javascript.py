"""The browser's side, tested where it runs: the pure parts and the client under Node's own test runner."""

import re
import subprocess
from pathlib import Path

import playwright
import pytest

from broker.web import STATIC

HERE = Path(__file__).parent
SUITES = sorted(HERE.glob("*.test.mjs"))
NODE = Path(playwright.__file__).parent / "driver" / "node"  # the one that comes with Playwright: the same everywhere
DEADLINE = 60.0  # seconds; the slowest suite takes two


@pytest.mark.parametrize("suite", SUITES, ids=lambda path: path.name)
def test_javascript(suite: Path) -> None:
    """Every guarantee named in the suite holds."""
    run = subprocess.run([NODE, "--test", str(suite)], capture_output=True, text=True, timeout=DEADLINE, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


def test_every_file_the_page_names_is_there() -> None:
    """One forgotten file would be a page that does not load."""
    for path in STATIC.glob("*.*"):
        if path.suffix not in {".html", ".js"}:
            continue
        named = re.findall(r"""(?:"/web/|from '\./)([\w.-]+)""", path.read_text("utf-8"))
        missing = [name for name in named if not (STATIC / name).is_file()]
        assert not missing, f"{path.name} names {missing}"
        assert named or path.name != "index.html"


def test_the_page_needs_nothing_inline() -> None:
    """The policy allows no inline script or style, so the page may have none."""
    page = (STATIC / "index.html").read_text("utf-8")
    assert "<style" not in page
    assert " style=" not in page
    assert " onclick=" not in page
    assert page.count("<script") == page.count('<script type="module" src="/web/')


def test_no_markup_is_made_from_text() -> None:
    """What a model or a person wrote only ever becomes text nodes."""
    for path in STATIC.glob("*.js"):
        source = path.read_text("utf-8")
        for door in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function"):
            assert door not in source, f"{path.name}: {door}"
