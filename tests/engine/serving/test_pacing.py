import pytest

from engine.serving.pacing import Pacer


def test_few_streams_keep_the_least_interval() -> None:
    pacer = Pacer(min_interval=0.01, max_messages_per_second=1000.0)
    assert pacer.interval() == 0.01
    with pacer.stream(10):
        assert pacer.interval() == 0.01


def test_many_outputs_share_the_rate() -> None:
    pacer = Pacer(min_interval=0.01, max_messages_per_second=1000.0)
    with pacer.stream(40), pacer.stream(24):
        assert pacer.interval() == pytest.approx(0.064)
    assert pacer.interval() == 0.01


def test_a_stream_that_fails_no_longer_counts() -> None:
    pacer = Pacer(min_interval=0.0, max_messages_per_second=1.0)
    with pytest.raises(RuntimeError), pacer.stream(5):
        raise RuntimeError
    assert pacer.interval() == 0.0
