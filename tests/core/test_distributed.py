"""Two processes on this machine share a batch; one is killed, and they go on from the folder."""

import json
import os
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest
import worker


class Crew:
    "Two workers, each a process of its own."

    def __init__(self, folder):
        holds = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
        addresses = [f"127.0.0.1:{hold.getsockname()[1]}" for hold in holds]
        for hold in holds:
            hold.close()
        self.processes = [self.start(folder, addresses, index) for index in range(2)]

    def start(self, folder, addresses, index):
        about = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
        env = os.environ | {
            "TF_CONFIG": json.dumps(about),
            "no_proxy": "127.0.0.1",
            "TF_CPP_MIN_LOG_LEVEL": "3",
        }
        command = [sys.executable, worker.__file__, folder]
        return subprocess.Popen(
            command, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )

    def last_lines(self):
        return [process.communicate(timeout=180)[0].splitlines()[-1] for process in self.processes]

    def __enter__(self):
        return self

    def __exit__(self, *error):
        for process in self.processes:
            process.kill()
            process.wait()
            process.stdout.close()


@pytest.fixture(scope="module")
def alone():
    "One worker on the whole batches, from the student of the first worker."
    import keras

    from distillnb import training

    before = keras.config.dtype_policy()
    try:
        keras.utils.set_random_seed(0)
        return training.train(*worker.setting(), worker.STEPS, worker.BATCHES, jit_compile=False)
    finally:
        keras.config.set_dtype_policy(before)


def check(last_lines, alone):
    "Both workers say the same, and what one worker on the whole batch would say."
    assert last_lines[0] == last_lines[1]
    run = json.loads(last_lines[0])
    assert run["hypergradients"] == alone.hypergradients.tolist()
    for name, whole in (("lam", alone.lam), ("inner", alone.inner_loss)):
        np.testing.assert_allclose(run[name], whole, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_worker(tmp_path, alone, victim):
    "The survivor ends within a minute and says why; the folder goes on to the undisturbed path."
    folder = tmp_path / "run"
    with Crew(folder) as crew:
        for _ in range(5):
            assert crew.processes[0].stdout.readline() == "saved\n"
        crew.processes[victim].send_signal(signal.SIGKILL)
        survivor = crew.processes[1 - victim]
        lines = survivor.communicate(timeout=60)[0].splitlines()
        assert survivor.returncode == 3
        assert (
            lines[-1].startswith("ConnectionError another worker is gone")
            and "Start all workers again" in lines[-1]
        )
        if victim == 1:
            assert str(folder) in lines[-1]
    with Crew(folder) as crew:
        last_lines = crew.last_lines()
        assert [process.returncode for process in crew.processes] == [0, 0]
    check(last_lines, alone)
