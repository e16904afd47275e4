"""API: what stands in the header of a refusal."""

from __future__ import annotations

import pytest

from tests.broker.node.test_api import error_of
from tests.fixtures.node import RunningNode


async def test_what_a_405_allows_is_all_that_its_path_takes(node: RunningNode) -> None:
    sid = (await node.session()).sid
    for method, path, allowed in [
        ("PUT", "/v1/sessions", "GET, POST"),
        ("PUT", f"/v1/sessions/{sid}", "DELETE, GET, PATCH"),
        ("GET", f"/v1/sessions/{sid}/generations", "POST"),
        ("DELETE", f"/v1/sessions/{sid}/generations/gnone", "GET"),
        ("POST", f"/v1/sessions/{sid}/events", "GET"),
        ("POST", "/livez", "GET, HEAD"),
    ]:
        answer = await node.http.request(method, path)
        assert (answer.status_code, error_of(answer)["code"]) == (405, "method_not_allowed"), (method, path)
        assert answer.headers["allow"] == allowed, (method, path)
    assert (await node.http.head("/livez")).status_code == 200


@pytest.mark.parametrize("id", ["", "x" * 65, 'a"b', "a b", "a<b>", "a/b"])
async def test_a_request_id_that_is_not_short_and_plain_is_not_kept(node: RunningNode, id: str) -> None:
    answer = await node.http.get("/v1/models", headers={"x-request-id": id})
    assert error_of(answer)["request_id"] not in ("", id)
