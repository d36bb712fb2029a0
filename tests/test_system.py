"""What a process is told of its memory."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, threading
import torch
from torch import nn
from seekray.system import keep_freed_memory

def steps():
    torch.set_num_threads(1)
    keep_freed_memory()
    net = nn.Sequential(*[m for _ in range(4) for m in (nn.Linear(512, 512), nn.ReLU())])
    optimizer = torch.optim.AdamW(net.parameters(), fused=True)
    rows = torch.randn(2048, 512)
    for step in range(120):
        if step == 100:  # the heap has its size
            before = count()
        net(rows[torch.randint(2048, (256,))]).square().mean().backward()
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
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 20  # pages a step; 140 to 960 without
