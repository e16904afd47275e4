"""Links: between clients and ingress, ingress and node, and the roles and NATS; cut, reset, half open, slow, lossy."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from urllib.parse import urlsplit

from compose.chaos.fault import Fault
from compose.chaos.faults import link as faults
from compose.chaos.faults import wire
from compose.chaos.link import Link
from compose.chaos.nats_wire import Message
from compose.chaos.round import UNDERWAY_TIMEOUT, Round
from compose.chaos.scenario import scenario
from compose.chaos.viewer import Viewer
from compose.chaos.world import TIGHT

SILENT = 2.5  # seconds: longer than any silence after which others act
LONG_SILENT = 6.0  # seconds: nobody waits for its end
DELAY = 0.2
TRICKLE = 1000.0  # bytes per second
NODE, WORKER = "node-2", "worker-2"  # the parts that stand behind links
CONNECTED_TIMEOUT = 30.0
KICKS = 6  # one after the other, in one round
PATIENCE = 1.0  # seconds without anything after which an impatient client comes back


async def _decoy(round: Round) -> Link:
    """A link that nobody uses: what a control run strikes."""
    return await round.stack.enter_async_context(Link("decoy"))


async def _aim(round: Round, link: Link) -> Link:
    return await _decoy(round) if round.control else link


async def _clients(round: Round) -> Link:
    """A link between all clients of the round and the ingresses."""
    link = await round.stack.enter_async_context(Link("clients"))
    where = urlsplit(round.system.url)
    link.aim(where.hostname or "127.0.0.1", where.port or 0)
    round.door = lambda: link.url
    return link


async def _connected(round: Round, link: Link) -> None:
    """Everybody who still watches is (again) connected."""
    async with asyncio.timeout(CONNECTED_TIMEOUT):
        await round.system.until(lambda: link.connections >= len(round.crowd.running()))


async def _through(round: Round, name: str, seconds: float) -> list[Viewer]:
    """Those of a crowd whose tokens pass through a linked part."""
    await round.work(seconds)
    for _ in range(3):
        if through := round.crowd.on(name):
            return through
        await round.work(seconds)  # nobody's tokens pass there
    return round.crowd.on(name)


async def _break(round: Round, part: str, way: str, end: Callable[[Link, Link], Fault]) -> None:
    """End every connection of a linked part's `way`, `http` or `nats`."""
    link = round.system.links[f"{part}.{way}"]
    through = await _through(round, part, 2.5)
    await round.hurt(end(link, await _aim(round, link)), through)


# -- clients and ingress ---------------------------------------------------------------------------------------------


@scenario("every client's connection is closed under it", bound=1.0, weight=8)
async def client_cut(round: Round) -> None:
    link = await _clients(round)
    await round.work(3)
    for _ in range(KICKS):
        await _connected(round, link)
        if not round.crowd.running():
            break
        await round.hurt(faults.cut(link, await _aim(round, link)))


@scenario("every client's connection is broken by RST", bound=1.0, weight=8)
async def client_reset(round: Round) -> None:
    link = await _clients(round)
    await round.work(3)
    for _ in range(KICKS):
        await _connected(round, link)
        if not round.crowd.running():
            break
        await round.hurt(faults.reset(link, await _aim(round, link)))


@scenario("clients' connections are half open; those with a patience of a second come back another way", bound=2.0)
async def client_half_open(round: Round) -> None:
    link = await _clients(round)
    scripts = [round.script(3.5) for _ in range(round.sessions)]
    await round.crowd.gather(scripts, patience=PATIENCE)
    async with asyncio.timeout(UNDERWAY_TIMEOUT):
        await round.crowd.underway()
    fault = faults.half_open([link], [await _aim(round, link)])
    round.door = lambda: round.system.url
    await round.hurt(fault)
    await asyncio.sleep(SILENT)


@scenario("everything to and from clients takes 200 ms longer each way", bound=0.5)
async def client_delay(round: Round) -> None:
    link = await _clients(round)
    await round.work(2.5)
    await round.hurt(faults.delay(link, await _aim(round, link), DELAY))
    await asyncio.sleep(1)


@scenario("one reader gets a thousand bytes a second; it disturbs nobody", world=TIGHT, bound=0.25)
async def reader_trickles(round: Round) -> None:
    watched = await round.work(3, rate=200, burst=2, tokens=600)
    session = round.rng.choice(round.going(watched))
    where = urlsplit(round.system.url)
    link = await round.stack.enter_async_context(Link("a slow client"))
    link.aim(where.hostname or "127.0.0.1", where.port or 0)
    slow = round.crowd.watch(session, door=lambda: link.url, receive_buffer=4096)
    await slow.seen(1)
    fault = faults.trickle(link, await _aim(round, link), TRICKLE)
    await round.hurt(fault, [viewer for viewer in round.crowd.running() if viewer is not slow])
    await round.crowd.over_but(slow)
    await round.heal(fault)


# -- ingress and node ------------------------------------------------------------------------------------------------


@scenario(
    "every connection between ingresses and a node is broken by RST",
    bound=0.25,
    links=True,
    keeps_connections=True,
    weight=8,
)
async def node_link_reset(round: Round) -> None:
    await _break(round, NODE, "http", faults.reset)


@scenario(
    "every connection between ingresses and a node is closed", bound=0.25, links=True, keeps_connections=True, weight=8
)
async def node_link_cut(round: Round) -> None:
    await _break(round, NODE, "http", faults.cut)


@scenario("the way between ingresses and a node is half open", bound=1.5, links=True, keeps_connections=True)
async def node_link_half_open(round: Round) -> None:
    await _half_open(round, f"{NODE}.http", NODE)


@scenario(
    "everything between ingresses and a node takes 200 ms longer each way",
    bound=0.5,
    links=True,
    keeps_connections=True,
)
async def node_link_delay(round: Round) -> None:
    link = round.system.links[f"{NODE}.http"]
    through = await _through(round, NODE, 2.5)
    await round.hurt(faults.delay(link, await _aim(round, link), DELAY), through)
    await asyncio.sleep(1)


# -- roles and NATS --------------------------------------------------------------------------------------------------


@scenario("a node's connection to NATS is broken by RST", bound=0.5, links=True, keeps_connections=True, weight=6)
async def node_nats_reset(round: Round) -> None:
    await _break(round, NODE, "nats", faults.reset)


@scenario(
    "a node's connection to NATS is half open; its viewers are moved", bound=2.5, links=True, keeps_connections=True
)
async def node_nats_half_open(round: Round) -> None:
    await _half_open(round, f"{NODE}.nats", NODE, silent=LONG_SILENT)


@scenario("a worker's connection to NATS is broken by RST", bound=0.5, links=True, keeps_connections=True, weight=6)
async def worker_nats_reset(round: Round) -> None:
    await _break(round, WORKER, "nats", faults.reset)


@scenario(
    "a worker is cut off until others took over, and both believe that the answer is theirs",
    bound=2.0,
    takeovers=True,
    links=True,
    keeps_connections=True,
)
async def worker_two_believe(round: Round) -> None:
    await _half_open(round, f"{WORKER}.nats", WORKER, seconds=5.0)


async def _half_open(round: Round, name: str, part: str, *, seconds: float = 4.0, silent: float = SILENT) -> None:
    link = round.system.links[name]
    through = await _through(round, part, seconds)
    fault = faults.half_open([link], [await _aim(round, link)])
    await round.hurt(fault, through)
    await asyncio.sleep(silent)
    await round.heal(fault)


# -- single messages -------------------------------------------------------------------------------------------------


async def _lost(
    round: Round,
    part: str,
    wanted: Callable[[Message], bool],
    what: str,
    seconds: float,
    *,
    instead: bytes | None = None,
) -> Fault:
    through = await _through(round, part, seconds)
    tap = round.system.taps[f"{part}.nats"]
    fault = wire.lose(tap, part, wanted, what, wrong=round.control, instead=instead)
    await round.hurt(fault, through)
    return fault


@scenario(
    "a publish is stored, its ack is lost, and a longer one is behind it",
    bound=1.5,
    links=True,
    keeps_connections=True,
    weight=6,
)
async def ack_lost(round: Round) -> None:
    for _ in range(2):
        await _lost(round, WORKER, wire.is_ack, "an ack", 3)
        if round.control:
            return


@scenario("a frame is lost on its way to a node", bound=1.5, links=True, keeps_connections=True, weight=6)
async def frame_lost(round: Round) -> None:
    await _lost(round, NODE, wire.is_token, "a frame", 3)


@scenario(
    "the last frame of an answer is lost on its way to a node", bound=1.5, links=True, keeps_connections=True, weight=6
)
async def last_frame_lost(round: Round) -> None:
    await _lost(round, NODE, wire.is_terminal, "the last frame of an answer", 3)


@scenario(
    "what is asked for from the log is answered by a replica that has nothing",
    world=TIGHT,
    links=True,
    keeps_connections=True,
    figures={"attached_to_first_event": 0.5},
)
async def page_refused(round: Round) -> None:
    watched = await round.work(3, rate=50, burst=1, tokens=150)
    async with asyncio.timeout(UNDERWAY_TIMEOUT):
        await round.crowd.underway(40)  # the first frames are beyond every ring
    tap = round.system.taps[f"{NODE}.nats"]
    fault = wire.lose(tap, NODE, wire.is_page, "a page of the log", wrong=round.control, instead=wire.NOT_FOUND)
    attached = time.monotonic()  # theirs is this clock
    late = [round.crowd.watch(session) for session in watched]
    await round.hurt(fault, [])
    async with asyncio.timeout(UNDERWAY_TIMEOUT):
        await asyncio.gather(*(viewer.changed(lambda one: one.ended > 0) for viewer in late))
    for viewer in late:
        round.figure("attached_to_first_event", viewer.stored()[0].at - attached)
