"""A `Store`: what people hand it, and what happens to its files."""

import hashlib
import io
import json
import os
import pickle
import resource
import shutil
import tempfile
import threading
import zipfile
from pathlib import Path

import numpy as np
from registry import case

from distillnb import store as runs
from distillnb.store import Store

nan = float("nan")


def raw_line(body):
    return b"%d %s %s\n" % (len(body), hashlib.sha256(body).hexdigest().encode(), body)


def f():
    return Path(tempfile.mkdtemp()) / "run"


def quiet(s):
    return None


g = "Store calls"


def op(**o):
    with Store(o.pop("folder", f()), o.pop("configuration", {"a": 1}), log=quiet, **o) as s:
        return s.records


for name, o in {
    "configuration None": {"configuration": None},
    "configuration list": {"configuration": [1]},
    "configuration with numpy int": {"configuration": {"a": np.int64(3)}},
    "configuration with array": {"configuration": {"a": np.ones(2)}},
    "configuration with tuple and int keys": {"configuration": {1: (1, 2)}},
    "configuration nan": {"configuration": {"a": nan}},
    "configuration a set": {"configuration": {"a": {1}}},
    "folder None": {"folder": None},
    "folder ''": {"folder": ""},
    "folder /dev/null": {"folder": "/dev/null/x"},
    "folder NUL": {"folder": "a\0b"},
    "folder 5000 letters": {"folder": "x/" + "a" * 5000},
    "environment a list": {"environment": [1]},
    "resume 'yes'": {"resume": "yes"},
    "environment not JSON": {"environment": {"a": np.ones(2)}},
}.items():
    case(g, name, lambda o=dict(o): op(**o))


def st(*a, **k):
    return Store(f(), {"a": 1}, log=quiet)


for name, call in {
    "save None": lambda s: s.save("u", None),
    "save object array": lambda s: s.save("u", [np.array([{}], object)]),
    "save strings": lambda s: (s.save("u", {"a": "text"}), s.load("u"))[1],
    "save bfloat16": lambda s: s.save("u", [np.zeros(2, __import__("ml_dtypes").bfloat16)]),
    "save ragged": lambda s: s.save("u", [[1, [2, 3]]]),
    "save a scalar": lambda s: (s.save("u", [3.5]), s.load("u"))[1],
    "save a generator": lambda s: s.save("u", (i for i in [1])),
    "save notes array": lambda s: s.save("u", [1], {"a": np.ones(2)}),
    "save notes a list": lambda s: (s.save("u", [1], [1]), s.load("u"))[1],
    "save notes nan": lambda s: (s.save("u", [1], {"a": nan}), s.load("u"))[1],
    "save key with slash": lambda s: (s.save("u", {"../x": np.ones(1)}), s.load("u"))[1],
    "save key int": lambda s: (s.save("u", {3: np.ones(1)}), s.load("u"))[1],
    "name None": lambda s: s.save(None, [1]),
    "name '..'": lambda s: (s.save("..", [1]), os.listdir(s.folder), s.load(".."))[1:],
    "name newline": lambda s: s.save("a\n", [1]),
    "name unicode digit": lambda s: s.save("a٣", [1]),
    "name like a state": lambda s: (
        s.save("a-000001", [1]),
        s.save("a", [2]),
        s.load("a-000001"),
        s.load("a"),
    )[2:],
    "finish None": lambda s: s.finish("u", None),
    "finish list": lambda s: s.finish("u", [1]),
    "finish array": lambda s: s.finish("u", {"a": np.ones(2)}),
    "finish nan": lambda s: (s.finish("u", {"a": nan}), s.records)[1],
    "finish other unit": lambda s: s.finish("u", {"unit": "v"}),
    "finish twice": lambda s: (s.finish("u", {}), s.finish("u", {})),
    "save after finish": lambda s: (s.finish("u", {}), s.save("u", [1])),
    "finish after close": lambda s: (s.close(), s.finish("u", {})),
    "load missing": lambda s: s.load("nothing"),
    "load unicode": lambda s: s.load("ü"),
    "contains None": lambda s: None in s,
    "int keys become strings": lambda s: (s.finish("u", {"a": {1: 2}}), s.records)[1],
    "interval string": lambda s: (setattr(s, "interval", "3"), s.should_save())[1],
    "records are mutable: caller changes one": lambda s: (
        s.finish("u", {"a": 1}),
        s.records[0].update(a=2),
        s.records,
    )[2],
}.items():
    case(g, name, lambda call=call: call(st()))
for name, call in {
    "threads 0": lambda: runs.reproducible(0),
    "threads 1.5": lambda: runs.reproducible(1.5),
    "threads '2'": lambda: runs.reproducible("2"),
    "threads -1": lambda: runs.reproducible(-1),
    "TF_NUM_INTRAOP_THREADS=abc": lambda: (
        os.environ.__setitem__("TF_NUM_INTRAOP_THREADS", "abc"),
        runs.reproducible(),
    )[1],
}.items():
    case("reproducible", name, call)
case("write_file", "folder missing", lambda: runs.write_file(f() / "x", b"a"))
case("write_file", "text", lambda: runs.write_file(Path(tempfile.mkdtemp()) / "x", "text"))
case(
    "write_file",
    "a folder of that name",
    lambda: (lambda p: ((p / "x").mkdir(), runs.write_file(p / "x", b"a")))(
        Path(tempfile.mkdtemp())
    ),
)

g = "Store files"


def made(conf=None, unit="u", value=1.0, finish=("v",)):
    if conf is None:
        conf = {"a": 1}
    p = f()
    with Store(p, conf, log=quiet) as s:
        for name in finish:
            s.finish(name, {"n": name})
        s.save(unit, {"x": np.full(3, value)}, {"n": 1})
        s.save(unit, {"x": np.full(3, value + 1)}, {"n": 2})
    return p


def look(p, conf=None, unit="u"):
    if conf is None:
        conf = {"a": 1}
    said = []
    with Store(p, conf, resume=True, log=said.append) as s:
        return {"records": s.records, "state": s.load(unit), "said": said}


def with_(change, **k):
    p = made(**k)
    change(p)
    return look(p)


def J(p):
    return p / "journal"


def line(body):
    return raw_line(json.dumps(body).encode())


case(g, "(right)", lambda: with_(lambda p: None))
case(g, "record twice, the same", lambda: with_(lambda p: J(p).write_bytes(J(p).read_bytes() * 2)))
case(
    g,
    "record twice, other content, valid hash",
    lambda: with_(
        lambda p: J(p).write_bytes(J(p).read_bytes() + line({"unit": "v", "n": "forged"}))
    ),
)
case(
    g,
    "record without unit",
    lambda: with_(lambda p: J(p).write_bytes(J(p).read_bytes() + line({"n": 1}))),
)
case(
    g, "record is a list", lambda: with_(lambda p: J(p).write_bytes(J(p).read_bytes() + line([1])))
)
case(g, "record is null", lambda: with_(lambda p: J(p).write_bytes(J(p).read_bytes() + line(None))))
case(
    g,
    "record with unit a list",
    lambda: with_(lambda p: J(p).write_bytes(J(p).read_bytes() + line({"unit": [1]}))),
)
bomb = b"[" * 100000 + b"]" * 100000
case(
    g,
    "record is a bracket bomb with a right hash",
    lambda: with_(lambda p: J(p).write_bytes(J(p).read_bytes() + raw_line(bomb))),
)
case(
    g,
    "record not JSON with a right hash",
    lambda: with_(lambda p: J(p).write_bytes(J(p).read_bytes() + raw_line(b"hello"))),
)
case(g, "journal a folder", lambda: with_(lambda p: (J(p).unlink(), J(p).mkdir())))
case(g, "journal deleted", lambda: with_(lambda p: J(p).unlink()))
case(g, "journal empty", lambda: with_(lambda p: J(p).write_bytes(b"")))
case(
    g,
    "journal of another run copied in",
    lambda: with_(lambda p: shutil.copy(J(made({"a": 2}, finish=("v", "w"))), J(p))),
)
case(g, "run.json bracket bomb", lambda: with_(lambda p: (p / "run.json").write_bytes(bomb)))
case(g, "run.json deleted", lambda: with_(lambda p: (p / "run.json").unlink()))
case(
    g,
    "run.json truncated",
    lambda: with_(lambda p: (p / "run.json").write_bytes((p / "run.json").read_bytes()[:-5])),
)
case(g, "run.json sealed list", lambda: with_(lambda p: (p / "run.json").write_bytes(b"[]")))
case(
    g,
    "run.json sealed, no configuration",
    lambda: with_(lambda p: (p / "run.json").write_bytes(runs.seal({"schema": 1}))),
)
case(
    g,
    "run.json schema 2",
    lambda: with_(
        lambda p: (p / "run.json").write_bytes(
            runs.seal({"schema": 2, "configuration": {"a": 1}, "environment": {}})
        )
    ),
)
case(
    g,
    "run.json schema true (== 1)",
    lambda: with_(
        lambda p: (p / "run.json").write_bytes(
            runs.seal({"schema": True, "configuration": {"a": 1}, "environment": {}})
        )
    ),
)
case(
    g,
    "run.json schema 1.0",
    lambda: with_(
        lambda p: (p / "run.json").write_bytes(
            runs.seal({"schema": 1.0, "configuration": {"a": 1}, "environment": {}})
        )
    ),
)
case(
    g,
    "run.json configuration a list",
    lambda: with_(
        lambda p: (p / "run.json").write_bytes(
            runs.seal({"schema": 1, "configuration": [1], "environment": {}})
        )
    ),
)


def S(p):
    return p / "states"


case(g, "states folder deleted", lambda: with_(lambda p: shutil.rmtree(S(p))))
case(g, "states a file", lambda: with_(lambda p: (shutil.rmtree(S(p)), S(p).write_text("x"))))


def swap(p):
    q = made({"a": 2}, value=1000.0)
    for n in os.listdir(S(q)):
        shutil.copy(S(q) / n, S(p) / n)


case(g, "states swapped in from ANOTHER run (same unit name)", lambda: with_(swap))


def renum(p):
    for n in list(os.listdir(S(p))):
        if n.startswith("u-000001"):
            shutil.copy(S(p) / n, S(p) / n.replace("000001", "000009"))


case(g, "old state renamed to be newest", lambda: with_(renum))
case(
    g,
    "newest state deleted (silently older)",
    lambda: with_(lambda p: [(S(p) / n).unlink() for n in os.listdir(S(p)) if "000002" in n]),
)
case(
    g,
    "both states deleted",
    lambda: with_(lambda p: [(S(p) / n).unlink() for n in os.listdir(S(p))]),
)


def forge(p, data, about=None):
    (S(p) / "u-000003.npz").write_bytes(data)
    (S(p) / "u-000003.json").write_bytes(
        runs.seal(
            about
            or {
                "unit": "u",
                "number": 3,
                "names": ["x"],
                "notes": {},
                "npz": hashlib.sha256(data).hexdigest(),
            }
        )
    )


class Evil:
    def __reduce__(self):
        return (os.system, ("touch EXECUTED",))


def evil():
    b = io.BytesIO()
    np.savez(b, np.array([Evil()], dtype=object))
    return b.getvalue()


def raw_pickle():
    return pickle.dumps(Evil())


case(g, "forged npz with a pickled object", lambda: with_(lambda p: forge(p, evil())))
case(g, "forged npz that is a bare pickle", lambda: with_(lambda p: forge(p, raw_pickle())))
case(g, "forged npz that is not a zip", lambda: with_(lambda p: forge(p, b"hello")))
case(g, "forged npz empty", lambda: with_(lambda p: forge(p, b"")))


def zbad():
    b = io.BytesIO()
    np.savez(b, np.ones(3))
    d = bytearray(b.getvalue())
    d[60] ^= 255
    return bytes(d)


case(g, "forged npz with a wrong CRC inside", lambda: with_(lambda p: forge(p, zbad())))


def names(p):
    b = io.BytesIO()
    np.savez(b, np.ones(3))
    forge(
        p,
        b.getvalue(),
        {
            "unit": "u",
            "number": 3,
            "names": ["x", "y"],
            "notes": {},
            "npz": hashlib.sha256(b.getvalue()).hexdigest(),
        },
    )


case(g, "forged commit with more names than arrays", lambda: with_(names))


def miss(p):
    b = io.BytesIO()
    np.savez(b, np.ones(3))
    forge(p, b.getvalue(), {"unit": "u"})


case(g, "forged commit without keys", lambda: with_(miss))
case(g, "commit a list", lambda: with_(lambda p: (S(p) / "u-000003.json").write_bytes(b"[1]")))
case(
    g, "commit a bracket bomb", lambda: with_(lambda p: (S(p) / "u-000003.json").write_bytes(bomb))
)
case(
    g,
    "commit number 10**400 in its name",
    lambda: with_(
        lambda p: shutil.copy(S(p) / "u-000002.json", S(p) / ("u-" + "9" * 200 + ".json"))
    ),
)
case(g, "commit is a folder", lambda: with_(lambda p: (S(p) / "u-000003.json").mkdir()))
case(
    g,
    "npz is a folder",
    lambda: with_(lambda p: ((S(p) / "u-000002.npz").unlink(), (S(p) / "u-000002.npz").mkdir())),
)
case(
    g,
    "npz is a symlink out of the folder",
    lambda: with_(
        lambda p: (
            shutil.move(S(p) / "u-000002.npz", p.parent / "out.npz"),
            (S(p) / "u-000002.npz").symlink_to(p.parent / "out.npz"),
        )
    ),
)


def zip_bomb(p):
    b = io.BytesIO()
    about = {"descr": "|u1", "fortran_order": False, "shape": (3 * 2**30,)}
    with (
        zipfile.ZipFile(b, "w", zipfile.ZIP_DEFLATED) as z,
        z.open("arr_0.npy", "w", force_zip64=True) as o,
    ):
        np.lib.format.write_array_header_1_0(o, about)
        for _ in range(192):
            o.write(bytes(2**24))
    forge(p, b.getvalue())


def limited(call, gib):
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (int(gib * 2**30), hard))
    try:
        return call()
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


case(
    g,
    "zip bomb 3 MB -> 3 GiB, memory limited to 2 GiB",
    lambda: limited(lambda: with_(zip_bomb), 2),
    60,
)


def head(p):
    b = io.BytesIO()
    with zipfile.ZipFile(b, "w") as z, z.open("arr_0.npy", "w") as o:
        np.lib.format.write_array_header_1_0(
            o, {"descr": "<f8", "fortran_order": False, "shape": (2**40,)}
        )
    forge(p, b.getvalue())


case(g, "npy header that says 8 TiB", lambda: with_(head))
case(
    g,
    "folder is a symlink to the run",
    lambda: (lambda p: ((p.parent / "ln").symlink_to(p), look(p.parent / "ln")))(made())[1],
)
case(
    g,
    "folder copied",
    lambda: (lambda p: (shutil.copytree(p, p.parent / "b"), look(p.parent / "b"))[1])(made()),
)


def renamed():
    p = f()
    s = Store(p, {"a": 1}, log=quiet)
    s.save("u", [1])
    p.rename(p.parent / "moved")
    try:
        s.save("u", [2])
    finally:
        s.close()


case(g, "folder renamed mid-run, then save", renamed)


def renamed2():
    p = f()
    s = Store(p, {"a": 1}, log=quiet)
    s.finish("u", {})
    p.rename(p.parent / "moved")
    Store(p, {"a": 1}, log=quiet).close()
    s.finish("w", {})
    s.close()
    return look(p)


case(g, "folder renamed mid-run and another run begun in its place", renamed2)


def relative():
    d = tempfile.mkdtemp()
    os.chdir(d)
    s = Store("run", {"a": 1}, log=quiet)
    os.chdir("/")
    try:
        s.save("u", [1])
    finally:
        s.close()


case(g, "relative folder, chdir mid-run", relative)


def deleted():
    p = f()
    s = Store(p, {"a": 1}, log=quiet)
    shutil.rmtree(p)
    try:
        s.finish("u", {})
    finally:
        s.close()


case(g, "folder deleted mid-run", deleted)


def lockgone():
    p = f()
    s = Store(p, {"a": 1}, log=quiet)
    (p / "lock").unlink()
    t = Store(p, {"a": 1}, resume=True, log=quiet)
    s.finish("u", {"by": 1})
    t.finish("u", {"by": 2})
    t.finish("w", {})
    s.finish("x", {})
    s.close()
    t.close()
    return look(p)


case(g, "lock file deleted, two stores at once", lockgone)


def two():
    p = f()
    s = Store(p, {"a": 1}, log=quiet)
    try:
        return Store(p, {"a": 1}, resume=True, log=quiet)
    finally:
        s.close()


case(g, "two stores at once", two)


def forked():
    p = f()
    s = Store(p, {"a": 1}, log=quiet)
    pid = os.fork()
    if not pid:
        try:
            s.finish("child", {})
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    s.finish("parent", {})
    s.close()
    return look(p)


case(g, "forked child writes too (shares the lock)", forked)


def threads():
    p = f()
    s = Store(p, {"a": 1}, log=quiet)
    bad = []

    def work(k):
        for i in range(20):
            try:
                s.finish(f"t{k}.{i}", {"v": i})
            except Exception as e:
                bad.append(repr(e)[:80])

    ts = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    [t.start() for t in ts]
    [t.join() for t in ts]
    s.close()
    r = look(p)
    return len(r["records"]), r["said"], bad[:2]


case(g, "four threads finish 80 units", threads)
# every bit of every file
g = "bit flips"


def flips():
    base = made(finish=("v", "w"))
    right = look(base)
    found = {"last_logs": 0, "right": 0, "refused": 0, "wrong": [], "error": []}
    rng = np.random.default_rng(0)
    all_ = [p for p in base.rglob("*") if p.is_file()]
    for p in all_:
        n = p.stat().st_size
        for b in range(8 * n) if 8 * n < 400 else rng.choice(8 * n, 150, replace=False):
            q = base.parent / "flip"
            shutil.rmtree(q, ignore_errors=True)
            shutil.copytree(base, q)
            t = q / p.relative_to(base)
            d = bytearray(t.read_bytes())
            d[b // 8] ^= 1 << (b % 8)
            t.write_bytes(bytes(d))
            try:
                got = look(q)
            except ValueError:
                found["refused"] += 1
                continue
            except Exception as e:
                found["error"].append((p.name, int(b), repr(e)[:80]))
                continue
            same = repr(got["records"]) == repr(right["records"]) and repr(got["state"]) == repr(
                right["state"]
            )
            if same:
                found["right"] += 1
            elif got["said"]:
                found["last_logs"] += 1
            else:
                found["wrong"].append((p.name, int(b)))
    found["wrong"], found["error"] = (
        (len(found["wrong"]), found["wrong"][:5]),
        (len(found["error"]), found["error"][:5]),
    )
    return found


case(g, "flips in every file", flips, 120)
