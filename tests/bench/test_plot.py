"""Every contender has a line of its own, where it belongs."""

import re

from bench import plot
from bench.histogram import CURVE
from bench.plot import HEIGHT, TOP


def line(milliseconds: float) -> list[float]:
    return [milliseconds] * len(CURVE)


def test_more_contenders_than_colours_all_have_a_line_and_none_looks_like_another() -> None:
    drawn = plot.curves({f"contender {number}": line(1.0 + number) for number in range(13)})
    looks = re.findall(r'<polyline points="[^"]*" fill="none" (.*?)/>', drawn)
    assert len(looks) == len(set(looks)) == 13
    named = [float(at) for at in re.findall(r'y="([\d.]+)" fill="#\w+">contender', drawn)]
    assert len(named) == 13
    assert max(named) < HEIGHT


def test_what_takes_longer_than_a_second_is_drawn_where_it_is() -> None:
    drawn = plot.curves({"slow": line(5000.0), "slower": line(9000.0)})
    heights = re.findall(r'<polyline points="[\d.]+,([\d.]+)', drawn)
    slower, slow = map(float, heights)
    assert TOP < slower < slow < HEIGHT
    assert "10000 ms" in drawn
