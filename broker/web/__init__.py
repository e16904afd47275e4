"""The browser's side of the stream plane: okome.js, the chat page and their style, as plain files.

Nothing here runs in Python. The stream node serves `index.html` at `/` and `/c/{sid}`, and every other file at
`/web/<file>`, under a policy that allows no inline script or style.
"""

from pathlib import Path

#: The folder of files to serve. `index.html` refers to the others as `/web/<file>`.
STATIC = Path(__file__).parent

__all__ = ["STATIC"]
