"""Which node serves which partition: the same everywhere, evenly, and moved only where it must be."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from broker.bus.subjects import partition_name
from ingress.placement import Placement, assign, capacity, rank

PARTITIONS = [partition_name(index) for index in range(32)]
members = st.sets(st.integers(1, 40).map("node-{}".format), min_size=2, max_size=9)


@given(members)
def test_no_node_holds_more_than_its_bound(nodes: set[str]) -> None:
    load = Counter(assign(PARTITIONS, nodes, nodes).values())
    assert sum(load.values()) == len(PARTITIONS)
    assert max(load.values()) <= capacity(len(PARTITIONS), len(nodes))


@given(members, st.data())
def test_a_lost_node_moves_its_own_share_and_nothing_else(nodes: set[str], data: st.DataObject) -> None:
    before = assign(PARTITIONS, nodes, nodes)
    gone = data.draw(st.sampled_from(sorted(nodes)))
    after = assign(PARTITIONS, nodes, nodes - {gone})
    moved = {partition for partition in PARTITIONS if before[partition] != after[partition]}
    assert moved == {partition for partition, node in before.items() if node == gone}
    assert max(Counter(after.values()).values()) <= capacity(len(PARTITIONS), len(nodes) - 1)
    assert assign(PARTITIONS, nodes, nodes) == before, "and gets it back"


@given(members)
def test_every_ingress_comes_to_the_same_answer(nodes: set[str]) -> None:
    assert assign(PARTITIONS, sorted(nodes), nodes) == assign(PARTITIONS, sorted(nodes, reverse=True), set(nodes))


def test_the_next_choice_is_the_next_in_rank() -> None:
    nodes = {"a", "b", "c"}
    placement = Placement(PARTITIONS, nodes, nodes)
    first = placement.choose("07")
    assert first in nodes
    second = placement.choose("07", {first or ""})
    assert second in nodes - {first}
    assert placement.choose("07", nodes) is None


def test_a_partition_that_is_new_is_placed_by_rank() -> None:
    nodes = {"a", "b", "c"}
    assert Placement(PARTITIONS, nodes, nodes).choose("zz") == rank("zz", nodes)[0]


def test_without_nodes_there_is_no_answer() -> None:
    assert Placement(PARTITIONS, {"a"}, ()).choose("00") is None
