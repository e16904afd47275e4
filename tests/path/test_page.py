"""The chat page in a real browser, on the whole system: what a person sees is every token, once."""

import asyncio
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import quote

import httpx
import pytest
from playwright.async_api import BrowserContext, Locator, Page, expect

from tests.fixtures.browser import TIMEOUT
from tests.fixtures.system import System

# A page of somebody else's, with nothing of its own but this.
FRIEND = """<!doctype html><pre data-testid="said"></pre><script type="module">
const { base, sid, token, transport, prompt } = JSON.parse(decodeURIComponent(location.hash.slice(1)));
const { connect } = await import(`${base}/web/okome.js`);
const said = document.querySelector('pre');
const stream = connect(sid, { base, token, transport, onEvent({ event, data }) {
  if (event === 'token') said.textContent += data.text;
  if (event === 'done') said.dataset.status = 'done';
} });
await stream.generate({ prompt });
</script>"""


class _Friend(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/html")
        self.end_headers()
        self.wfile.write(FRIEND.encode())

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture(scope="module")
def friend() -> Iterator[str]:
    """The origin of somebody else's page."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Friend) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://localhost:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory, friend: str) -> Iterator[System]:
    with System(tmp_path_factory.mktemp("page"), "--nodes", "2", "--cors-origin", friend) as running:
        yield running


# What a page behind a proxy that knows no upgrade sees: every WebSocket fails before it opens.
NO_WEBSOCKET = """
window.WebSocket = class extends EventTarget {
  constructor() {
    super();
    this.readyState = 0;
    setTimeout(() => {
      this.readyState = 3;
      this.onerror?.(new Event('error'));
      this.onclose?.(new CloseEvent('close', { code: 1006 }));
    }, 5);
  }
  send() {}
  close() {}
};
"""


def script(tokens: int, rate: float, seed: int = 7) -> str:
    return json.dumps({"tokens": tokens, "rate": rate, "seed": seed})


def said(tokens: int, seed: int = 7) -> str:
    """What the scripted engine must have said, as a page shows it."""
    return " ".join(f"{seed}.{index}" for index in range(tokens))


async def opened(context: BrowserContext, url: str) -> Page:
    page = await context.new_page()
    await page.goto(url)
    await page.get_by_test_id("model").select_option("scripted")
    return page


async def ask(page: Page, prompt: str) -> Locator:
    """Send a prompt; the answer's element."""
    before = await page.get_by_test_id("answer").count()
    await page.get_by_test_id("composer").fill(prompt)
    await page.get_by_test_id("send").click()
    answer = page.get_by_test_id("answer").nth(before)
    await answer.wait_for()
    return answer


async def ended(answer: Locator, status: str = "done") -> str:
    await expect(answer).to_have_attribute("data-status", status, timeout=TIMEOUT)
    return " ".join((await answer.inner_text()).split())


async def grown(answer: Locator, text: str) -> None:
    await expect(answer).to_contain_text(text, timeout=TIMEOUT)


async def test_an_answer_streams_and_is_whole(system: System, chromium: BrowserContext) -> None:
    page = await opened(chromium, system.url)
    answer = await ask(page, script(150, 30))  # so long that it still runs when the page is looked at again
    await grown(answer, "7.10")
    assert await answer.get_attribute("data-status") == "running"
    assert await ended(answer) == said(150)
    assert "node-" in await page.get_by_test_id("served-by").inner_text()
    assert await page.get_by_test_id("epoch").inner_text() != "–"


async def test_several_turns_and_a_second_tab_show_the_same(system: System, chromium: BrowserContext) -> None:
    page = await opened(chromium, system.url)
    assert await ended(await ask(page, script(10, 50, seed=1))) == said(10, seed=1)
    second = await ask(page, script(40, 20, seed=2))
    await grown(second, "2.5")
    other = await chromium.new_page()
    await other.goto(page.url)
    assert await ended(other.get_by_test_id("answer").nth(1)) == said(40, seed=2)
    assert await ended(other.get_by_test_id("answer").nth(0)) == said(10, seed=1)
    assert await ended(second) == said(40, seed=2)


async def test_a_reload_mid_answer_shows_every_token_once(system: System, chromium: BrowserContext) -> None:
    page = await opened(chromium, system.url)
    answer = await ask(page, script(100, 25))
    await grown(answer, "7.20")
    await page.reload()
    answer = page.get_by_test_id("answer").first
    await grown(answer, "7.30")
    assert await ended(answer) == said(100)


async def test_stop_stops(system: System, chromium: BrowserContext) -> None:
    page = await opened(chromium, system.url)
    answer = await ask(page, script(100_000, 20))
    await grown(answer, "7.5")
    await page.get_by_test_id("stop").click()
    text = await ended(answer, "cancelled")
    assert said(100_000).startswith(text.split(" 7.")[0])
    again = await ask(page, script(5, 50))
    assert await ended(again) == said(5)


async def test_with_eight_tabs_open_stop_still_works(system: System, chromium: BrowserContext) -> None:
    """Browsers hold six HTTP/1.1 connections to an origin: streams must not take them all."""
    page = await opened(chromium, system.url)
    answer = await ask(page, script(100_000, 20))
    await grown(answer, "7.5")
    tabs = [await chromium.new_page() for _ in range(7)]
    for tab in tabs:
        await tab.goto(page.url)
        await grown(tab.get_by_test_id("answer").first, "7.5")
    await tabs[-1].get_by_test_id("stop").click()
    await ended(tabs[-1].get_by_test_id("answer").first, "cancelled")
    await page.bring_to_front()
    await ended(answer, "cancelled")


async def test_without_websockets_the_page_streams_by_events(system: System, chromium: BrowserContext) -> None:
    await chromium.add_init_script(NO_WEBSOCKET)
    page = await opened(chromium, system.url)
    answer = await ask(page, script(80, 20))
    await grown(answer, "7.10")
    await page.reload()
    assert await ended(page.get_by_test_id("answer").first) == said(80)


async def test_a_node_killed_mid_answer_is_not_seen(system: System, chromium: BrowserContext) -> None:
    page = await opened(chromium, system.url)
    answer = await ask(page, script(120, 25))
    await grown(answer, "7.20")
    serving = (await page.get_by_test_id("served-by").inner_text()).split()[0]
    killed = await asyncio.to_thread(system.kill, serving)
    assert await ended(answer) == said(120)
    await expect(page.get_by_test_id("served-by")).not_to_contain_text(serving)
    await asyncio.to_thread(system.wait_restarted, killed)


@pytest.mark.parametrize("transport", ["ws", "sse"])
async def test_a_page_of_an_allowed_origin_imports_the_client(
    system: System, friend: str, chromium: BrowserContext, transport: str
) -> None:
    async with httpx.AsyncClient(base_url=system.url, headers=system.headers, timeout=30) as http:
        made = (await http.post("/v1/sessions", json={"model": "scripted"})).raise_for_status().json()
    told = {"base": system.url, "sid": made["session_id"], "token": made["token"], "transport": transport}
    page = await chromium.new_page()
    await page.goto(f"{friend}/#{quote(json.dumps(told | {'prompt': script(40, 40)}))}")
    assert await ended(page.get_by_test_id("said")) == said(40)


async def test_a_session_that_is_not_there_is_said_in_words(system: System, chromium: BrowserContext) -> None:
    page = await chromium.new_page()
    await page.goto(f"{system.url}/c/00aaaaaaaaaaaaaaaaaaaa")
    await expect(page.get_by_test_id("error")).to_be_visible(timeout=TIMEOUT)
