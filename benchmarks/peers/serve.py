"""How a peer answers: one JSON request per line on standard input, one JSON reply per line on
standard output.

{"name", "workload", "seconds"} is answered by {"wall", "cpu", "inner"}: seconds of one whole
bilevel step, the processor's
seconds (all threads), and how many steps were timed. {"check": name, "workload"} is answered by
{"hypergradient"}. What goes
wrong is answered by {"error"}. The first line says {"names", "skipped", "notes"}.
"""

import json
import os
import sys
import time

from benchmarks import workloads


def clock(peer, count):
    "(wall, cpu) seconds of one step, over a number of steps from the workload's beginning."
    peer.reset()
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(count):
        peer.step()
    peer.wait()
    return (time.perf_counter() - wall) / count, (time.process_time() - cpu) / count


def calibrated(peer, seconds):
    "How many steps take about so many seconds; the first one, which may compile, is not counted."
    clock(peer, 1)
    count, wall = 1, clock(peer, 1)[0]
    while count * wall < seconds / 4:
        count *= 2
        wall = clock(peer, count)[0]
    return max(1, round(seconds / wall))


def answer(request, peer, counts):
    "The reply to one request about one peer."
    if "check" in request:
        peer.reset()
        peer.step()
        return {"hypergradient": [float(h) for h in peer.hypergradient]}
    key = request["name"], request["workload"], request["seconds"]
    if key not in counts:
        counts[key] = calibrated(peer, request["seconds"])
    wall, cpu = clock(peer, counts[key])
    return {"wall": wall * peer.scale, "cpu": cpu * peer.scale, "inner": counts[key]}


def serve(peers, skipped, notes):
    """Answer until standard input ends. `peers` is {name: class}; an instance is made for each
    workload that is asked for.
    """
    protocol = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a library prints goes to standard error

    def say(reply):
        return protocol.write(json.dumps(reply) + "\n")

    say({"names": list(peers), "skipped": skipped, "notes": notes})
    made, counts = {}, {}
    for line in sys.stdin:
        request = json.loads(line)
        key = request.get("check") or request["name"], request["workload"]
        try:
            if key not in made:
                made[key] = peers[key[0]](key[1], workloads.workload(key[1]))
            say(answer(request, made[key], counts))
        except Exception as error:
            say({"error": f"{type(error).__name__}: {error}".splitlines()[0][:300]})
