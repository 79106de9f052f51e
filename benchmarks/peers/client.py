"""Asks the peers: each framework is a process in its own environment, and what goes wrong there is
kept as a record.
"""

import atexit
import contextlib
import json
import math
import os
import queue
import subprocess
import threading

from benchmarks.peers.environments import ROOT, ensure

MODULES = {"torch": "benchmarks.peers.torch_peers", "jax": "benchmarks.peers.jax_peer"}
TIMEOUT = 900  # seconds that a peer may take to answer: torch.compile is the slowest


def settings(threads):
    "Environment variables that give every framework the same number of cores."
    one = {
        name: str(threads)
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NPROC")
    }
    several = str(threads > 1).lower()
    eigen = f"--xla_cpu_multi_thread_eigen={several} intra_op_parallelism_threads={threads}"
    quiet = {
        "JAX_PLATFORMS": "cpu",
        "CUDA_VISIBLE_DEVICES": "",
        "TORCHINDUCTOR_COMPILE_THREADS": "1",
    }
    return {**os.environ, **one, **quiet, "XLA_FLAGS": eigen}


class Client:
    "The peers of one environment."

    def __init__(self, environment, threads=1):
        self.environment, self.threads, self.process = environment, threads, None
        self.names, self.skipped, self.notes, self.errors = [], {}, {}, {}
        self.python = ensure(environment)
        if self.python:
            self._start()
        atexit.register(self.close)

    def time(self, name, workload, seconds=0.5):
        """(wall, cpu) seconds of one whole bilevel step, timed for about so many seconds; NaNs if
        it fails.
        """
        reply = self._ask(name, workload, {"name": name, "workload": workload, "seconds": seconds})
        return reply.get("wall", math.nan), reply.get("cpu", math.nan)

    def check(self, name, workload):
        "The hypergradient at the workload's beginning; NaNs if it fails."
        reply = self._ask(name, workload, {"check": name, "workload": workload})
        return reply.get("hypergradient", [math.nan] * 3)

    def close(self):
        "End the process."
        if self.process:
            self.process.kill()
            self.process.wait()
            with contextlib.suppress(OSError):
                self.process.stdin.close()
            self.process = None

    def _start(self):
        command = [self.python, "-m", MODULES[self.environment]]
        ends = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(
            command, **ends, text=True, bufsize=1, cwd=ROOT, env=settings(self.threads)
        )
        self.lines = queue.Queue()
        threading.Thread(
            target=self._listen, args=(self.process.stdout, self.lines), daemon=True
        ).start()
        ready = self._reply()
        if "error" in ready:
            self.errors[self.environment] = ready["error"]
        for field in ("names", "skipped", "notes"):
            setattr(self, field, ready.get(field, getattr(self, field)))

    @staticmethod
    def _listen(stream, lines):
        with stream:
            for line in stream:
                lines.put(line)
        lines.put("")

    def _reply(self):
        "The next reply; an error, and the end of the process, if none comes."
        try:
            line = self.lines.get(timeout=TIMEOUT)
            if line:
                return json.loads(line)
            reason = f"the process ended with {self.process.wait()}"
        except queue.Empty:
            reason = f"no answer in {TIMEOUT} s"
        self.close()
        return {"error": reason}

    def _ask(self, name, workload, request):
        "The reply to a request; a peer that failed on a workload is not asked again."
        if (name, workload) in self.errors or name not in self.names:
            return {}
        if not self.process or self.process.poll() is not None:
            self.close()
            self._start()
        try:
            if self.process:
                self.process.stdin.write(json.dumps(request) + "\n")
            reply = self._reply() if self.process else {"error": "the process does not start"}
        except OSError as error:
            self.close()
            reply = {"error": f"the process is gone ({error})"}
        if "error" in reply:
            self.errors[name, workload] = reply["error"]
        return reply


def start(environment, threads=1):
    """The peers of `torch` or `jax`. Missing ones are in .skipped, remarks in .notes, failures in
    .errors.
    """
    return Client(environment, threads)
