"""File systems without locks, or without shared memory, as NFS, Lustre and GPFS may be: by a library loaded before."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from grokfast.store import RunStore
from tests.store.common import new_run, records, snapshot

SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/mman.h>

static int refused(const char *which) {
    const char *code = getenv(which);
    if (code == NULL || *code == 0) return 0;
    errno = atoi(code);
    return 1;
}

static int locks(int command) {
    return command == F_SETLK || command == F_SETLKW || command == F_GETLK || command == F_OFD_SETLK
        || command == F_OFD_SETLKW || command == F_OFD_GETLK;
}

#define FCNTL(name)                                                                     \
    int name(int file, int command, ...) {                                              \
        static int (*original)(int, int, void *);                                       \
        if (original == NULL) original = (int (*)(int, int, void *))dlsym(RTLD_NEXT, #name); \
        va_list list;                                                                   \
        va_start(list, command);                                                        \
        void *argument = va_arg(list, void *);                                          \
        va_end(list);                                                                   \
        return locks(command) && refused("NO_FCNTL") ? -1 : original(file, command, argument); \
    }
FCNTL(fcntl)
FCNTL(fcntl64)

int flock(int file, int operation) {
    static int (*original)(int, int);
    if (original == NULL) original = (int (*)(int, int))dlsym(RTLD_NEXT, "flock");
    return refused("NO_FLOCK") ? -1 : original(file, operation);
}

#define MMAP(name, offset_type)                                                         \
    void *name(void *at, size_t size, int protection, int flags, int file, offset_type offset) { \
        static void *(*original)(void *, size_t, int, int, int, offset_type);           \
        if (original == NULL)                                                           \
            original = (void *(*)(void *, size_t, int, int, int, offset_type))dlsym(RTLD_NEXT, #name); \
        if (file >= 0 && (flags & MAP_SHARED) && (protection & PROT_WRITE) && refused("NO_MMAP")) return MAP_FAILED; \
        return original(at, size, protection, flags, file, offset);                     \
    }
MMAP(mmap, off_t)
MMAP(mmap64, off64_t)
"""
WORK = """if True:
    import sys, warnings
    from grokfast.store import Record, RunStore
    from grokfast.store.records import STANDARD
    with RunStore(sys.argv[1]) as store:
        run_id = store.create({"seed": 0}, preset="quick", version="v", device="cpu")
        for step in range(int(sys.argv[2])):
            store.append(run_id, [Record(step, dict(zip(STANDARD, (1, 1, 0, 0, 1))))])
        with RunStore(sys.argv[1], create=False, read_only=True) as other:
            assert other.get(run_id).status == "running", other.get(run_id).status
            assert other.sweeps.claim([run_id]) == []
        print(run_id, flush=True)
        sys.stdin.read()
        store.update(run_id, status="finished", result={})
    with RunStore(sys.argv[1]) as store:
        print(store.get(run_id).status, store._db.execute("PRAGMA journal_mode"))
"""
CODES = [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS]
KINDS = [{"NO_FCNTL": code, "NO_FLOCK": code} for code in CODES]
KINDS += [{"NO_FCNTL": errno.ENOLCK}, {"NO_FLOCK": errno.ENOLCK}, {"NO_MMAP": errno.ENODEV}]


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library."""
    compiler = next(filter(None, map(shutil.which, ("gcc", "cc", "clang"))), None)
    if not sys.platform.startswith("linux") or compiler is None:
        pytest.skip("needs Linux and a C compiler")
    folder = tmp_path_factory.mktemp("shim")
    (folder / "shim.c").write_text(SHIM)
    command = [compiler, "-shared", "-fPIC", "-o", "shim.so", "shim.c", "-ldl"]
    if (done := subprocess.run(command, cwd=folder, capture_output=True, text=True)).returncode:
        pytest.skip(f"cannot compile the library: {done.stderr}")
    return folder / "shim.so"


def work(shim: Path, root: Path, without: dict[str, int], n: int = 3) -> subprocess.Popen[str]:
    environment = {**os.environ, "LD_PRELOAD": str(shim), **{name: str(code) for name, code in without.items()}}
    command = [sys.executable, "-c", WORK, str(root), str(n)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, env=environment, text=True, **pipes)


@pytest.mark.parametrize("without", KINDS, ids=str)
@pytest.mark.parametrize("is_old", [False, True], ids=["new store", "store that was in WAL mode"])
def test_a_store_works_and_says_so_once(shim: Path, tmp_path: Path, without: dict[str, int], is_old: bool) -> None:
    root = tmp_path / "runs"
    if is_old:
        with RunStore(root) as store:
            store.append(new_run(store), records(0))
    said, errors = work(shim, root, without).communicate("")
    assert errors.count("has no locks or no shared memory") == 1, errors
    journal = "wal" if without.keys() == {"NO_FLOCK"} else "delete"
    assert said.splitlines()[1] == f"finished [('{journal}',)]", errors
    with RunStore(root) as store:  # on a file system that has them
        assert len(store.list()) == 1 + is_old
        assert sorted(path.name for path in root.iterdir() if path.is_file())[0] == "grokfast.sqlite"
        assert store.curves(store.list()[0].run_id)["step"].tolist() == [0, 1, 2]
    assert [name for name in snapshot(root) if "lock" in name] == []


def test_processes_write_at_once_and_who_was_killed_locks_nobody_out(shim: Path, tmp_path: Path) -> None:
    without = KINDS[0]
    processes = [work(shim, tmp_path, without, 40) for _ in range(3)]
    ids = [process.stdout.readline().strip() for process in processes if process.stdout]
    assert len(set(ids)) == 3
    for process in processes:
        process.kill()
        process.communicate()
    said, errors = work(shim, tmp_path, without).communicate("")
    assert said.splitlines()[1].startswith("finished"), errors
    with RunStore(tmp_path) as store:
        assert {run.run_id: run.status for run in store.list()}.items() >= dict.fromkeys(ids, "interrupted").items()
        assert all(store.curves(run_id)["step"].tolist() == [*range(40)] for run_id in ids)
