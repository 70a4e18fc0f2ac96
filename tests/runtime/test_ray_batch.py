"""Batches over the machines of a Ray cluster: real clusters are `slow`; what is decided without one is not."""

import importlib.util
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from foveal.cli._options import with_address
from foveal.cli.main import main
from foveal.runtime import ray_batch, ray_home
from foveal.runtime.batch import RECORD
from foveal.runtime.crew import CrewError
from foveal.runtime.ray_batch import RayCrew, checked_address

SOURCE = Path(__file__).parents[2] / "src"
HAS_RAY = importlib.util.find_spec("ray") is not None
needs_ray = pytest.mark.skipif(not HAS_RAY, reason="ray is not installed; pip install '.[ray]'")
DIRECT = re.compile(r"^\s*(?:import|from) ray\b", re.MULTILINE)


# Without a cluster


def test_one_file_imports_ray():
    assert DIRECT.search("x = 1\n    import ray\n")
    assert not DIRECT.search("from raylib import x\n")
    assert [path.name for path in SOURCE.rglob("*.py") if DIRECT.search(path.read_text("utf-8"))] == ["ray_batch.py"]


@pytest.mark.parametrize("address", ["local", "auto", "10.0.0.1:6379", "head.example.org:6379", "[::1]:6379"])
def test_addresses(address):
    assert checked_address(address) == address


@pytest.mark.parametrize("address", ["", "10.0.0.1", "ray://10.0.0.1:10001", "a b:1", "head:port"])
def test_what_is_no_address(address):
    with pytest.raises(ValueError, match="--ray must be HOST:PORT of a cluster's head, auto or local, got "):
        checked_address(address)


def test_the_address_may_be_left_out():
    assert with_address(["in", "--ray"]) == ["in", "--ray", "local"]
    assert with_address(["--ray", "in", "-o", "out"]) == ["--ray", "local", "in", "-o", "out"]
    assert with_address(["--ray", "-o", "out"]) == ["--ray", "local", "-o", "out"]
    for address in ("auto", "local", "head:6379", "ray://head:1", "10.0.0.1"):
        assert with_address(["in", "--ray", address, "-r"]) == ["in", "--ray", address, "-r"]
    assert with_address(["in", "--ray=head:1"]) == ["in", "--ray=head:1"]
    assert with_address(["--", "--ray"]) == ["--", "--ray"]
    assert with_address(["--ray", "--", "in"]) == ["--ray", "local", "--", "in"]


def test_nobody_at_an_address_is_noticed_at_once():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens
        port = taken.getsockname()[1]
        with pytest.raises(CrewError, match=rf"no Ray cluster at 127\.0\.0\.1:{port} .*; ray start --head starts one"):
            RayCrew(f"127.0.0.1:{port}").__enter__()


def test_what_other_threads_print_is_dropped():
    stream = io.StringIO()
    one = ray_batch.OneThread(stream)
    other = threading.Thread(target=print, args=("(raylet) noise",), kwargs={"file": one})
    other.start()
    other.join()
    print("said", file=one)
    assert (stream.getvalue(), one.closed) == ("said\n", False)


def test_a_cluster_of_one_machine_has_a_home_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/elsewhere")
    monkeypatch.delenv("FOVEAL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere/kept")
    with ray_home.home(str(tmp_path)):
        assert os.environ["HOME"] == str(tmp_path / "home")
        assert os.environ["FOVEAL_CACHE"] == "/elsewhere/kept/foveal", "what was measured stays known"
        assert Path("~/ray_bootstrap_config.yaml").expanduser().read_text() == "{}\n"
    assert os.environ["HOME"] == "/elsewhere"
    assert "FOVEAL_CACHE" not in os.environ
    with ray_home.home(None):
        assert os.environ["HOME"] == "/elsewhere"


def test_signals_are_put_back():
    before = signal.getsignal(signal.SIGTERM)
    with ray_batch._signals_kept():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    assert signal.getsignal(signal.SIGTERM) is before


def test_deaths_in_a_few_words():
    assert ray_batch._cause("killed due to the node running low on memory") == "its machine ran out of memory"
    assert ray_batch._cause("The node specified doesn't exist any more") == "its machine is gone"
    assert ray_batch._cause("its worker process has died") == "its process was killed or crashed"


@pytest.mark.parametrize(("arguments", "text"), [
    (["in", "-o", "out", "--ray=x"], "--ray must be HOST:PORT of a cluster's head, auto or local, got 'x'"),
    (["-", "-o", "out.png", "--ray"], "--ray takes files, and - is a pipe; leave one of them out"),
    (["a.mp4", "--ray"], "a.mp4 is a film, and --ray spreads pictures; leave --ray out"),
])  # fmt: skip
def test_what_cannot_be_spread(arguments, text, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "in" / "a.png")
    (tmp_path / "a.mp4").write_bytes(b"")
    with pytest.raises(SystemExit) as end:
        main(["upscale", *arguments, "-s", "2", "--quality", "fast", "--engine", "onnxruntime"])
    assert (end.value.code, capsys.readouterr().err) == (2, f"foveal upscale: {text}\n")


def test_without_ray_it_says_how_to_get_it(tmp_path, monkeypatch, capsys):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SystemExit) as end:
        main(["upscale", str(tmp_path / "a.png"), "--ray", "--engine", "onnxruntime"])
    assert end.value.code == 2
    assert "foveal upscale: needs ray, which is not installed; pip install '.[ray]'" in capsys.readouterr().err


# With one

QUICK = ("-s", "2", "--quality", "fast", "--engine", "onnxruntime", "--threads", "1", "--tile", "32")
# Workers, and nobody else, wait a moment before each band that they write: there is time to kill them.
WAIT = """
import sys
if any("default_worker" in word for word in sys.orig_argv):
    import time
    from foveal.runtime.background_writer import BackgroundWriter
    rows = BackgroundWriter.rows
    def wait_and_write(self, band):
        time.sleep(0.3)
        rows(self, band)
    BackgroundWriter.rows = wait_and_write
"""
COMMAND = (sys.executable, "-c", "import sys; from foveal.cli.main import main; main(['upscale', *sys.argv[1:]])")
CLUSTER = """
import sys
from ray.cluster_utils import Cluster
words = {"num_cpus": 1, "object_store_memory": 80 << 20, "include_dashboard": False}
cluster = Cluster(initialize_head=True, head_node_args=words)
if sys.argv[1:] != ["head"]:
    cluster.add_node(**words)
    cluster.wait_for_nodes()
print(cluster.address, flush=True)
sys.stdin.read()
cluster.shutdown()
"""


FULL = 'mount -t tmpfs -o size=300k none "$0" && "$@"; code=$?; ls -A "$0"; exit $code'


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """What the machines of a cluster and the command share."""
    home, site = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("site")
    (site / "sitecustomize.py").write_text(WAIT)
    kept = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    return {
        **kept,
        "HOME": str(home),
        "FOVEAL_CACHE": str(home / "cache"),
        "PYTHONPATH": f"{site}{os.pathsep}{SOURCE}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": "0" * 64,
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_USAGE_STATS_REPORT_URL": "http://localhost:9",  # else Ray reports that they are off
        "RAY_worker_niceness": "0",
    }


def start_cluster(environment, *arguments):
    cluster = subprocess.Popen(
        [sys.executable, "-c", CLUSTER, *arguments],
        env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    address = cluster.stdout.readline().strip()
    assert re.fullmatch(r"[\d.]+:\d+", address), cluster.communicate()[1]
    return cluster, address


def end_cluster(cluster):
    cluster.communicate(timeout=60)


@pytest.fixture(scope="module")
def address(environment):
    """Two machines of one processor each."""
    cluster, found = start_cluster(environment)
    yield found
    end_cluster(cluster)


@pytest.fixture
def album(tmp_path):
    """Seven pictures of three bands each."""
    (tmp_path / "in").mkdir()
    for index in range(7):
        pixels = np.random.default_rng(index).integers(0, 256, (96, 100 + index, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "in" / f"{index}.png")
    return tmp_path


def start(environment, folder, *arguments):
    return subprocess.Popen(
        [*COMMAND, *arguments, *QUICK],
        env=environment, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def run(environment, folder, *arguments):
    command = start(environment, folder, *arguments)
    out, err = command.communicate(timeout=240)
    return command.returncode, out, err


def writers(folder):
    """Processes that are writing an unfinished file of a folder, with the name of its target."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            for descriptor in (process / "fd").iterdir():
                path = descriptor.readlink()
                if path.parent == folder and path.suffix == ".part":
                    found[int(process.name)] = path.name[1:].rpartition(".")[0].rpartition(".")[0]
    return found


def kill_writer(folder, *, of="", times=1, seconds=120):
    """Kill whoever writes a picture, so many times; the names of the pictures."""
    end, killed, names = time.monotonic() + seconds, set(), []
    while len(names) < times:
        assert time.monotonic() < end, f"nobody writes {of or 'a picture'} in {folder}"
        for pid, name in writers(folder).items():
            if pid not in killed and name.startswith(of) and len(names) < times:
                os.kill(pid, signal.SIGKILL)
                killed.add(pid)
                names.append(name)
        time.sleep(0.01)
    return names


def results(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != RECORD}


def plain(environment, album, *arguments):
    code, _, err = run(environment, album, "in", "-o", "plain", *arguments)
    assert code in (0, 1), err
    return results(album / "plain"), err


def statuses(document):
    return {Path(file["source"]).name: file["status"] for file in document["files"]}


@pytest.mark.slow
@needs_ray
def test_a_killed_worker_changes_nothing(environment, address, album):
    expected, _ = plain(environment, album)
    command = start(environment, album, "in", "-o", "out", "--json", "--ray", address)
    (name,) = kill_writer(album / "out")
    out, err = command.communicate(timeout=240)
    assert command.returncode == 0, err
    assert f"in/{name} (its process was killed or crashed); it is tried again" in err
    assert results(album / "out") == expected, "bit for bit, and nothing unfinished is left"
    document = json.loads(out)
    assert document["counts"] == {"planned": 0, "done": 7, "skipped": 0, "failed": 0}
    assert [worker["threads"] for worker in document["workers"]] == [1, 1]
    assert sum(worker["pictures"] for worker in document["workers"]) == 7
    assert min(worker["pictures"] for worker in document["workers"]) > 0
    again = run(environment, album, "in", "-o", "out", "--resume")
    assert (again[0], again[1]) == (0, "nothing to do: 7 done already\n")


@pytest.mark.slow
@needs_ray
def test_a_picture_that_kills_its_workers_fails_alone(environment, address, album):
    command = start(environment, album, "in", "-o", "out", "--json", "--ray", address)
    assert kill_writer(album / "out", of="3.png", times=2) == ["3.png", "3.png"]
    out, err = command.communicate(timeout=240)
    assert command.returncode == 1
    assert "failed: in/3.png: it was given up after its worker died 2 times" in err
    found = statuses(json.loads(out))
    assert found.pop("3.png") == "failed"
    assert set(found.values()) == {"done"}
    assert sorted(results(album / "out")) == sorted(found)


@pytest.mark.slow
@needs_ray
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_stopping_ends_workers_and_leaves_a_record(environment, address, album, name):
    command = start(environment, album, "in", "-o", "out", "--json", "--ray", address)
    while not any(path.suffix == ".png" for path in (album / "out").glob("*.png")) or not writers(album / "out"):
        assert command.poll() is None
        time.sleep(0.01)
    os.killpg(command.pid, getattr(signal, name))
    out, err = command.communicate(timeout=60)
    assert command.returncode == 128 + getattr(signal, name), err
    done = json.loads(out)["counts"]["done"]
    assert f"interrupted: {done} of 7 done; --resume goes on from there" in err
    assert writers(album / "out") == {}
    left = results(album / "out")
    assert {Path(name).suffix for name in left} == {".png"}
    code, out, err = run(environment, album, "in", "-o", "out", "--resume", "--json", "--ray", address)
    assert (code, json.loads(out)["counts"]["skipped"]) == (0, len(left)), err
    assert results(album / "out") == plain(environment, album)[0]


@pytest.mark.slow
@needs_ray
def test_what_is_done_when_the_driver_dies_is_not_done_again(environment, address, album):
    command = start(environment, album, "in", "-o", "out", "--ray", address)
    while not list((album / "out").glob("*.png")) or not writers(album / "out"):
        assert command.poll() is None
        time.sleep(0.01)
    command.kill()
    command.communicate()
    end = time.monotonic() + 60
    while writers(album / "out"):  # the cluster ends them, some after they have finished
        assert time.monotonic() < end
        time.sleep(0.05)
    there = {path.name for path in (album / "out").glob("*.png")}
    code, out, err = run(environment, album, "in", "-o", "out", "--resume", "--json", "--ray", address)
    assert code == 0, err
    assert {name for name, status in statuses(json.loads(out)).items() if status == "skipped"} == there
    assert results(album / "out") == plain(environment, album)[0]


@pytest.mark.slow
@needs_ray
def test_a_bad_file_fails_as_it_does_in_one_process(environment, address, album):
    whole = (album / "in" / "0.png").read_bytes()
    (album / "in" / "cut.png").write_bytes(whole[: len(whole) // 2])
    (album / "in" / "text.png").write_text("no picture")
    expected, said = plain(environment, album)
    code, _, err = run(environment, album, "in", "gone.png", "-o", "out", "--ray", address)
    assert (code, results(album / "out")) == (1, expected)
    assert sorted(err.splitlines()) == sorted([*said.splitlines(), "failed: gone.png: no such file"])


@pytest.mark.slow
@needs_ray
def test_a_dry_run_says_the_workers_and_their_pictures(environment, address, album):
    code, out, err = run(environment, album, "in", "-o", "out", "--dry-run", "--ray", address)
    assert code == 0, err
    *_, total, first, second = out.splitlines()
    assert "onnxruntime, 2 workers on 2 machines, each with 1 thread: about" in total
    assert re.fullmatch(r"worker \S+/1: 1 thread, [34] pictures, about \S+ s", first)
    assert re.fullmatch(r"worker \S+/2: 1 thread, [34] pictures, about \S+ s", second)
    assert not (album / "out").exists()
    document = json.loads(run(environment, album, "in", "-o", "out", "--dry-run", "--json", "--ray", address)[1])
    assert sum(worker["pictures"] for worker in document["workers"]) == 7
    assert {file["worker"] for file in document["files"]} == {worker["name"] for worker in document["workers"]}


def may_mount():
    return bool(shutil.which("unshare")) and not subprocess.call(["unshare", "-rm", "true"], stderr=subprocess.DEVNULL)


@pytest.mark.slow
@needs_ray
def test_a_machine_that_does_not_see_a_folder_is_named(environment, album):
    if not may_mount():
        pytest.skip("needs a name space of its own for mounts")
    cluster, address = start_cluster(environment, "head")
    words = f"ray start --address {address} --num-cpus 1 --object-store-memory {80 << 20} --block"
    code = f"import sys; from ray.scripts.scripts import main; sys.argv = {words.split()!r}; main()"
    blind = subprocess.Popen(
        ["unshare", "-rm", "sh", "-c", 'mount -t tmpfs none "$0" && exec "$@"', str(album), sys.executable, "-c", code],
        env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/",
    )  # fmt: skip
    try:
        end, workers = time.monotonic() + 60, 0
        while workers < 2:
            assert time.monotonic() < end
            out = run(environment, album, "in", "-o", "out", "--dry-run", "--json", "--ray", address)[1]
            workers = len(json.loads(out)["workers"])
        code, out, err = run(environment, album, "in", "-o", "out", "--json", "--ray", address)
    finally:
        blind.terminate()
        blind.wait(30)
        end_cluster(cluster)
    (problem,) = [worker for worker in json.loads(out)["workers"] if "problem" in worker]
    assert (code, problem["problem"]) == (
        1,
        f"it does not see {album}/in; every machine must see the same folders under the same paths",
    )
    assert f"failed: worker {problem['name']}: it does not see {album}/in" in err
    assert len(results(album / "out")) == 7


@pytest.mark.slow
@needs_ray
def test_a_full_disk_fails_file_by_file(environment, album):
    if not may_mount():
        pytest.skip("needs a name space of its own for mounts")
    (album / "out").mkdir()
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", FULL, str(album / "out"), *COMMAND, "in", "-o", "out", "-q", *QUICK, "--ray"],
        env=environment, cwd=album, capture_output=True, text=True, check=False, timeout=240,
    )  # fmt: skip
    assert done.returncode == 1
    failed = done.stderr.splitlines()
    assert failed
    assert all(
        "it cannot be written (" in line and "check the space and rights on that disk" in line for line in failed
    )
    assert {re.match(r"failed: out/\d\.png: ", line) is not None for line in failed} == {True}
    kept = done.stdout.split()
    assert len(kept) - 1 + len(failed) == 7, "each is done or has failed, and nothing unfinished is left"
    assert RECORD in kept


@pytest.mark.slow
@needs_ray
def test_a_cluster_of_its_own_leaves_nothing_and_talks_to_nobody(album, tmp_path_factory):
    home, scratch = tmp_path_factory.mktemp("home"), Path("/tmp") / f"f{os.getpid()}"
    scratch.mkdir()
    kept = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    environment = {**kept, "HOME": str(home), "FOVEAL_CACHE": str(home / "cache"), "PYTHONPATH": str(SOURCE)}
    environment["TMPDIR"] = str(scratch)
    calls = scratch.with_name(f"{scratch.name}.calls")
    command = ["strace", "-f", "--seccomp-bpf", "-e", "trace=connect,sendto", "-o", str(calls)]
    if not shutil.which("strace") or subprocess.run([*command, "true"], capture_output=True, check=False).returncode:
        command = []
    try:
        done = subprocess.run(
            [*command, *COMMAND, "in", "-o", "out", *QUICK, "--ray"],
            env=environment, cwd=album, capture_output=True, text=True, check=False, timeout=240,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, "")
        assert results(album / "out") == plain(environment, album)[0]
        files = [str(path.relative_to(home)) for path in home.rglob("*") if path.is_file()]
        assert [name for name in files if not name.startswith("cache/")] == []
        assert list(scratch.iterdir()) == []
        if command:
            asked = re.findall(r'inet_addr\("([^"]+)"\)|inet_pton\(AF_INET6, "([^"]+)"', calls.read_text())
            assert {(v4 or v6).removeprefix("::ffff:") for v4, v6 in asked} == {"127.0.0.1"}
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        calls.unlink(missing_ok=True)
