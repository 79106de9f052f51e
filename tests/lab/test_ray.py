"""Many workers, the same numbers: whoever is killed, and whoever goes on."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress

import numpy as np
import psutil
import pytest

from distillnb.lab.experiments import ExperimentConfiguration, Unit, experiment_plan
from distillnb.lab.ray import drive, on_workers
from distillnb.store import Store

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
COMMAND = "import sys; from distillnb.lab.cli import main; sys.exit(main())"
METHODS = "gradient matched tpe"
RUN = f"run digits --scale smoke --seeds 1 --methods {METHODS}".split()
DIGITS = experiment_plan(ExperimentConfiguration("digits", "clean", "smoke", METHODS.split(), [0]))


def distillnb(*words, cwd, before="", **environment):
    options = dict(cwd=cwd, capture_output=True, text=True, env={**os.environ, **environment})
    return subprocess.run([sys.executable, "-c", before + COMMAND, *words], **options)


def hear_ctrl_c():
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def begin(*words, cwd):
    """Start the command and do not wait for it. Whoever starts the tests in the background has
    Ctrl-C ignored: undo that.
    """
    options = dict(stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, *words], cwd=cwd, preexec_fn=hear_ctrl_c, **options
    )


def wait_for(found, process=None, seconds=300):
    "Ask until there is an answer that is true, and return it."
    end = time.monotonic() + seconds
    while not (answer := found()):
        assert process is None or process.poll() is None, (
            f"it ended too early: {process.stderr.read()}"
        )
        assert time.monotonic() < end, "nothing has come"
        time.sleep(0.02)
    return answer


def training(process, unit):
    "The workers of a command that train a unit, by the titles of their processes."
    try:
        children = psutil.Process(process.pid).children(recursive=True)
        return [p for p in children if next(iter(p.cmdline()), "") == f"ray::{unit}"]
    except psutil.NoSuchProcess:
        return []


def finished(folder):
    "The names of the finished units, in order."
    journal = folder / "journal"
    rows = journal.read_bytes().split(b"\n")[:-1] if journal.exists() else []
    return [json.loads(row.split(b" ", 2)[2])["unit"] for row in rows]


def left(folder):
    """What a run leaves and workers must not change: records without their seconds, students and
    teachers to the byte.
    """
    records = [
        json.loads(row) | {"seconds": 0}
        for row in (folder / "records.jsonl").read_text().splitlines()
    ]
    return records, {path.name: path.read_bytes() for path in (folder / "states").glob("*.npz")}


def assert_gone(processes, seconds=60):
    _, alive = psutil.wait_procs(processes, timeout=seconds)
    assert not alive, f"still there: {alive}"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    "What the run leaves when nobody shares it."
    folder = tmp_path_factory.mktemp("alone")
    result = distillnb(*RUN, "--out", "whole", cwd=folder)
    assert result.returncode == 0, result.stderr
    assert set(finished(folder / "whole")) == set(DIGITS.units), (
        "the plan has the units of the sequential run"
    )
    return left(folder / "whole")


def test_a_worker_is_killed(whole, tmp_path):
    with begin(*RUN, "--workers", "2", "--out", "shared", cwd=tmp_path) as process:
        (worker,) = wait_for(lambda: training(process, "gradient.all"), process)
        family = psutil.Process(process.pid).children(recursive=True)
        assert "gradient.all" not in finished(tmp_path / "shared")
        worker.kill()
        _, said = process.communicate(timeout=300)
    assert (process.returncode, said) == (0, ""), said
    assert left(tmp_path / "shared") == whole
    units = finished(tmp_path / "shared")
    assert sorted(units) == sorted(set(units)) and not (tmp_path / "shared/parts").exists()
    assert_gone(family)


@pytest.mark.parametrize(
    ("sent", "further"),
    [(signal.SIGINT, []), (signal.SIGTERM, []), (signal.SIGKILL, ["--workers", "2"])],
)
def test_the_driver_is_stopped(sent, further, whole, tmp_path):
    """By Ctrl-C or SIGTERM, and the run goes on in one process; by a kill, and it goes on with
    workers.
    """
    with begin(*RUN, "--workers", "2", "--out", "torn", cwd=tmp_path) as process:
        wait_for(lambda: len(finished(tmp_path / "torn")) >= 3, process)
        family = psutil.Process(process.pid).children(recursive=True)
        agents = [
            p for p in family if "Agent" in p.name()
        ]  # Ray's own, who look for their lost master for a minute
        process.send_signal(sent)
        _, said = process.communicate(timeout=60)
    assert_gone([p for p in family if p not in agents])
    if code := {signal.SIGINT: 130, signal.SIGTERM: 143}.get(sent):
        assert (process.returncode, said.count("\n")) == (code, 1), said
        assert "--resume goes on" in said
    kept = finished(tmp_path / "torn")
    assert len(kept) < len(DIGITS.units), "it was to be stopped in the middle"
    result = distillnb(*RUN, *further, "--resume", "--out", "torn", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert left(tmp_path / "torn") == whole and finished(tmp_path / "torn")[: len(kept)] == kept
    for agent in agents:  # they would end by themselves, but tests have no minute for that
        with suppress(psutil.NoSuchProcess):
            agent.kill()


OTHER = """
import os, ray, sys
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
silent = dict(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
ray.init(address="local", num_cpus=2, **silent)
print(ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
ray.shutdown()
"""


@pytest.fixture
def address(tmp_path):
    "Where a Ray is that another process has started."
    pipes = dict(
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    with subprocess.Popen([sys.executable, "-c", OTHER], cwd=tmp_path, **pipes) as process:
        yield process.stdout.readline().strip()
        family = psutil.Process(process.pid).children(recursive=True)
        process.stdin.close()
    assert_gone(family)


def test_a_ray_that_runs(address, tmp_path):
    """Several groups of seeds, each with a convolutional student, in the processes of a Ray of
    somebody else.
    """
    if not (
        os.environ.get("DISTILLNB_DATA")
        and os.path.isdir(f"{os.environ['DISTILLNB_DATA']}/fashion-mnist")
    ):
        pytest.skip("needs the images of Fashion-MNIST")
    run = ["run", "fashion-mnist", "--scale", "smoke", "--seeds", "2", "--methods", "none", "fixed"]
    for out, further in (("alone", []), ("joined", ["--ray", address])):
        result = distillnb(*run, *further, "--out", out, cwd=tmp_path, RAY_AUTH_MODE="token")
        assert (result.returncode, result.stderr) == (0, "")
    assert left(tmp_path / "alone") == left(tmp_path / "joined")
    assert len(left(tmp_path / "joined")[0]) == 4


SMALL = """
from functools import partial
from distillnb.lab import experiments
experiments.run_suite = partial(experiments.run_suite, names=["both 40 %"], steps=20)
"""


def test_a_suite_on_workers_is_the_same_and_may_go_on_without(tmp_path):
    suite = ["suite", "digits", "--seeds", "1", "--methods", "labels", "half-normalized", "tpe"]
    said = []
    for out, further in (("alone", []), ("shared", ["--workers", "2"]), ("shared", ["--resume"])):
        result = distillnb(*suite, *further, "--out", out, cwd=tmp_path, before=SMALL)
        assert (result.returncode, result.stderr) == (0, "")
        said.append(result.stdout)
    assert left(tmp_path / "alone") == left(tmp_path / "shared")
    assert len(left(tmp_path / "shared")[0]) == 3 and said[1] == said[2]


UNLUCKY = """
import os, tempfile
from distillnb.lab import ray
from distillnb.lab.experiments import Plan, Unit
from distillnb.store import Store

def good(store, unit):
    store.finish(unit, {})

def wrong(store):
    raise FileNotFoundError("no images here; download them")

ray.MAX_LOST_WORKERS = 1
units = {"good": Unit(good, ("good",))}
for bad in (wrong, lambda store: os.abort()):
    with tempfile.TemporaryDirectory() as folder, Store(folder, {}) as store:
        try:
            ray.run_on_ray(Plan(units | {"bad": Unit(bad, (), ("good",))}, None), store, 1)
        except OSError as error:
            print(type(error).__name__, error, len(store.records))
"""


def test_errors_of_a_training_and_a_unit_that_kills_every_worker(tmp_path):
    "The one arrives as itself, the other is given up; what was finished before is kept."
    result = subprocess.run(
        [sys.executable, "-c", UNLUCKY], cwd=tmp_path, capture_output=True, text=True
    )
    assert (result.returncode, result.stderr) == (0, "")
    raised, lost = result.stdout.splitlines()
    assert raised == "FileNotFoundError no images here; download them 1"
    assert lost.startswith("ConnectionError unit bad was lost for good") and lost.endswith(
        "resume 1"
    )


ARRAY = np.ones(3)
LIES = {
    "another unit": (({"unit": "v"}, {}), "a worker sent 'v'"),
    "no unit": (({}, {}), "a worker sent None"),
    "another unit's arrays": (({"unit": "u"}, {"v.student": [ARRAY]}), "arrays 'v.student'"),
    "a state of the unit": (({"unit": "u"}, {"u": [ARRAY]}), "arrays 'u'"),
    "another kind": (({"unit": "u"}, {"u.x": [ARRAY]}), "arrays 'u.x'"),
    "a key that is none": (({"unit": "u"}, {1: [ARRAY]}), "arrays 1"),
    "no list": (({"unit": "u"}, {"u.student": ARRAY}), "in u.student no list of arrays"),
    "objects": (({"unit": "u"}, {"u.student": [np.array([{}])]}), "no list of arrays"),
    "a record that is a list": (([1], {}), "no record with arrays"),
    "arrays that are none": (({"unit": "u"}, None), "no record with arrays"),
    "nothing": (None, "no parcel"),
    "three things": (({"unit": "u"}, {}, {}), "no parcel"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_worker_lies(lie, tmp_path):
    "What has come is not what was asked for: nothing of it is kept."
    parcel, why = LIES[lie]
    units = {"u": Unit(None, ()), "w": Unit(None, ())}
    sent = {"u": parcel, "w": ({"unit": "w"}, {"w.student": [ARRAY]})}
    with Store(tmp_path, {}) as store:
        with pytest.raises(ValueError, match=f"asked for u, .*{why}.* install the same distillnb"):
            drive(
                store,
                units,
                lambda name, unit, given: name,
                lambda running: ((name := max(running)), sent[name]),
                lambda: 2,
                lambda name: None,
            )
        assert store.records == [{"unit": "w"}] and store.load("u.student") is None
        assert [path.name for path in store.checkpoints.files()] == [
            f"w.student-000001.{kind}" for kind in ("json", "npz")
        ]


LISTENING = """
import os
import psutil
from distillnb.lab.ray import _ray
with _ray(1) as ray:
    ray.get(ray.remote(lambda: 1).remote())
    family = [psutil.Process(), *psutil.Process().children(recursive=True)]
    found = [c.laddr.ip for p in family for c in p.net_connections() if c.status == "LISTEN"]
print(len(found) > 2, sorted({ip.removeprefix("::ffff:") for ip in found}))
print(os.environ["RAY_AUTH_MODE"])
print("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER" in os.environ)
"""


def test_a_ray_of_our_own_listens_on_the_loopback_address_and_asks_for_a_token(tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "RAY_AUTH_MODE"}
    command = [sys.executable, "-c", LISTENING]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert result.stdout == "True ['127.0.0.1']\ntoken\nFalse\n", result.stderr


@pytest.mark.parametrize("where", [0, -1, 1.5, True, None])
def test_workers_are_a_whole_number(where):
    with pytest.raises(ValueError, match="where must be a whole number from 1"):
        on_workers(where)


def test_ray_is_missing(tmp_path):
    before = "import sys; sys.modules['ray'] = None\n"
    result = distillnb(*RUN, "--workers", "2", cwd=tmp_path, before=before)
    assert (result.returncode, result.stdout) == (1, "") and not list(tmp_path.iterdir())
    cure = "pip install '.[ray]' in a clone of the repository"
    assert result.stderr == f"distillnb: the package ray is missing; {cure}\n"


@pytest.mark.parametrize(
    ("words", "code", "cure"),
    [
        ("--workers 2 --ray auto", 2, "not allowed with argument --workers"),
        ("--workers 0", 2, "whole number from 1"),
        ("--ray somewhere", 2, "HOST:PORT"),
        ("--ray 127.0.0.1:9", 1, "ray start --head"),
    ],
)
def test_bad_places_are_one_line(words, code, cure, tmp_path):
    result = distillnb(*RUN, *words.split(), cwd=tmp_path)
    assert (result.returncode, result.stdout) == (code, "")
    assert cure in result.stderr and result.stderr.count("\n") == 1, result.stderr
    assert not list(tmp_path.iterdir()), "a bad place must not leave anything behind"


def test_without_the_options_ray_is_not_loaded(tmp_path):
    run = ["run", "synthetic", "--scale", "smoke", "--seeds", "1", "--methods", "none"]
    code = f"from distillnb.lab.cli import main; import sys; assert main({run}) == 0; "
    code += "assert 'ray' not in sys.modules"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
