"""A study on Ray: what a task is given, what is said of it, and what a node's death costs."""

import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import few_glyphs
import made_up
import pytest
import torch

from experiments import cluster, records, run
from experiments.studies import STUDIES
from stn_cifar.__main__ import main


class Failure(Exception):
    def __init__(self, cause):
        super().__init__("a traceback of many lines")
        self.cause = cause


class Ray:
    """As much of Ray as experiments.cluster asks for; a task runs when its result is asked for."""

    exceptions = SimpleNamespace(RayError=Failure)

    def __init__(self):
        self.cancelled, self.connected = [], None

    def init(self, address, **options):
        self.connected, self.options = address, options

    def shutdown(self):
        self.connected = None

    def nodes(self):
        return [dict(Alive=alive, Resources=dict(CPU=cores))
                for alive, cores in ((True, 2.0), (True, 4.0), (False, 64.0))]

    def remote(self, **resources):
        self.resources = resources
        return lambda function: SimpleNamespace(
            remote=lambda *given, **named: lambda: function(*given, **named))

    def wait(self, refs):
        return refs[:1], refs[1:]

    def get(self, ref):
        try:
            return ref()
        except Exception as error:
            raise Failure(error) from error

    def cancel(self, ref, force):
        self.cancelled.append(ref)


@pytest.fixture
def ray(monkeypatch, tmp_path):
    """A stand-in for Ray, and a study `small` whose runs take no time, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(STUDIES, "small", made_up.SMALL)
    monkeypatch.setattr(run, "resolve", lambda precision, device: "fp32")
    monkeypatch.setattr(cluster, "WAIT", 0)

    def fake(config, folder):
        ray.ran.append((config, folder))
        arm = "with" if config.stn else "without"
        made = made_up.record(arm=arm, epochs=config.epochs, seed=config.seed)
        return None, None, made | dict(study=None, arm=None, config=config.to_dict())

    monkeypatch.setattr(run.experiment, "run", fake)
    ray = Ray()
    ray.ran = []
    monkeypatch.setitem(sys.modules, "ray", ray)
    return ray


def left():
    return sorted(path.name for path in Path("results/small").iterdir())


def test_every_run_is_a_task_of_its_own_with_its_cores_and_threads(ray, tmp_path, capsys):
    assert main(["study", "small", "--ray", "head:6379", "--cpus", "3"]) == 0
    assert ray.resources["num_cpus"] == 3 and ray.resources["num_gpus"] == 0
    assert ray.options["runtime_env"]["env_vars"]["OMP_NUM_THREADS"] == "3"
    assert "num_cpus" not in ray.options  # the cluster is another's
    assert [config.device for config, _ in ray.ran] == ["cpu"] * 6
    assert {folder for _, folder in ray.ran} == {
        tmp_path / f"checkpoints/small/{arm}-2e-s{seed}" for arm in ("with", "without")
        for seed in range(3)}
    assert len(records.load(Path("results"))["small"]) == len(left()) == 6
    lines = capsys.readouterr().out.splitlines()
    told = [line for line in lines if " of 6 small: " in line]
    assert len(told) == 6 and told[0].startswith(
        "1 of 6 small: with, 2 epochs, seed 0: 50.0%, 4 s of training: ")
    assert ray.connected is None and not ray.cancelled
    assert not [path for path in Path("results").iterdir() if path.name != "small"]
    ray.ran.clear()
    assert main(["study", "small", "--ray"]) == 0  # a cluster of this machine; all is there already
    assert ray.ran == [] and ray.options["num_cpus"] >= 1
    assert main(["study", "small"]) == 0 and ray.ran == []  # nor has a plain run anything to do


def test_with_gpus_a_run_takes_nothing_else(ray, monkeypatch):
    ray.nodes = lambda: [dict(Alive=True, Resources=dict(CPU=8.0, GPU=1.0))]
    init = ray.init  # only the workers' machines have a GPU
    ray.init = lambda *given, **options: init(*given, **options) or [monkeypatch.setattr(
        torch.cuda, name, lambda: 1) for name in ("is_available", "device_count")]
    assert cluster.run_study("small", gpus=0.5, shard="1/6")
    assert [config.device for config, _ in ray.ran] == ["cuda"] and ray.resources["num_gpus"] == 0.5


def test_a_run_that_fails_leaves_the_others_alone_and_shows_in_the_status(ray, monkeypatch, capsys):
    fake = run.experiment.run

    def diverges(config, folder):
        if config.seed == 1:
            raise RuntimeError("the loss became nan in epoch 1")
        return fake(config, folder)

    monkeypatch.setattr(run.experiment, "run", diverges)
    assert main(["study", "small", "--ray"]) == 1
    assert len(records.load(Path("results"))["small"]) == 4
    assert capsys.readouterr().out.count("seed 1: FAILED: the loss became nan in epoch 1") == 2


def test_ctrl_c_leaves_finished_records_and_cancels_the_rest(ray, capsys):
    wait = ray.wait

    def interrupted(refs):
        if len(refs) == 4:
            raise KeyboardInterrupt
        return wait(refs)

    ray.wait = interrupted
    assert main(["study", "small", "--ray"]) == 130
    assert left() == ["with-2e-s0.json", "with-2e-s1.json"] and len(ray.cancelled) == 4
    assert ray.connected is None and [path.name for path in Path("results").iterdir()] == ["small"]


def test_a_run_that_its_node_stops_or_that_is_anothers_is_tried_again(ray, monkeypatch, capsys):
    fake = run.experiment.run
    monkeypatch.setattr(run.experiment, "run", lambda *given: (
        None, None, fake(*given)[2] | dict(finished=False, epochs_done=1)))
    assert not cluster.run_study("small", shard="1/6")
    assert ray.resources["retry_exceptions"] == [cluster.Unfinished]
    assert ray.resources["max_retries"] >= 10
    assert "FAILED: stopped after 1 of 2 epochs; the same" in capsys.readouterr().out
    with records.claim(Path("results/small/with-2e-s0.json")):
        assert not cluster.run_study("small", shard="1/6")
    assert "FAILED: another process is at it: " in capsys.readouterr().out


def test_what_cannot_go_well_is_told_at_once(ray, monkeypatch, tmp_path, capsys):
    def told(*options):
        assert main(["study", "small", "--ray", "head:6379", *options]) == 2
        return capsys.readouterr().err

    assert "--cpus 5 --gpus 0: no machine of the cluster has as many; they have 2 CPUs, 0 GPUs; " \
        "4 CPUs" in told("--cpus", "5")
    assert "--gpus 1: no machine" in told("--gpus", "1")
    assert "cpus: 0, gpus: 0; must be at least 1 and 0" in told("--cpus", "0")
    assert "shard" in told("--shard", "7/6") and ray.connected is None and ray.ran == []

    def other(address, **options):
        raise RuntimeError("Version mismatch: the cluster was started with Ray 2.9")

    ray.init = other
    assert "--ray: head:6379: Version mismatch" in told()
    monkeypatch.setitem(sys.modules, "ray", None)
    assert 'Ray is not installed; pip install -e ".[cluster]"' in told()
    with pytest.raises(FileNotFoundError, match="must be on storage that all machines share"):
        cluster._task(tmp_path, tmp_path / "not-here")


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # Ray's own
def test_a_node_dies_and_all_records_are_those_of_a_plain_run(tmp_path, monkeypatch, capsys):
    pytest.importorskip("ray", reason='Ray is not installed: pip install -e ".[cluster]"')
    from ray.cluster_utils import Cluster
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("PYTHONPATH", str(Path(few_glyphs.__file__).parent))
    monkeypatch.setitem(STUDIES, "few", few_glyphs.STUDY)
    nodes = Cluster(initialize_head=True, head_node_args=dict(num_cpus=1))
    second = nodes.add_node(num_cpus=1)
    checkpoints, killed = tmp_path / "checkpoints", []

    def kill():
        while len(list(checkpoints.glob("few/*/epoch-00002.pt"))) < 2:  # a run on either node
            time.sleep(0.05)
        killed.append(len(list(tmp_path.glob("ray/few/*.json"))))
        nodes.remove_node(second, allow_graceful=False)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    try:
        threads = torch.get_num_threads()
        assert cluster.run_study("few", nodes.address, tmp_path / "ray", cpus=1,
                                 checkpoint_dir=checkpoints)
        killer.join(60)
        logs = Path(nodes.head_node.get_session_dir_path(), "logs").glob("worker-*.out")
        resumed = [line for log in logs for line in log.read_text().splitlines()
                   if "resuming after epoch" in line]
    finally:
        nodes.shutdown()
    assert killed == [0] and len(resumed) == 1  # while two were running; one of them went on
    assert capsys.readouterr().out.count(" of 6 few: ") == 6
    monkeypatch.setattr("stn_cifar.data.glyphs.make_glyphs", few_glyphs.few)
    torch.set_num_threads(1)
    try:
        assert run.run_study("few", tmp_path / "plain", device="cpu")
    finally:
        torch.set_num_threads(threads)
    found, plain = (records.load(tmp_path / kind)["few"] for kind in ("ray", "plain"))
    assert len(found) == len(plain) == 6
    assert [timeless(record) for record in found] == [timeless(record) for record in plain]


def timeless(record):
    """What is the same whenever a run is made, and on whatever machine."""
    rows = [{key: value for key, value in row.items() if key != "seconds"}
            for row in record["history"]]
    return {key: value for key, value in record.items()
            if key not in ("training_seconds", "date", "machine", "openmp")} | dict(history=rows)
