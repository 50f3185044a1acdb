"""Times of whole calls: what counts, and that they take turns."""

import pytest

from stepdistill.metrics import latency


def test_calls_take_turns_and_medians_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call of 0.4 s is repeated for a second in its turn, three times; one of 2 s is made once.

    The first call of each does not count, nor does a second round on a machine three times as slow.
    """
    clock, order = [0.0], ""

    def call(name: str, seconds: float) -> None:
        nonlocal order
        order += name
        slow = 3 if 6 < len(order) <= 8 else 1  # of ABAAAB AB AAAB: the second round is one of each
        clock[0] += 100.0 if order.count(name) == 1 else slow * seconds

    monkeypatch.setattr(latency, "_now", lambda: clock[0])
    calls = [lambda: call("A", 0.4), lambda: call("B", 2.0)]
    assert latency.ms_per_image(calls, batch_size=100, rounds=3) == pytest.approx([4.0, 20.0])
    assert order == "ABAAABABAAAB"
