"""A run outlives a crash at every operation on the disk, kills, full disks, and rotten bits.

A recording stand-in for `os` writes down every change to the disk. From such a log, `image`
computes what a crash would leave behind at any moment, under several models of a crash; then the
session is resumed from that. `SOAK=100` asks for a hundred kills of real trainings
instead of twenty.
"""

import base64
import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from notebooks import ROOT

from distillnb import store as module
from distillnb.store import SCHEMA, Checkpoints, Store, reproducible, seal, unseal

KILLS = int(os.environ.get("SOAK", 20))
SCRIPTS = {  # (unit, saves, size of its state)
    "three units": [("a", 3, 10), ("b.1", 2, 0), ("c-1", 4, 1000)],
    "many short ones": [(f"seed-{i}", i % 2, 3) for i in range(8)],
    "one long one": [("long", 12, 50)],
}
scripts = pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS)


@pytest.fixture
def place(tmp_path):
    "A folder in memory, where the system has one: thousands of sessions leave their files here."
    memory = "/dev/shm"
    with tempfile.TemporaryDirectory(dir=memory if os.path.isdir(memory) else tmp_path) as folder:
        yield Path(folder)


# a session, and what it must come to


def truth(unit, n, size):
    "The state of a unit after n saves: what comes next depends on all that was before."
    x = np.arange(size) + len(unit)
    for step in range(n):
        x = np.cos(x) + step
    return x


def session(folder, script, mark=lambda *what: None, log=lambda text: None, **options):
    "Start or resume, and finish; compare every loaded state with the truth. The records by unit."
    with Store(folder, {"script": script}, resume=True, log=log, **options) as store:
        mark("opened", tuple(r["unit"] for r in store.records))
        for unit, saves, size in script:
            if unit in store:
                continue
            arrays, notes = store.load(unit) or ({"x": truth(unit, 0, size)}, {"saves": 0})
            mark("loaded", unit, notes["saves"])
            x = arrays["x"]
            np.testing.assert_array_equal(x, truth(unit, notes["saves"], size))
            for n in range(notes["saves"], saves):
                x = np.cos(x) + n
                store.save(unit, {"x": x}, {"saves": n + 1})
                mark("saved", unit, n + 1)
            store.finish(unit, {"x": x.tolist(), "saves": saves})
            mark("finished", unit)
        assert not Checkpoints(Path(folder, "states")).files()
        return {record["unit"]: record for record in store.records}


def expected(script):
    return {
        unit: {"unit": unit, "x": truth(unit, n, size).tolist(), "saves": n}
        for unit, n, size in script
    }


def files(folder):
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in sorted(Path(folder).rglob("*"))
        if p.is_file()
    }


# stand-ins for the module `os`


class Disk:
    "The real `os`, without waiting for the disk; `change` sees every change before it is made."

    def __init__(self, root, change=lambda *what: None):
        self.root, self.change, self.files = Path(root), change, {}

    def __getattr__(self, name):
        return getattr(os, name)

    def _name(self, path):
        return os.path.relpath(path, self.root)

    def open(self, path, flags, mode=0o777):
        if flags & os.O_CREAT and not os.path.exists(path):
            self.change("create", self._name(path))
        elif flags & os.O_TRUNC:
            self.change("truncate", self._name(path), 0)
        file = os.open(path, flags, mode)
        self.files[file] = self._name(path)
        return file

    def write(self, file, data):
        data = bytes(data)
        part = self.change("write", self.files[file], data)
        return os.write(file, data if part is None else data[:part])

    def fsync(self, file):
        self.change("fsync", self.files[file])

    def ftruncate(self, file, size):
        self.change("truncate", self.files[file], size)
        os.ftruncate(file, size)

    def replace(self, old, new):
        self.change("replace", self._name(old), self._name(new))
        os.replace(old, new)

    def unlink(self, path):
        if os.path.exists(path):
            self.change("unlink", self._name(path))
        os.unlink(path)

    def mkdir(self, path):
        self.change("mkdir", self._name(path))
        os.mkdir(path)


class Forgetful(Disk):
    "A disk on which the fsync of folders, or the one of files, does nothing."

    def __init__(self, root, change, forgets_folders):
        super().__init__(root, change)
        self.forgets_folders = forgets_folders

    def fsync(self, file):
        if os.path.isdir(self.root / self.files[file]) != self.forgets_folders:
            super().fsync(file)


def recorded(monkeypatch, folder, script, disk=Disk, **options):
    "The log of a session: changes of the disk, and what the session knew in between."
    log = []
    with monkeypatch.context() as patched:
        patched.setattr(
            module, "os", disk(folder.parent, lambda *what: log.append(what), **options)
        )
        result = session(folder, script, lambda *what: log.append(what))
    return log, result


# what a crash leaves behind


class File:
    def __init__(self, data=b""):
        self.now = self.safe = data


def replayed(log, start, torn=False):
    "The disk after a log: names now and names that are safe, each file with such data as well."
    now = {name: None if data is None else File(data) for name, data in start.items()}
    safe = dict(now)
    for i, (what, name, *more) in enumerate(log):
        if what == "create":
            now[name] = File()
        elif what == "mkdir":
            now[name] = None
        elif what == "write":
            now[name].now += more[0][: len(more[0]) // 2] if torn and i == len(log) - 1 else more[0]
        elif what == "truncate":
            now[name].now = now[name].now[: more[0]]
        elif what == "replace":
            now[more[0]] = now.pop(name)
        elif what == "unlink":
            del now[name]
        elif what == "fsync" and isinstance(now.get(name), File):
            now[name].safe = now[name].now
        elif what == "fsync":
            elsewhere = {k: v for k, v in safe.items() if (os.path.dirname(k) or ".") != name}
            safe = elsewhere | {k: v for k, v in now.items() if (os.path.dirname(k) or ".") == name}
    return now, safe


def image(log, start, model, rng):
    "What is on the disk after a crash: {name: data}, and None for a folder."
    now, safe = replayed(log, start, torn=model == "torn")
    if model in ("killed", "torn"):
        return {name: file and file.now for name, file in now.items()}
    if model == "lost":
        return {name: file and file.safe for name, file in safe.items()}
    kept = {}
    for name in sorted({*now, *safe}):  # each change that was not synchronised has happened or not
        names = now if rng.random() < 0.5 else safe
        if name in names:
            kept[name] = names[name] and some(names[name], rng)
    return kept


def some(file, rng):
    "Data that were not synchronised: all, none, half, or as many zeros."
    new = file.now[len(file.safe) :] if file.now.startswith(file.safe) else b""
    return rng.choice(
        [file.now, file.safe, file.safe + new[: len(new) // 2], file.safe + bytes(len(new))]
    )


def put(image, place):
    for name, data in sorted(image.items()):
        if (place / name).parent.is_dir():  # with a folder, all that is in it is lost
            (place / name).mkdir() if data is None else (place / name).write_bytes(data)


def durable(log, script):
    "What was promised when the crash came: finished units, and the number of each last save."
    finished, saves = set(), {}
    for what, *more in log:
        if what == "opened":
            finished |= set(more[0])
        elif what == "finished":
            finished.add(more[0])
        elif what in ("saved", "loaded"):
            saves[more[0]] = more[1]
    return finished, saves


def crash(log, start, model, rng, place, script, monkeypatch):
    "Crash at the end of a log, resume, compare with what was promised. The image and the new log."
    left = image(
        [entry for entry in log if entry[0] not in ("opened", "loaded", "saved", "finished")],
        start,
        model,
        rng,
    )
    place.mkdir()
    put(left, place)
    begin = files(place) | {
        str(folder.relative_to(place)): None for folder in place.rglob("*") if folder.is_dir()
    }
    again, result = recorded(monkeypatch, place / "run", script)
    finished, saves = durable(log, script)
    opened = next(more[0] for what, *more in again if what == "opened")
    assert finished <= set(opened)
    for what, *more in again:
        if what == "loaded":
            assert more[1] >= saves.get(more[0], 0), (
                f"{more[0]}: the state of save {saves[more[0]]} was durable"
            )
    assert result == expected(script)
    shutil.rmtree(place)
    return begin, again


MODELS = ["killed", "torn", "lost", "mixed", "mixed", "mixed"]


@scripts
def test_crash_at_every_operation(script, place, monkeypatch):
    rng, seen = random.Random(0), 0
    (place / "whole").mkdir()
    log, result = recorded(monkeypatch, place / "whole" / "run", script)
    assert result == expected(script)
    changes = [i for i, entry in enumerate(log, start=1) if entry[0] not in ("opened", "loaded")]
    for k in [0, *changes]:
        for model in MODELS:
            if model == "torn" and (not k or log[k - 1][0] != "write"):
                continue
            begin, again = crash(log[:k], {}, model, rng, place / f"{seen}", script, monkeypatch)
            seen += 1
            if rng.random() < 0.2:  # and once more, while the first crash is being mended
                cut, model = rng.randrange(len(again)), rng.choice(MODELS)
                finished, saves = durable(log[:k], script)
                known = [
                    ("opened", tuple(finished)),
                    *(("saved", *item) for item in saves.items()),
                    *again[:cut],
                ]
                crash(known, begin, model, rng, place / f"{seen}", script, monkeypatch)
                seen += 1
    print(f"{seen} failpoints")
    assert seen >= 400, f"{seen} failpoints; with the other scripts there must be more than 1,000"


def test_the_models_of_a_crash_can_fail(place, monkeypatch):
    "Without the fsync of folders, or of files, the same test finds lost states: it is not blind."
    script, rng = SCRIPTS["one long one"], random.Random(0)
    for slip, model, folders in (("folders", "lost", True), ("files", "mixed", False)):
        (place / slip).mkdir()
        run = place / slip / "run"
        log, _ = recorded(monkeypatch, run, script, Forgetful, forgets_folders=folders)
        failures = 0
        for k in range(len(log)):
            try:
                crash(log[:k], {}, model, rng, place / slip / f"{k}", script, monkeypatch)
            except (AssertionError, ValueError):
                failures += 1
        assert failures, f"nobody noticed that fsync of {slip} does nothing"


# failures while the process lives on


class Faulty(Disk):
    "A disk on which one change fails, the n-th of those of certain kinds."

    def __init__(self, root, n, kinds, error, part=None):
        super().__init__(root, self._count)
        self.left, self.kinds, self.error, self.part, self.broken = n, kinds, error, part, False

    def _count(self, what, *more):
        if what in self.kinds and not (what == "fsync" and self.part):
            self.left -= 1
            if self.left == 0 and self.part and what == "write" and not self.broken:
                self.broken, self.left = True, 1
                return len(more[1]) // 2 or None  # half of it, and then the error
            if self.left == 0:
                raise self.error
        return None


ENOSPC = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
FAULTS = {
    "Ctrl-C": (
        {"write", "fsync", "replace", "unlink", "truncate", "create", "mkdir"},
        KeyboardInterrupt(),
        False,
    ),
    "disk full": ({"write", "create"}, ENOSPC, False),
    "disk full in the middle": ({"write"}, ENOSPC, True),
    "input/output error": ({"fsync", "replace"}, OSError(errno.EIO, os.strerror(errno.EIO)), False),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_change_fails(fault, place, monkeypatch):
    "A clear error goes up; what was saved is there, for a new process and for this one."
    script, (kinds, error, part), met = SCRIPTS["three units"], FAULTS[fault], 0
    for n in range(1, 1000):
        folder, log = place / f"{n}", []
        with monkeypatch.context() as patched:
            patched.setattr(module, "os", Faulty(place, n, kinds, error, part))
            try:
                session(folder, script, lambda *what, log=log: log.append(what))
                break
            except (OSError, KeyboardInterrupt) as caught:
                met += 1
                if isinstance(caught, OSError):
                    assert caught.errno == error.errno
                    opened = [entry for entry in log if entry[0] == "opened"]
                    assert not opened or ("intact" in str(caught) and str(folder) in str(caught))
            assert session(
                folder, script, lambda *what, log=log: log.append(("again", *what))
            ) == expected(script)
        finished, saves = durable(log, script)
        again = [entry[1:] for entry in log if entry[0] == "again"]
        assert finished <= set(again[0][1])
        assert all(entry[2] >= saves.get(entry[1], 0) for entry in again if entry[0] == "loaded")
        assert not [name for name in files(folder) if name.endswith(".tmp")]
    assert met > 15, f"only {met} failures were met"


def test_go_on_in_the_same_store_after_a_failure(place, monkeypatch):
    "Somebody frees some space, and the same call works."
    for n in range(1, 200):
        with Store(place / f"{n}", {}) as store:
            store.save("a", [np.zeros(3)], {"n": 0})
            with monkeypatch.context() as patched:
                patched.setattr(
                    module, "os", Faulty(place, n, {"write", "fsync", "replace"}, ENOSPC)
                )
                try:
                    store.save("a", [np.ones(3)], {"n": 1})
                    store.finish("b", {})
                    break
                except OSError:
                    assert store.load("a")[1]["n"] in (0, 1)
            store.save("a", [np.ones(3)], {"n": 2})
            if "b" not in store:
                store.finish("b", {})
            store.finish("a", {"n": 2})
        with Store(place / f"{n}", {}, resume=True) as store:
            assert [r["unit"] for r in store.records] == ["b", "a"]
    assert n > 9


def python(code, *arguments, **options):
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, **options)


@pytest.mark.skipif(sys.platform == "win32", reason="there is no limit to the size of a file")
def test_a_real_limit(tmp_path):
    "The system refuses to write on, in the middle of a file and in the middle of the journal."
    code = """
import resource, signal, sys
import numpy as np
from distillnb.store import Store
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
with Store(sys.argv[1], {}) as store:
    store.finish("a", {"n": 1})
    store.save("b", [np.ones(10)], {"n": 1})
    big = {"n": "x" * 9000}
    for method, name, content in ((store.save, "b", [np.ones(1000)]), (store.finish, "c", big)):
        try:
            method(name, content)
        except OSError as error:
            print(error)
    store.finish("d", {"n": 4})
"""
    done = python(code, tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("File too large (what was saved before is intact") == 2, done.stdout
    logged = []
    with Store(tmp_path / "run", {}, resume=True, log=logged.append) as store:
        assert [r["unit"] for r in store.records] == ["a", "d"] and store.load("b")[1] == {"n": 1}
    assert not logged and not [name for name in files(tmp_path) if name.endswith(".tmp")]


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    session(tmp_path / "run", SCRIPTS["one long one"])
    before = files(tmp_path)
    readonly = Faulty(
        tmp_path, 1, {"create", "truncate", "write"}, OSError(errno.EROFS, os.strerror(errno.EROFS))
    )
    for folder in ("run", "new"):
        with monkeypatch.context() as patched:
            patched.setattr(module, "os", readonly)
            readonly.kinds = {"create", "truncate", "write", "mkdir"}
            readonly.left = 1
            with pytest.raises(OSError, match="Read-only"):
                Store(tmp_path / folder, {"script": SCRIPTS["one long one"]}, resume=True)
    assert files(tmp_path) == before


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="permissions are of another kind")
def test_a_folder_without_permission(place):
    "The system's own refusal; root, who may write everywhere, first becomes nobody."
    code = """
import os, sys
from distillnb.store import Store
if os.geteuid() == 0:
    os.setuid(65534)
try:
    Store(sys.argv[1], {})
except PermissionError as error:
    print(error)
"""
    place.chmod(0o555)
    done = python(code, place)
    place.chmod(0o755)
    assert "Permission denied" in done.stdout and str(place) in done.stdout, done
    assert not files(place)


# others


def test_two_starters(tmp_path):
    "The second is refused by name; when the first is killed, it may go on."
    code = """
import sys
from distillnb.store import Store
store = Store(sys.argv[1], {})
print(flush=True)
sys.stdin.read()
"""
    command = [sys.executable, "-c", code, str(tmp_path / "run")]
    first = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT)
    first.stdout.readline()
    for resume in (False, True):
        with pytest.raises(
            BlockingIOError,
            match=f"run is in use by process {first.pid} on .* since 20.*wait for it",
        ):
            Store(tmp_path / "run", {}, resume=resume)
    first.kill()
    first.communicate()
    Store(tmp_path / "run", {}, resume=True).close()


def test_foreign_files_are_left_alone(tmp_path):
    foreign = {
        "notes.txt": b"x",
        ".notes.tmp": b"y",
        "states/.x.tmp": b"z",
        "states/readme": b"",
        "journal.bak": b"j",
    }
    (tmp_path / "states").mkdir()
    for name, data in foreign.items():
        (tmp_path / name).write_bytes(data)
    script = SCRIPTS["three units"]
    assert session(tmp_path, script) == session(tmp_path, script) == expected(script)
    assert foreign.items() <= files(tmp_path).items()


@pytest.mark.parametrize("name", ["journal", "lock", "states/a-000001.npz", "states/a-000001.json"])
def test_run_files_without_a_run(name, tmp_path):
    (tmp_path / "states").mkdir()
    (tmp_path / name).write_bytes(b"somebody's")
    before = files(tmp_path)
    for resume in (False, True):
        with pytest.raises(ValueError, match=f"no run.json but {name}"):
            Store(tmp_path, {}, resume=resume)
    assert files(tmp_path) == before


# bits that turn over


def test_every_byte_may_rot(place, monkeypatch):
    "After a turned bit, the records are the same in the end, or the file is refused by its name."
    script, rng, outcomes = [("a", 1, 2), ("b", 0, 2), ("c", 3, 2)], random.Random(0), {}
    halfway = Faulty(place, 10**6, {"replace"}, KeyboardInterrupt())
    with monkeypatch.context() as patched:
        patched.setattr(module, "os", halfway)

        def stop(*what):
            if what == ("saved", "c", 2):
                halfway.left = 1

        with pytest.raises(KeyboardInterrupt):
            session(place / "run", script, stop)
    sound = files(place / "run")
    assert (
        len([name for name in sound if name.startswith("states/c") and not name.endswith("tmp")])
        >= 4
    )
    monkeypatch.setattr(module, "os", Disk(place))
    for name, data in sound.items():
        for position in range(len(data)):
            rotten = bytearray(data)
            rotten[position] ^= 1 << rng.randrange(8)
            for other, content in (sound | {name: bytes(rotten)}).items():
                (place / "run" / other).write_bytes(content)
            logged = []
            try:
                assert session(place / "run", script, log=logged.append) == expected(script), (
                    name,
                    position,
                )
                outcome = "recovered" if logged else "unnoticed"
            except ValueError as error:
                assert f"{name} is damaged" in str(error)
                outcome = "refused"
            outcomes.setdefault((name, outcome), []).append(position)
            for left in files(place / "run").keys() - sound.keys():
                (place / "run" / left).unlink()
    counts = {key: len(positions) for key, positions in outcomes.items()}
    print(counts)
    assert counts["run.json", "refused"] == len(sound["run.json"])
    assert counts["journal", "recovered"] == len(sound["journal"])
    newest = "states/c-000002"
    for kind in ("json", "npz"):
        assert counts[f"{newest}.{kind}", "recovered"] == len(sound[f"{newest}.{kind}"])


# what does not fit


def reseal(folder, **changes):
    path = folder / "run.json"
    path.write_bytes(seal(unseal(path.read_bytes()) | changes))


@pytest.mark.parametrize(
    "schema, cure",
    [
        (SCHEMA + 1, "newer distillnb: upgrade"),
        (0, "older or unknown"),
        ("x", "older or unknown"),
        (True, "older or unknown"),
        (1.0, "older or unknown"),
    ],
)
def test_other_schemas(schema, cure, tmp_path):
    Store(tmp_path, {}).close()
    reseal(tmp_path, schema=schema)
    with pytest.raises(ValueError, match=cure):
        Store(tmp_path, {}, resume=True)


def test_another_configuration_is_named(tmp_path):
    Store(tmp_path, {"steps": 100, "student": {"units": (8, 8), "rate": 0.1}}).close()
    Store(tmp_path, {"student": {"rate": 0.1, "units": [8, 8]}, "steps": 100}, resume=True).close()
    for changed, named in [
        ({"steps": 200}, r"configuration\.steps: was 100, now 200"),
        ({"steps": 100.0}, r"configuration\.steps: was 100, now 100\.0"),
        (
            {"student": {"units": [8, 16], "rate": 0.1}},
            r"configuration\.student\.units: was \[8, 8\], now \[8, 16\]",
        ),
        ({"student": {"units": [8, 8]}}, r"configuration\.student\.rate: was 0\.1, now missing"),
        ({"student": None}, r"configuration\.student: was .*, now null"),
        ({"new": 1}, r"configuration\.new: was missing, now 1"),
    ]:
        whole = {"steps": 100, "student": {"units": [8, 8], "rate": 0.1}} | changed
        with pytest.raises(ValueError, match=named):
            Store(tmp_path, whole, resume=True)
    with pytest.raises(ValueError, match="has a run; go on with it .resume=True, or --resume"):
        Store(tmp_path, {"steps": 100})


def test_another_environment_is_a_warning_where_the_store_is_opened(tmp_path):
    with patch.dict(os.environ), patch.dict(sys.modules):
        sys.modules.pop("tensorflow", None)  # other tests may have imported it
        environment = reproducible(threads=1)
    Store(tmp_path, {}, environment=environment).close()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Store(tmp_path, {}, resume=True, environment=environment).close()
        Store(tmp_path, {}, resume=True).close()
    versions = environment["versions"] | {"numpy": "0.1"}
    with pytest.warns(
        UserWarning, match=r"environment\.versions\.numpy: was .* now \"0\.1\""
    ) as caught:
        Store(tmp_path, {}, resume=True, environment=environment | {"versions": versions}).close()
    assert caught[0].filename == __file__


@pytest.mark.parametrize(
    "name", ["", "a/b", "..\\a", "a b", "ü", "x" * 101, "a\n", "..", ".a", "a-000001", None, 1]
)
def test_names_of_units(name, tmp_path):
    with Store(tmp_path, {}) as store:
        for attempt in (
            lambda: store.save(name, []),
            lambda: store.load(name),
            lambda: store.finish(name, {}),
        ):
            with pytest.raises(ValueError, match="a unit's name"):
                attempt()


def test_names_that_resemble_each_other(tmp_path):
    with Store(tmp_path, {}) as store:
        names = ["a", "a-00001", "a-000001.npz", "a.json", "a.tmp", "a-"]
        for i, name in enumerate(names):
            store.save(name, [np.array(i)], {"name": name})
        store.finish("a", {})
    with Store(tmp_path, {}, resume=True) as store:
        for i, name in enumerate(names[1:], start=1):
            (array,), notes = store.load(name)
            assert array == i and notes == {"name": name}


def test_what_comes_back_is_what_went_in(tmp_path):
    special = np.array([np.nan, np.inf, -0.0, 5e-324])
    arrays = [
        special,
        special.astype(">f8"),
        np.float16(1.5),
        np.zeros((0, 3), bool),
        np.array("é"),
        np.eye(3, order="F"),
    ]
    with Store(tmp_path, {}) as store:
        store.save("a", arrays, {"rate": float("nan"), "big": 2**70, "text": "\ud800"})
        back, notes = store.load("a")
        for a, b in zip(map(np.asarray, arrays), back, strict=True):
            assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())
        assert np.isnan(notes["rate"]) and notes["big"] == 2**70 and notes["text"] == "\ud800"
        store.save("a", {"file": np.ones(1), "x/y": np.zeros(1)})
        assert list(store.load("a")[0]) == ["file", "x/y"]
        for bad in (np.array([None]), np.array([object()]), np.zeros(2, "V2")):
            with pytest.raises(ValueError, match="does not keep"):
                store.save("a", [bad])
        with pytest.raises(TypeError):
            store.finish("a", {"x": object()})
        store.finish("a", {"loss": float("inf")})
    with Store(tmp_path, {}, resume=True) as store:
        assert store.records == [{"unit": "a", "loss": float("inf")}]


def test_a_folder_of_an_older_version_opens(tmp_path):
    "Written before there was this class, and before runs had names; a new run says the same."
    run = """{
 "configuration": {
  "shape": [
   2,
   3
  ],
  "steps": 20
 },
 "environment": {
  "threads": 1
 },
 "schema": 1,
 "sha256": "bfc787a78a9029008bfe9706f3f5416ca53d9ef911cbb372dabce2977ed256c0"
}"""
    journal = (
        "47 3e2a2cd88080dc5a3ffdbc0d6987bd543af39e1268bfb90d412088c8260f8e18 "
        '{"unit": "a", "accuracy": 0.9, "shape": [2, 3]}\n'
    )
    commit = """{
 "names": [
  "w"
 ],
 "notes": {
  "step": 5
 },
 "npz": "ac32fbe6bebc0ace4c248b301058ea22b181a3e81757105bd2ff83aa06fcfd95",
 "number": 1,
 "sha256": "0cf27f0d28319d89caaa564740402d5834ab12363dc69794016df78eadd56caa",
 "unit": "b"
}"""
    npz = (
        "UEsDBC0AAAAAAAAAIQDuVWiK//////////8JABQAYXJyXzAubnB5AQAQAJAAAAAAAAAAkAAAAAAAAACTTlVNUFkB"
        "AHYAeydkZXNjcic6ICc8ZjgnLCAnZm9ydHJhbl9vcmRlcic6IEZhbHNlLCAnc2hhcGUnOiAoMiwpLCB9ICAgICAg"
        "ICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgCgAAAAAAAAAAAAAA"
        "AAAA8D9QSwECLQMtAAAAAAAAACEA7lVoipAAAACQAAAACQAAAAAAAAAAAAAAgAEAAAAAYXJyXzAubnB5UEsFBgAA"
        "AAABAAEANwAAAMsAAAAAAA=="
    )
    states = {"states/b-000001.json": commit.encode(), "states/b-000001.npz": base64.b64decode(npz)}
    old = {"run.json": run.encode(), "journal": journal.encode()}
    (tmp_path / "old" / "states").mkdir(parents=True)
    for name, data in (old | states).items():
        (tmp_path / "old" / name).write_bytes(data)
    configuration, logged = {"steps": 20, "shape": (2, 3)}, []
    options = dict(environment={"threads": 1}, log=logged.append)
    with Store(tmp_path / "old", configuration, resume=True, **options) as store:
        assert store.records == [{"unit": "a", "accuracy": 0.9, "shape": [2, 3]}]
        arrays, notes = store.load("b")
        assert notes == {"step": 5} and list(arrays) == ["w"] and arrays["w"].tolist() == [0, 1]
    with Store(tmp_path / "new", configuration, **options) as store:
        store.finish("a", {"accuracy": 0.9, "shape": (2, 3)})
    left = files(tmp_path / "new")
    named = unseal(left["run.json"])
    assert len(named.pop("run")) == 32 and named.pop("schema") == SCHEMA
    assert named | {"schema": 1} == unseal(old["run.json"])
    assert left["journal"].split(b" ", 2)[2] == old["journal"].split(b" ", 2)[2] and not logged
    assert files(tmp_path / "old")["run.json"] == old["run.json"]


# real trainings


class Trainings:
    "The process of killed.py: it trains in a folder, in a child that can be killed."

    def __init__(self):
        command = [sys.executable, str(ROOT / "tests" / "core" / "killed.py")]
        environment = os.environ | {
            "PYTHONPATH": str(ROOT),
            "OPENBLAS_NUM_THREADS": "1",
            "TF_NUM_INTEROP_THREADS": "1",
        }
        pipes = dict(
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self.process = subprocess.Popen(command, env=environment, **pipes)
        assert self.read() == ["ready", "1"], "something has started threads before the fork"

    def read(self):
        line = self.process.stdout.readline()
        assert line, "the process of the trainings has died"
        return line.split()

    def write(self, text):
        self.process.stdin.write(f"{text}\n")
        self.process.stdin.flush()

    def run(self, folder, word="done", delay=0.0):
        "Train, and kill it some seconds after it has printed a word. The status and its lines."
        self.write(folder)
        lines = [self.read()]

        def read_already(*words):
            return any(line[0] in words for line in lines)

        while not (read_already("child") and read_already(word, "done", "failed")):
            lines.append(self.read())
        if word != "done":
            time.sleep(delay)
            os.kill(next(int(line[1]) for line in lines if line[0] == "child"), signal.SIGKILL)
        self.write("enough")
        while lines[-1][0] != "status":
            lines.append(self.read())
        return int(lines[-1][1]), lines

    def close(self):
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


def records(folder):
    "The lines of a journal, without the SHA-256, for that depends on the name of the run."
    return [row.split(b" ", 2)[2] for row in (folder / "journal").read_bytes().splitlines()]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_kill_real_trainings(tmp_path, capfd):
    "SIGKILL at random moments; in the end, the bits are those of a run that nobody killed."
    trainings, rng, kills, folders, began = Trainings(), random.Random(0), 0, 0, time.monotonic()
    try:
        status, _ = trainings.run(tmp_path / "undisturbed")
        assert status == 0
        truth = records(tmp_path / "undisturbed")
        assert len(truth) == 2
        while kills < KILLS:
            folder, status, saves = tmp_path / f"{folders}", None, {}
            folders += 1
            while status != 0:
                word = "done" if kills >= KILLS else "opened" if kills % 5 == 4 else "saved"
                status, lines = trainings.run(folder, word, rng.uniform(0, 1.0))
                assert status in (0, -signal.SIGKILL)
                kills += status != 0
                assert not [line for line in lines if line[0] == "logged" and "damaged" in line]
                for _, unit, n in (line for line in lines if line[0] == "saved"):
                    assert int(n) > saves.get(unit, 0), "a durable save was lost"
                    saves[unit] = int(n)
            assert records(folder) == truth
    finally:
        trainings.close()
    with capfd.disabled():
        print(f"\n{kills} kills in {folders} runs, {time.monotonic() - began:.0f} s: the same bits")
    assert kills >= KILLS


def test_a_log_is_whole(tmp_path, monkeypatch):
    "The recording misses nothing: replayed, it gives the very folder that the session has left."
    script = SCRIPTS["three units"]
    log, _ = recorded(monkeypatch, tmp_path / "run", script)
    log = [entry for entry in log if entry[0] not in ("opened", "loaded", "saved", "finished")]
    now, safe = replayed(log, {})
    left = {str(Path(name).relative_to("run")): file.now for name, file in now.items() if file}
    assert left == files(tmp_path / "run") and json.loads(left["run.json"])["schema"] == SCHEMA
    assert {k for k, v in safe.items() if v} == {k for k, v in now.items() if v} | {
        k for k in safe if "states/" in k and safe[k]
    }
