"""What others do to a store: threads, forks, helpers who tidy up, and files that were forged.

Every forged file has the right SHA-256 and the right name of the run, so that the check which it is
meant for has to find it; the log must say so in its words.
"""

import hashlib
import io
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import tracemalloc
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from notebooks import ROOT

from distillnb.store import Journal, Store, interrupt_on_sigterm, reproducible, seal, unseal
from distillnb.store import write_file as write

BOMB = b"[" * 100_000 + b"]" * 100_000
posix = pytest.mark.skipif(os.name != "posix", reason="needs fork and signals as POSIX has them")


@pytest.fixture
def place(tmp_path):
    "A folder in memory, where the system has one."
    memory = "/dev/shm"
    with tempfile.TemporaryDirectory(dir=memory if os.path.isdir(memory) else tmp_path) as folder:
        yield Path(folder)


def begun(folder, value=1.0, finished=("v",), configuration=None):
    "A run with some finished units and two states of another one."
    with Store(folder, configuration or {"a": 1}) as store:
        for name in finished:
            store.finish(name, {"n": name})
        for n in (1, 2):
            store.save("u", {"x": np.full(3, value * n)}, {"n": n})
    return folder


def found(folder, configuration=None):
    "What a resumed run finds: finished units, the state of the other, and the log."
    logged = []
    with Store(folder, configuration or {"a": 1}, resume=True, log=logged.append) as store:
        state = store.load("u")
        assert (store.load("u") is None) == (state is None)
        units = [record["unit"] for record in store.records]
    return units, state and (state[0]["x"].tolist(), state[1]["n"]), logged


def name_of_run(folder):
    return unseal((folder / "run.json").read_bytes())["run"]


# several at once


def test_eight_threads_lose_nothing(place):
    def work(thread):
        for i in range(100):
            store.save(f"{thread}.{i}", [np.full(3, i)])
            assert store.load(f"{thread}.{i}")[0][0].tolist() == [i, i, i]
            store.finish(f"{thread}.{i}", {"i": i})

    with Store(place / "run", {}) as store, ThreadPoolExecutor(8) as pool:
        switch = sys.getswitchinterval()
        sys.setswitchinterval(1e-5)
        try:
            list(pool.map(work, range(8)))
        finally:
            sys.setswitchinterval(switch)
        assert len(store.records) == 800
    logged = []
    with Store(place / "run", {}, resume=True, log=logged.append) as store:
        assert {r["unit"]: r["i"] for r in store.records} == {
            f"{t}.{i}": i for t in range(8) for i in range(100)
        }
    assert not logged and not os.listdir(place / "run" / "states")


@posix
def test_a_forked_child_may_not_write(tmp_path):
    code = """
import os, sys
from distillnb.store import Store
with Store(sys.argv[1], {}) as store:
    if not (child := os.fork()):
        said = []
        for call in (store.finish, store.save):
            try:
                call("child", {})
            except RuntimeError as error:
                said.append("was opened by process" in str(error))
        os._exit(0 if said == [True, True] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    store.finish("parent", {})
print([record["unit"] for record in store.records], os.listdir(store.checkpoints.folder))
"""
    command = [sys.executable, "-c", code, str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert (done.stdout, done.stderr) == ("['parent'] []\n", "")


def deleted(folder):
    (folder / "lock").unlink()


def replaced(folder):
    deleted(folder)
    (folder / "lock").write_text("")


def moved(folder):
    folder.rename(folder.parent / "elsewhere")


def removed(folder):
    shutil.rmtree(folder)


def begun_again(folder):
    moved(folder)
    Store(folder, {"a": 1}).close()


@posix
@pytest.mark.parametrize("tidy", [deleted, replaced, moved, removed, begun_again])
def test_who_lost_the_lock_writes_nothing(tidy, tmp_path):
    with Store(tmp_path / "run", {"a": 1}) as store:
        store.finish("before", {})
        tidy(tmp_path / "run")
        before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
        for call in (store.finish, store.save):
            with pytest.raises(BlockingIOError, match="another process may have the folder"):
                call("u", {})
        assert before == {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}


@posix
def test_two_stores_after_a_deleted_lock(tmp_path):
    with Store(tmp_path, {}) as first:
        deleted(tmp_path)
        with Store(tmp_path, {}, resume=True) as second:
            with pytest.raises(BlockingIOError):
                first.finish("u", {"by": 1})
            second.finish("u", {"by": 2})
    with Store(tmp_path, {}, resume=True) as third:
        assert third.records == [{"unit": "u", "by": 2}]


# forged states


class Evil:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def archive(*arrays):
    buffer = io.BytesIO()
    np.savez(buffer, *arrays)
    return buffer.getvalue()


def bad_crc():
    data = bytearray(archive(np.ones(10_000)))
    data[40_000] ^= 255
    return bytes(data)


def zipped(content, compression=zipfile.ZIP_STORED, name="arr_0.npy", times=1):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file, file.open(name, "w") as entry:
        for _ in range(times):
            entry.write(content)
    return buffer.getvalue()


def header(shape, descr="<f8"):
    buffer = io.BytesIO()
    about = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, about)
    return buffer.getvalue()


def raw_header(text):
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


def overlapping():
    "A thousand names for the same ten kilobytes."
    small = zipped(header((1250,)) + bytes(10_000))
    with zipfile.ZipFile(io.BytesIO(small)) as file:
        (entry,) = file.infolist()
        begin = file.start_dir
    buffer = io.BytesIO(small[:begin])
    with zipfile.ZipFile(buffer, "a") as file:
        file.start_dir = begin
        for i in range(1000):
            copy = zipfile.ZipInfo(f"arr_{i}.npy")
            for field in ("CRC", "compress_size", "file_size", "header_offset"):
                setattr(copy, field, getattr(entry, field))
            file.filelist.append(copy)
        file._didModify = True
    return buffer.getvalue()


FORGED_ARRAYS = {
    "objects": (lambda: archive(np.array([Evil()], object)), "dtype object"),
    "a bare pickle": (lambda: pickle.dumps(Evil()), "not a zip file"),
    "no zip": (lambda: b"hello", "not a zip file"),
    "nothing": (lambda: b"", "not a zip file"),
    "a wrong CRC": (bad_crc, "Bad CRC-32"),
    "too few arrays": (lambda: archive(), "1 names for 0 arrays"),
    "too many arrays": (lambda: archive(1, 2), "1 names for 2 arrays"),
    "another name": (lambda: zipped(header((0,)), name="../x.npy"), "other names"),
    "a compressed array": (
        lambda: zipped(header((3,)) + bytes(24), zipfile.ZIP_DEFLATED),
        "compressed",
    ),
    "a bomb": (lambda: zipped(bytes(2**20), zipfile.ZIP_DEFLATED, times=200), "unfold to more"),
    "a header of 8 TiB": (lambda: zipped(header((2**40,))), "has 0 bytes"),
    "a negative shape": (lambda: zipped(header((-1, -3)) + bytes(24)), "has 24 bytes"),
    "no header": (lambda: zipped(b"12345678"), "no header"),
    "a header of brackets": (lambda: zipped(raw_header(b"(" * 9000)), "no header"),
    "a header of signs": (lambda: zipped(raw_header(b"-" * 9000 + b"1")), "no header"),
    "a structured type": (lambda: archive(np.zeros(2, "i4,f4")), "dtype"),
    "overlapping arrays": (overlapping, "names for 1000 arrays|unfold to more"),
}


def commit(folder, data, number=3, **about):
    right = {"run": name_of_run(folder), "unit": "u", "number": number, "names": ["x"], "notes": {}}
    right |= {"npz": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    write(folder / "states" / f"u-{number:06}.npz", data)
    write(folder / "states" / f"u-{number:06}.json", seal(right | about))


@pytest.mark.parametrize("kind", FORGED_ARRAYS)
def test_forged_arrays(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make, why = FORGED_ARRAYS[kind]
    data, folder = make(), begun(tmp_path / "run")
    commit(
        folder, data, notes={"n": 3}, **({"names": None} if kind == "overlapping arrays" else {})
    )
    tracemalloc.start()
    units, state, logged = found(folder)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (units, state) == (["v"], ([2.0, 2.0, 2.0], 2))
    assert len(logged) == 1 and logged[0].startswith("states/u-000003: damaged (")
    assert any(part in logged[0] for part in why.split("|")) and "allow_pickle" not in logged[0]
    assert not Path("executed").exists() and peak < 5_000_000 + 3 * len(data)
    assert found(folder)[2] == [], "it is removed"


def test_a_good_state_of_the_forger_is_believed(tmp_path):
    "Else the forgeries above might be refused for another reason."
    folder = begun(tmp_path / "run")
    commit(folder, archive(np.full(3, 9.0)), notes={"n": 3})
    assert found(folder) == (["v"], ([9.0, 9.0, 9.0], 3), [])


FORGED_COMMITS = {
    "another run": ({"run": "x"}, "another run"),
    "no run": ({"run": ...}, "another run"),
    "another unit": ({"unit": "w"}, "another unit"),
    "another number": ({"number": 4}, "another unit or number"),
    "no number": ({"number": ...}, "another unit or number"),
    "no names": ({"names": ...}, "names are no names"),
    "names that are numbers": ({"names": [1]}, "names are no names"),
    "a name twice": ({"names": ["x", "x"]}, "names are no names"),
    "notes that are a list": ({"notes": [1]}, "notes are no dict"),
    "no SHA-256": ({"npz": ...}, "SHA-256"),
    "another size": ({"bytes": 1}, "another size"),
}


@pytest.mark.parametrize("kind", FORGED_COMMITS)
def test_forged_commits(kind, tmp_path):
    folder = begun(tmp_path / "run")
    about, why = FORGED_COMMITS[kind]
    commit(folder, archive(np.ones(3)), notes={"n": 3})
    path = folder / "states" / "u-000003.json"
    changed = unseal(path.read_bytes()) | about
    write(path, seal({key: value for key, value in changed.items() if value is not ...}))
    units, state, logged = found(folder)
    assert (units, state) == (["v"], ([2.0, 2.0, 2.0], 2))
    assert len(logged) == 1 and why in logged[0], logged


DAMAGE = {  # of the newest state, u-000002
    "no arrays": (lambda j, n: n.unlink(), "arrays are gone"),
    "a folder as arrays": (lambda j, n: (n.unlink(), n.mkdir(), (n / "x").touch()), "no file"),
    "a folder as commit": (lambda j, n: (j.unlink(), j.mkdir(), (j / "x").touch()), "no file"),
    "brackets": (lambda j, n: j.write_bytes(BOMB), "not sealed JSON"),
    "a list": (lambda j, n: j.write_bytes(b"[1]"), "not sealed JSON"),
    "nothing": (lambda j, n: j.write_bytes(b""), "not sealed JSON"),
    "a pipe": (lambda j, n: (j.unlink(), os.mkfifo(j)), "no file"),
    "a terabyte of nothing": (lambda j, n: os.truncate(n, 2**40), "another size"),
    "a commit of a terabyte": (lambda j, n: os.truncate(j, 2**40), "bytes"),
}


@posix
@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_files_of_a_state(kind, place):
    folder = begun(place / "run")
    change, why = DAMAGE[kind]
    change(folder / "states" / "u-000002.json", folder / "states" / "u-000002.npz")
    units, state, logged = found(folder)
    assert (units, state) == (["v"], ([1.0, 1.0, 1.0], 1))
    assert len(logged) == 1 and why in logged[0], logged
    with Store(folder, {"a": 1}, resume=True) as store:
        store.save("u", {"x": np.zeros(3)}, {"n": 5})
        assert store.load("u")[1] == {"n": 5}
        store.finish("u", {})


# forged journals


def line(body, folder):
    run = name_of_run(folder).encode()
    return b"%d %s %s\n" % (len(body), hashlib.sha256(run + body).hexdigest().encode(), body)


LINES = {
    "no unit": b'{"n": 1}',
    "a list": b"[1]",
    "null": b"null",
    "a unit that is a list": b'{"unit": [1]}',
    "a unit that is a number": b'{"unit": 1}',
    "brackets": BOMB,
    "deep brackets": b'{"unit": "z", "x": ' + b"[" * 500 + b"]" * 500 + b"}",
    "no JSON": b"hello",
    "no text": b"\xff\xfe\xfd",
    "a long number": b'{"unit": "z", "n": ' + b"9" * 5000 + b"}",
    "a finished unit again": b'{"unit": "v", "n": "forged"}',
}


@pytest.mark.parametrize("kind", LINES)
def test_forged_lines(kind, tmp_path):
    folder = begun(tmp_path / "run")
    journal = folder / "journal"
    good = journal.read_bytes()
    journal.write_bytes(good + line(LINES[kind], folder))
    units, state, logged = found(folder)
    assert (units, state) == (["v"], ([2.0, 2.0, 2.0], 2))
    assert len(logged) == 1 and logged[0].startswith("journal: 1 damaged line")
    assert journal.read_bytes() == good and len(list(folder.glob("journal-*.damaged"))) == 1
    assert found(folder)[2] == []


def test_a_good_line_of_the_forger_is_believed(tmp_path):
    folder = begun(tmp_path / "run")
    with open(folder / "journal", "ab") as file:
        file.write(line(b'{"unit": "w"}', folder))
    assert found(folder)[0] == ["v", "w"] and found(folder)[2] == []


def test_a_folder_as_journal(tmp_path):
    folder = begun(tmp_path / "run")
    (folder / "journal").unlink()
    (folder / "journal").mkdir()
    with pytest.raises(ValueError, match="journal is no file; bring it back"):
        found(folder)


# of another run


def test_files_of_another_run_are_not_believed(tmp_path):
    ours = begun(tmp_path / "ours")
    other = begun(tmp_path / "other", 1000.0, ("v", "w"))
    before = found(ours)
    shutil.copytree(ours, tmp_path / "copy")
    assert found(tmp_path / "copy") == before == (["v"], ([2.0, 2.0, 2.0], 2), [])
    for name in os.listdir(other / "states"):
        shutil.copy(other / "states" / name, ours / "states")
    units, state, logged = found(ours)
    assert (units, state) == (["v"], None)
    assert [text.partition(";")[0] for text in logged] == [
        f"states/u-00000{n}: damaged (it is of another run) and removed" for n in (2, 1)
    ]
    shutil.copy(other / "journal", ours / "journal")
    units, state, logged = found(ours)
    assert units == [] and logged[0].startswith("journal: 2 damaged line(s), or of another run")


def test_runs_without_a_name_are_still_read_and_go_on(tmp_path):
    "Schema 1, as distillnb wrote it before there were names."
    folder, record = tmp_path / "old", {"unit": "v", "n": 1}
    (folder / "states").mkdir(parents=True)
    write(folder / "journal", Journal.encode(record))
    write(folder / "run.json", seal({"schema": 1, "configuration": {"a": 1}, "environment": {}}))
    data = archive(np.ones(3))
    about = {"unit": "u", "number": 1, "names": ["x"], "notes": {"n": 1}}
    write(folder / "states" / "u-000001.npz", data)
    sealed = seal(about | {"npz": hashlib.sha256(data).hexdigest()})
    write(folder / "states" / "u-000001.json", sealed)
    assert found(folder) == (["v"], ([1.0, 1.0, 1.0], 1), [])
    with Store(folder, {"a": 1}, resume=True) as store:
        store.save("u", {"x": np.zeros(3)}, {"n": 2})
        store.finish("w", {})
    assert found(folder) == (["v", "w"], ([0.0, 0.0, 0.0], 2), [])
    shutil.copy(begun(tmp_path / "new") / "journal", folder / "journal")
    assert found(folder)[0] == []


RUNS = {
    "a list": (lambda about: b"[]", "not sealed JSON"),
    "brackets": (lambda about: BOMB, "not sealed JSON"),
    "no configuration": (lambda about: seal({"schema": 2, "run": "x"}), "it has no configuration"),
    "a configuration that is a list": (
        lambda about: seal(about | {"configuration": [1]}),
        "it has no configuration",
    ),
    "no environment": (lambda about: seal(about | {"environment": None}), "it has no environment"),
    "no name": (lambda about: seal(about | {"run": None}), "it has no run"),
    "schema True": (lambda about: seal(about | {"schema": True}), "schema True, made by"),
    "schema 1.0": (lambda about: seal(about | {"schema": 1.0}), r"schema 1\.0, made by"),
    "schema []": (lambda about: seal(about | {"schema": []}), r"schema \[\], made by"),
    "a later schema": (lambda about: seal(about | {"schema": 3}), "newer distillnb: upgrade"),
}


@pytest.mark.parametrize("kind", RUNS)
def test_forged_run_files(kind, tmp_path):
    folder = begun(tmp_path / "run")
    make, why = RUNS[kind]
    path = folder / "run.json"
    write(path, make(unseal(path.read_bytes())))
    with pytest.raises(ValueError, match=f"run.json.*{why}.*start in another folder"):
        found(folder)


def test_a_lock_of_brackets(tmp_path):
    with Store(tmp_path, {}):
        (tmp_path / "lock").write_bytes(BOMB)
        with pytest.raises(BlockingIOError, match="in use by another process; wait"):
            Store(tmp_path, {}, resume=True)


# arguments

NAN, ARRAY = float("nan"), np.ones(2)
OPENED = [
    ({"configuration": None}, TypeError, "configuration must be a dict"),
    ({"configuration": [1]}, TypeError, "configuration must be a dict"),
    (
        {"configuration": {"a": {"b": [0, NAN]}}},
        ValueError,
        r"configuration\.a\.b\[1\] must be fin",
    ),
    ({"configuration": {"a": ARRAY}}, TypeError, r"configuration\.a must be a JSON .* tolist"),
    ({"configuration": {1: 2}}, TypeError, "configuration must have strings as keys, got 1"),
    ({"configuration": {"a": {1}}}, TypeError, r"configuration\.a must be a JSON value, got set"),
    ({"folder": None}, TypeError, "folder must be a path, got None"),
    ({"folder": ""}, TypeError, "folder must be a path, got ''"),
    ({"folder": b"x"}, TypeError, "folder must be a path"),
    ({"folder": "x/" + "a" * 5000}, OSError, "too long.*mend this"),
    ({"environment": [1]}, TypeError, "environment must be a dict"),
    ({"environment": {"a": ARRAY}}, TypeError, r"environment\.a must be a JSON value"),
    ({"resume": "yes"}, TypeError, "resume must be True or False, got 'yes'"),
    ({"log": None}, ValueError, "log must be a function"),
]


@pytest.mark.parametrize(("options", "error", "why"), OPENED)
def test_wrong_arguments_of_a_store(options, error, why, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=why):
        Store(**{"folder": "run", "configuration": {}} | options)
    assert not Path("run").exists()


circle = []
circle.append(circle)
CALLS = [
    (lambda s: s.save("u", None), TypeError, "arrays must be a list"),
    (lambda s: s.save("u", ARRAY), TypeError, "arrays must be a list, .* got ndarray"),
    (lambda s: s.save("u", (i for i in [1])), TypeError, "arrays must be a list, .* got generator"),
    (lambda s: s.save("u", {3: ARRAY}), TypeError, "arrays must have strings as keys, got 3"),
    (lambda s: s.save("u", [1, [[1], [2, 3]]]), ValueError, "array 1 is a list whose parts"),
    (lambda s: s.save("u", [np.array([{}], object)]), ValueError, "array 0 has dtype object"),
    (lambda s: s.save("u", [1], [1]), TypeError, "notes must be a dict"),
    (lambda s: s.save("u", [1], {"a": ARRAY}), TypeError, r"notes\.a must be a JSON value"),
    (lambda s: s.save("u", [1], {"a": circle}), ValueError, r"notes\.a.* nested too deeply"),
    (lambda s: s.finish("u", None), TypeError, "record must be a dict"),
    (lambda s: s.finish("u", {"a": {1: 2}}), TypeError, r"record\.a must have strings as keys"),
    (lambda s: s.finish("u", {"a": 10**5000}), ValueError, r"record\.a has more than"),
    (lambda s: s.finish("u", {"unit": "v"}), ValueError, "says that it is of v"),
    (
        lambda s: setattr(s, "interval", "3") or s.should_save(),
        ValueError,
        "interval must be a num",
    ),
]


@pytest.mark.parametrize(("call", "error", "why"), CALLS)
def test_wrong_calls_of_a_store(call, error, why, tmp_path):
    with Store(tmp_path, {}) as store, pytest.raises(error, match=why):
        call(store)
    with Store(tmp_path, {}, resume=True) as store:
        assert store.records == [] and store.load("u") is None and None not in store


def test_numpy_numbers_become_pythons_and_records_are_copies(tmp_path):
    configuration = {"steps": np.int64(3), "rate": np.float32(0.5), "flag": np.True_}
    with Store(tmp_path, configuration) as store:
        store.save("u", [3.5, np.float32(1)], {"a": np.float64(0.1)})
        assert store.load("u")[1] == {"a": 0.1}
        given = {"a": [1]}
        store.finish("v", given)
        given["a"].append(2)
        store.records[0]["a"].append(3)
        assert store.records == [{"unit": "v", "a": [1]}]
    with Store(tmp_path, {"steps": 3, "rate": 0.5, "flag": True}, resume=True) as store:
        assert store.records == [{"unit": "v", "a": [1]}]


@pytest.mark.parametrize("threads", [0, -1, 1.5, "2", True])
def test_threads_are_a_whole_number(threads, monkeypatch):
    with pytest.raises(ValueError, match="threads must be a whole number from 1, got"):
        reproducible(threads)
    monkeypatch.setenv("TF_NUM_INTRAOP_THREADS", "abc")
    with pytest.raises(ValueError, match="TF_NUM_INTRAOP_THREADS must be a whole number"):
        reproducible()


def test_a_file_is_bytes(tmp_path):
    with pytest.raises(TypeError, match="data must be bytes, got str; text.encode"):
        write(tmp_path / "x", "text")
    assert not os.listdir(tmp_path)
    with pytest.raises(TypeError, match=r"content\.a must be a JSON value"):
        seal({"a": json})


# SIGTERM

LOOP = """
import sys, time
from distillnb.store import Store, interrupt_on_sigterm
with interrupt_on_sigterm(), Store(sys.argv[1], {}) as store:
    step = 0
    try:
        print("begun", flush=True)
        while True:
            step += 1
            time.sleep(0.001)
    except KeyboardInterrupt:
        store.save("u", [step], {"step": step})
        raise
"""


@posix
def test_sigterm_saves_and_ends_with_143(tmp_path):
    command = [sys.executable, "-c", LOOP, str(tmp_path / "run")]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with subprocess.Popen(command, cwd=ROOT, **pipes) as process:
        assert process.stdout.readline() == "begun\n"
        process.terminate()
        _, said = process.communicate(timeout=30)
    assert (process.returncode, said) == (143, "")
    with Store(tmp_path / "run", {}, resume=True) as store:
        assert store.load("u")[1]["step"] >= 1


@posix
def test_handlers_of_others_are_left_alone_and_come_back():
    heard, before = [], signal.getsignal(signal.SIGTERM)

    def mine(number, frame):
        heard.append(number)

    try:
        for first in (signal.SIG_IGN, mine):
            signal.signal(signal.SIGTERM, first)
            with interrupt_on_sigterm():
                os.kill(os.getpid(), signal.SIGTERM)
            assert signal.getsignal(signal.SIGTERM) == first
        assert heard == [signal.SIGTERM]
        one, other = interrupt_on_sigterm(replace=True), interrupt_on_sigterm()
        with pytest.raises(KeyboardInterrupt), one, other:
            os.kill(os.getpid(), signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) == mine and len(heard) == 1
        with ThreadPoolExecutor(1) as pool, pytest.raises(ValueError, match="inside"):
            pool.submit(in_a_thread).result()
    finally:
        signal.signal(signal.SIGTERM, before)


def in_a_thread():
    with interrupt_on_sigterm(replace=True):
        raise ValueError("inside")
