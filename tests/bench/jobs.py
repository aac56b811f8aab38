"""What a process of its own does in ``test_apart.py``: it finds these here."""

import os
import time


def work(job):
    """Does what a job's name says."""
    if job == "raises":
        raise ValueError("it cannot\nand here is why")
    if job == "dies":
        os._exit(3)
    if job == "hangs":
        time.sleep(600)
    return job, os.getpid()
