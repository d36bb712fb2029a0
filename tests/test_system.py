"""What a process is told of its memory."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys, threading
import torch
from torch import nn
from seekray.system import keep_freed_memory

def steps():
    torch.set_num_threads(1)
    if sys.argv[1] == "keep":
        keep_freed_memory()
    net = nn.Sequential(*[m for _ in range(4) for m in (nn.Linear(512, 512), nn.ReLU())])
    optimizer = torch.optim.AdamW(net.parameters(), fused=True)
    rows = torch.randn(2048, 512)
    for step in range(40):
        if step == 20:
            before = count()
        net(rows[torch.randint(2048, (512,))]).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    print((count() - before) / 20)

def count():
    return resource.getrusage(resource.RUSAGE_THREAD).ru_minflt

thread = threading.Thread(target=steps)
thread.start()
thread.join()
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's allocator is told")
def test_freed_memory_is_kept_for_the_next_step() -> None:
    faults = {
        mode: float(subprocess.run([sys.executable, "-c", FAULTS, mode], capture_output=True, text=True, check=True).stdout)
        for mode in ("keep", "leave")
    }
    assert faults["keep"] < 0.1 * faults["leave"]
