"""Signals that a run grants in good order."""

import signal

import pytest

from training.signals import StopAtOnce, Stopped, StopSignals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_noted(number):
    before = signal.getsignal(number)
    with StopSignals() as stop:
        assert not stop.received
        signal.raise_signal(number)
        assert stop.received == number
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_or_raised(number):
    before = signal.getsignal(number)
    with pytest.raises(Stopped) as raised, StopAtOnce():
        signal.raise_signal(number)
    assert raised.value.code == 128 + number
    assert signal.getsignal(number) is before


@pytest.fixture
def interruptible():
    """Python's own handler: SIGINT is ignored in a program that a shell put in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_the_second_is_obeyed_at_once():
    def interrupt_twice():
        with StopSignals():
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        interrupt_twice()
