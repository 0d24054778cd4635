"""Background work: one task at a time, behind everything else, and its errors are not lost."""

import os
import sys
import threading
import time

import pytest

from mgie_jax.train.background import NICE, Background


def test_one_task_at_a_time_and_all_of_them_by_the_end():
    background, done, running = Background(), [], threading.Lock()

    def task(number):
        assert running.acquire(blocking=False)
        time.sleep(0.02)
        done.append(number)
        running.release()

    for number in range(4):
        background.start(lambda number=number: task(number))
    background.close()
    assert done == [0, 1, 2, 3]


@pytest.mark.skipif(sys.platform != "linux", reason="a thread has no priority of its own")
def test_it_and_its_threads_step_back_and_the_process_does_not():
    background, found = Background(), []

    def look():
        found.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))

    def task():
        look()
        child = threading.Thread(target=look)
        child.start()
        child.join()

    background.start(task)
    background.close()
    assert found == [NICE, NICE]
    assert os.getpriority(os.PRIO_PROCESS, 0) == 0


@pytest.mark.parametrize("end", ["start", "wait", "close"])
def test_an_error_is_raised_once(end):
    background = Background()
    background.start(lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        background.start(lambda: None) if end == "start" else getattr(background, end)()
    background.close()
