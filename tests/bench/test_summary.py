"""From records to a table that says when it is not to be believed."""

from pathlib import Path
from typing import cast

import msgspec
import pytest

from bench import cli, page, record
from bench.histogram import Histogram
from bench.ours import Okome
from bench.record import Failed, First, Held, Line, Loaded, Missing, Resumed, Run, Shape
from bench.summary import attach, per_stream, rows
from bench.trace import Token, Trace, named

SHAPE = Shape(500, 20.0)


def run(
    contender: str,
    cpu: dict[str, float],
    number: int = 0,
    *,
    client: float = 3.0,
    wrong: int = 0,
    tokens: int = 100_000,
    stalled: int = 0,
    others: float = 0.0,
) -> Run:
    """`cpu`: seconds of each process in a window of 10 s in which 100 000 tokens came: 1 s is 10 µs per token."""
    histogram = Histogram()
    histogram.add(1000)
    times = histogram.told()
    processes = {name: Held(seconds, 1) for name, seconds in cpu.items()} | {"engine": Held(1.0, 1)}
    loaded = Loaded(tokens, 10.0, client, wrong, 0, times, times, stalled)
    return Run(contender, "1", SHAPE, number, "2026", "a machine", loaded, processes, others=others)


def test_costs_are_medians_of_rounds_by_role() -> None:
    nodes = enumerate((1.0, 9.0, 2.0))
    found = rows(run("okome", {"node-1": cpu, "node-2": 1.0, "redis-1": 0.5}, number) for number, cpu in nodes)
    (row,) = found[SHAPE]
    assert row.costs == {"node": pytest.approx(30.0), "redis": pytest.approx(5.0)}
    assert row.whole == pytest.approx(35.0)
    assert row.rounds == 3


def test_a_role_is_as_late_as_the_worst_of_its_processes_in_the_worst_round() -> None:
    one = run("okome", {"node-1": 1.0, "node-2": 1.0})
    first = msgspec.structs.replace(one, lag={"node-1": 10.0, "node-2": 2.5, "ingress-1": None, "ingress-2": 1.0})
    second = msgspec.structs.replace(one, round=1, lag={"node-1": 1.0, "node-2": 5.0, "ingress-2": 1.0})
    (row,) = rows([first, second])[SHAPE]
    assert row.lag == {"node": 10.0, "ingress": None}


@pytest.mark.parametrize(
    ("found", "doubt"),
    [
        ([run("x", {"x": 1.0}, client=9.0)], "the load client used 90% of a core"),
        ([run("x", {"x": 1.0}), run("x", {"x": 2.0}, 1)], "rounds differ by 67%"),
        ([run("x", {"x": 1.0}, tokens=90_000)], "only 90% of the tokens arrived in their time"),
        ([run("x", {"x": 1.0}, tokens=125_000)], "125% of the tokens of its time arrived, held up before"),
        ([run("x", {"x": 1.0}, stalled=2)], "2 viewers had stopped getting any"),
        ([run("x", {"x": 1.0}, others=0.25)], "others used 25% of the machine"),
        ([run("x", {"x": 1.0}, wrong=3)], "3 tokens out of order, twice or missing"),
    ],
)
def test_what_cannot_be_believed_says_so(found: list[Run], doubt: str) -> None:
    (row,) = rows(found)[SHAPE]
    assert row.doubts == [doubt]
    assert f"**x: {doubt}: not to be believed.**" in page.page(found, "a command")


def test_the_page_compares_with_the_best_rust_router_and_names_who_is_not_here(tmp_path: Path) -> None:
    lines: list[Line] = [
        Missing("litellm", "make bench-peers"),
        run("vllm-router", {"vllm-router": 4.0}),
        run("sglang-router", {"sglang-router": 5.0}),
        run("okome", {"node-1": 2.0, "worker-1": 1.0, "nats-1": 1.5, "ingress-1": 1.5, "control-1": 0.5}),
    ]
    file = tmp_path / "runs.jsonl"
    for line in lines:
        record.write(file, line)
    assert list(record.read(file)) == lines
    cli.write(file, tmp_path / "measured.md", "a command")
    text = (tmp_path / "measured.md").read_text()
    assert "litellm (`make bench-peers`)" in text
    assert "| … node alone |  |  | 20.0 µs | 0.50 × |" in text
    assert "| … the path a token takes |  |  | 60.0 µs | 1.50 × |" in text
    picture = tmp_path / "measured" / "latency-500x20x1.svg"
    assert "(measured/latency-500x20x1.svg)" in text
    assert picture.read_text().count("<polyline") == 3


def test_a_rhythm_is_kept_where_some_window_of_the_trace_has_so_many_tokens() -> None:
    trace = Trace("two", [[Token(0.0, "a"), Token(0.1, "b"), Token(1.95, "c")], [Token(0.0, "a")]])
    assert trace.period == 2.0
    assert trace.within(0.5) == (0.0, 2.0), "the last one and both first, and the second; or nothing"
    assert trace.within(4.5) == (4.0, 6.0)
    assert trace.within(2.0) == (2.0, 2.0)
    shape = cli.shape("8xvllm_8_streams")
    least, most = (8 * tokens for tokens in cast(Trace, named("vllm_8_streams")).within(10.0))
    for tokens, kept_up in ((least, 1.0), (most, 1.0), (least / 2, 0.5), (2 * most, 2.0)):
        one = msgspec.structs.replace(run("x", {"x": 1.0}, tokens=round(tokens)), shape=shape)
        assert rows([one])[shape][0].kept_up == pytest.approx(kept_up, rel=0.01)


def test_a_ratio_to_a_figure_that_is_doubted_is_marked() -> None:
    okome, router = run("okome", {"node-1": 2.0}), run("vllm-router", {"vllm-router": 4.0})
    assert "| 20.0 µs | 0.50 × |" in page.page([okome, router], "a command")
    doubted = run("vllm-router", {"vllm-router": 4.0}, wrong=1)
    assert "| 20.0 µs | 0.50 × ? |" in page.page([okome, doubted], "a command")


@pytest.mark.parametrize("text", ["", "1000", "0x20", "10x10x0", "-1x5", "1e3x20", "10x20of0", "10of2"])
def test_a_shape_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(cli.WrongUse):
        cli.shape(text)
    assert cli.shape("300x20x3") == Shape(300, 20.0, 3)
    assert cli.shape("500x20of8") == Shape(500, 20.0, engines=8)


def test_what_the_harness_itself_takes_is_measured_and_has_a_row() -> None:
    assert "engine alone" in [one.name for one in cli.chosen([])]
    text = page.page([run("engine alone", {}), run("vllm-router", {"vllm-router": 4.0})], "a command")
    assert "| engine alone | 1 | 10000 | – | – | 1.02 / 1.02 ms |" in text


def test_three_servers_are_measured_where_they_are_asked_for() -> None:
    (three,) = cli.chosen(["okome, 3 NATS servers"])
    assert isinstance(three, Okome)
    assert three.servers == 3
    assert three not in cli.chosen([])


def test_the_memory_of_a_stream_is_a_difference() -> None:
    """What a process needs for itself does not count."""

    def held(streams: int, rate: float, rss: int) -> Run:
        times = Histogram().told()
        loaded = Loaded(0, 10.0, 1.0, 0, 0, times, times)
        return Run("okome", "1", Shape(streams, rate), 0, "2026", "a machine", loaded, {"node-1": Held(1.0, rss)})

    base = 50 * 1024 * 1024
    found = [held(1000, 0, base + 1000 * 10_240), held(5000, 0, base + 5000 * 10_240), held(1000, 2, base)]
    assert per_stream(rows(found), "okome") == {0: {"node": pytest.approx(10_240)}}
    for other in (Shape(5000, 0, engines=8), Shape(5000, 0, trace="vllm_8_streams"), Shape(5000, 0, viewers=3)):
        unlike = msgspec.structs.replace(held(5000, 0, 0), shape=other)
        assert per_stream(rows([*found, unlike]), "okome") == {0: {"node": pytest.approx(10_240)}}
    text = page.page(found, "a command")
    assert "| 0 | 0.0 KiB | 0.0 KiB | 10.0 KiB | 0.0 KiB |" in text
    assert "### 1000 × 0/s" not in text
    assert "### 1000 × 2/s" in text


def resumed(contender: str, **attach: float) -> Resumed:
    times = Histogram().told()
    costs = {name.replace("_", "-"): cost for name, cost in attach.items()}
    return Resumed(SHAPE, 0, "2026", "a machine", times, 1, 1, [1.0], times, times, times, 0, 0, costs, contender)


def test_what_coming_back_costs_is_that_of_one_contender_and_of_all_processes_of_both_roles() -> None:
    costs = {"node_1": 500.0, "node_2": 300.0, "ingress_1": 100.0, "ingress_2": 100.0, "nats_1": -50.0}
    found = [resumed("okome", **costs), resumed("okome, synced every 1s", node_1=9000.0), resumed("okome")]
    assert attach(found, "okome") == pytest.approx(0.001)
    with pytest.raises(ValueError, match="okome bench resume"):
        attach(found, "okome over WebSocket")
    with pytest.raises(ValueError, match="differ by more"):
        attach([resumed("okome", node_1=-3.0)], "okome")


def test_nothing_can_be_asked_of_peers_when_nothing_is_asked(tmp_path: Path) -> None:
    with pytest.raises(cli.WrongUse, match="--only okome"):
        cli.measure(["1000x0"], [], 1, 1.0, tmp_path / "report")
    with pytest.raises(cli.WrongUse, match="nobody can come back"):
        cli.resume("1000x0", "okome", 1.0, 1000, 1, 1.0, tmp_path / "report")
    with pytest.raises(cli.WrongUse, match="come back to"):
        cli.resume("1000x2", "engine alone", 1.0, 1000, 1, 1.0, tmp_path / "report")
    with pytest.raises(cli.WrongUse, match="cursor of an event stream"):
        cli.resume("1000x2", "okome over WebSocket", 1.0, 1000, 1, 1.0, tmp_path / "report")
    with pytest.raises(cli.WrongUse, match="--contender nobody: one of engine alone, okome"):
        cli.resume("1000x2", "nobody", 1.0, 1000, 1, 1.0, tmp_path / "report")
    assert not (tmp_path / "report").exists()


def test_what_asks_no_engine_has_a_table_of_its_own() -> None:
    found = page.page([run("okome", {"node-1": 1.0}), run("okome from publish to read", {"node-1": 2.0})], "a command")
    engines, own = found.split("### From a token's publish to its reader")
    assert "from publish to read" not in engines
    assert "| 500 × 20/s: okome from publish to read | 10000 | 1.02 / 1.02 ms | 20.0 µs |" in own


def test_what_asks_no_engine_and_fails_is_said_where_its_table_is() -> None:
    lines: list[Line] = [
        run("okome", {"node-1": 1.0}),
        run("okome", {"node-1": 1.0}, 1),
        run("okome from publish to read", {"node-1": 2.0}),
        Failed("okome from publish to read", "1", SHAPE, 1, "no token\nthat was all"),
    ]
    engines, own = page.page(lines, "a command").split("### From a token's publish to its reader")
    assert "did not carry" not in engines
    assert "500 × 20/s: okome from publish to read: in 1 of 2 rounds." in own
    assert "500 × 20/s: okome from publish to read did not carry this load: that was all" in own


def test_a_rhythm_of_engines_is_not_for_what_asks_none(tmp_path: Path) -> None:
    with pytest.raises(cli.WrongUse, match="rhythm of engines"):
        cli.measure(["10x20of2"], ["okome from publish to read"], 1, 1.0, tmp_path)
    with pytest.raises(cli.WrongUse, match="of an engine"):
        cli.firsts(["okome from publish to read"], 1, 1, tmp_path)
    with pytest.raises(cli.WrongUse, match="come back to"):
        cli.resume("10x20", "okome from publish to read", 1.0, 1000, 1, 1.0, tmp_path)
    assert all("publish" not in one.name for one in cli.chosen([]))


def test_first_tokens_are_held_against_the_quickest() -> None:
    """Medians of the rounds."""

    def one(contender: str, number: int, milliseconds: int) -> First:
        times = Histogram()
        times.add(milliseconds * 1000 - 20)
        return First(contender, "1", number, "2026", "a machine", times.told())

    found = [one("okome", number, time) for number, time in enumerate((9, 50, 8))] + [one("engine alone", 0, 1)]
    text = page.page([*found, run("okome", {"node-1": 1.0})], "a command")
    assert "| engine alone | 1 × 1 | 1.00 / 1.00 ms | 0.00 / 0.00 ms |" in text
    assert "| okome | 3 × 1 | 9.00 / 9.00 ms | 8.00 / 8.00 ms |" in text


def test_the_page_says_which_commits_were_measured() -> None:
    runs = [
        msgspec.structs.replace(run("okome", {"node-1": 1.0}), commit=commit) for commit in ("abc", "", "abc", "def")
    ]
    assert "commit abc, def, a machine" in page.page(runs, "a command")
    assert "commit" not in page.page([run("okome", {"node-1": 1.0})], "").split("\n\n")[1]


def test_who_was_measured_at_another_time_than_the_rest_of_a_table_is_named() -> None:
    def rounds(contender: str, *times: str) -> list[Run]:
        made = [run(contender, {"node-1": 1.0}, number) for number in range(len(times))]
        return [msgspec.structs.replace(one, began=time) for one, time in zip(made, times, strict=True)]

    in_turn = [*rounds("okome", "10:00", "10:05", "10:07"), *rounds("vllm-router", "10:01", "10:04", "10:08")]
    assert "not measured in turn" not in page.page(in_turn, "a command")
    text = page.page([*in_turn, *rounds("haproxy", "11:00", "11:01", "11:02")], "a command")
    assert text.count("not measured in turn") == 1
    assert "haproxy: not measured in turn with vllm-router." in text
    together = [*in_turn, *rounds("haproxy", "11:00", "11:02"), *rounds("litellm", "11:01", "11:03")]
    assert page.page(together, "a command").count("not measured in turn") == 2, "they overlap one another"
    joined = [*together, *rounds("redis-streams", "10:02", "11:00")]
    assert "not measured in turn" not in page.page(joined, "a command"), "one overlaps both"
    one_round = [*rounds("okome", "10:00"), *rounds("vllm-router", "10:01")]
    assert "not measured in turn" not in page.page(one_round, "a command")
