"""What goes wrong on the way to an engine's server, in an engine's own words: a silent or dead server is worth a retry,
what it refused is not.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import msgspec

from gpu_worker.engines.chunk import Unreadable
from gpu_worker.engines.engine import BROKE_OFF, UNREADABLE, EngineFailed
from gpu_worker.engines.http import Broken, Unreachable
from gpu_worker.engines.refused import Refused


@contextmanager
def translated(who: str, refused: Callable[[Refused], EngineFailed]) -> Iterator[None]:
    """Raises EngineFailed for whatever `gpu_worker.engines.http` or a decoder raises. `who`: names the server in it;
    `refused`: what a refusal of this server means."""
    try:
        yield
    except TimeoutError as error:
        raise _failed(f"{who} fell silent", "the engine fell silent") from error
    except Unreachable as error:
        raise _failed(f"{who} broke off: {error}", "the engine could not be reached") from error
    except Broken as error:
        raise _failed(f"{who} broke off: {error}", BROKE_OFF) from error
    except (msgspec.DecodeError, Unreadable) as error:
        raise _failed(f"{who} spoke nonsense: {error}", UNREADABLE) from error
    except Refused as error:
        raise refused(error) from error


def _failed(message: str, shown: str) -> EngineFailed:
    return EngineFailed("engine_failed", message, retryable=True, shown=shown)
