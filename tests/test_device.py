"""bf16 is used where it is fast, which is measured and not read off the processor's flags."""

import time

import pytest
import torch

from wsi_mil import device

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def forget():
    yield
    device.bf16_gain.cache_clear()


def test_the_gain_is_the_ratio_of_the_fastest_of_each_on_one_thread(monkeypatch):
    """A processor that takes 12 ms in fp32 and 4 ms in bf16, on a machine that has other work."""
    calls: list[int] = []

    def busy(a: torch.Tensor, b: torch.Tensor) -> None:
        calls.append(torch.get_num_threads())
        end = time.thread_time() + (0.012 if a.dtype == torch.float32 else 0.004)
        while time.thread_time() < end:
            pass
        time.sleep(0.02 * (a.dtype == torch.bfloat16))  # others have the core

    before = torch.get_num_threads()
    device.bf16_gain.cache_clear()
    monkeypatch.setattr(torch, "mm", busy)
    assert device.bf16_gain() == pytest.approx(3, rel=0.4)
    assert set(calls) == {1}
    assert torch.get_num_threads() == before
    assert device.bf16_gain() == device.bf16_gain()
    assert len(calls) == 16, "measured once"


@pytest.mark.parametrize(("gain", "fast"), [(0.5, False), (1.1, False), (2.0, True)])
def test_a_flag_alone_is_not_believed(monkeypatch, gain, fast):
    monkeypatch.setattr(device, "_cpu_flags", lambda: {"avx512_bf16"})
    monkeypatch.setattr(device, "bf16_gain", lambda: gain)
    assert device.bf16_is_fast(CPU) is fast
    monkeypatch.setattr(device, "_cpu_flags", lambda: {"avx2"})
    assert not device.bf16_is_fast(CPU)
    monkeypatch.undo()
