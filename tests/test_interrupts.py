import os
import signal
import threading

import pytest

from wsi_mil.embed.interrupts import held_back


def interrupted(number, times, check_after, passed):
    with held_back() as check:
        check()
        for _ in range(times):
            os.kill(os.getpid(), number)
        passed.append("not interrupted")
        if check_after:
            check()
            passed.append("never")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(("times", "check_after"), [(1, True), (1, False), (2, False)])
def test_the_first_interrupt_waits_for_a_check_and_the_second_does_not(number, times, check_after):
    def end(_signal, _frame):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, end)
    passed = []
    try:
        with pytest.raises(KeyboardInterrupt):
            interrupted(number, times, check_after, passed)
        assert passed == (["not interrupted"] if times == 1 else [])
        assert signal.getsignal(signal.SIGTERM) is end
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGTERM, before)


def test_what_is_ignored_or_ends_the_process_stays_so():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with held_back():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGINT, before)


def test_in_another_thread_nothing_is_done():
    failed = []

    def work():
        try:
            with held_back() as check:
                check()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not failed
