# SPDX-License-Identifier: MIT
"""RecipeTrainer in two processes (gloo): the losses of one, resuming, whole models from shards, a killed process."""

import json
import os
import select
import subprocess
import sys

import pytest
import torch
from accelerate.utils import merge_fsdp_weights
from safetensors.torch import load_file
from support.paths import TESTS

from hf_internimage import InternImageForImageClassification
from hf_internimage.training.trainer import last_complete_checkpoint

pytestmark = pytest.mark.slow
MODES = {"one": 1, "ddp": 2, "fsdp2": 2}
SCRIPT = str(TESTS / "support" / "distributed_training.py")


def environment():
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])}


@pytest.fixture(scope="module")
def run():
    """A function that runs a training; all of them are forked from one process, which imports everything once."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    server = subprocess.Popen([sys.executable, SCRIPT], env=environment(), **pipes)

    def train(folder, mode, processes=None, **settings):
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / "settings.json"
        processes = MODES[mode] if processes is None else processes
        file.write_text(json.dumps({"mode": mode, "processes": processes, "output_dir": str(folder), **settings}))
        server.stdin.write(f"{file}\n")
        server.stdin.flush()
        assert select.select([server.stdout], [], [], 240)[0], "no result in 240 seconds"
        status, log = server.stdout.readline().strip(), (folder / "log.txt").read_text()
        assert status == "0", log[-4000:]
        return json.loads((folder / "result.json").read_text())

    yield train
    server.kill()
    server.communicate()


@pytest.fixture(scope="module")
def results(run, tmp_path_factory):
    """Run the same training in one process, in two with DDP, and in two with FSDP2."""
    folder = tmp_path_factory.mktemp("distributed")
    return folder, {mode: run(folder / mode, mode) for mode in MODES}


def weights(folder):
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("mode", ["ddp", "fsdp2"])
def test_two_processes_are_one(results, mode):
    folder, runs = results
    assert runs[mode]["world"] == 2
    assert runs[mode]["sharded"].startswith("FSDP" if mode == "fsdp2" else "InternImage")
    for key in ("losses", "norms"):
        got, expected = torch.tensor(runs[mode][key]), torch.tensor(runs["one"][key])
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    assert runs[mode]["eval_loss"] == pytest.approx(runs["one"]["eval_loss"], rel=1e-4)
    assert runs["one"]["losses"][-1] != runs["one"]["losses"][0]
    model, info = InternImageForImageClassification.from_pretrained(folder / mode / "final", output_loading_info=True)
    assert not any(info.values())
    assert model.config.architectures == ["InternImageForImageClassification"]
    single, double = weights(folder / "one" / "final"), weights(folder / mode / "final")
    assert single.keys() == double.keys()
    for name, tensor in single.items():
        torch.testing.assert_close(double[name], tensor, rtol=1e-3, atol=2e-5, msg=name)
    files = {path.name for path in (folder / "one" / "final").iterdir()}
    assert files == {path.name for path in (folder / mode / "final").iterdir()}


@pytest.mark.parametrize("mode", MODES)
def test_resuming_gives_the_same_bits(run, results, mode, tmp_path):
    folder, runs = results
    again = run(tmp_path, mode, resume=str(folder / mode / "checkpoint-3"))
    assert again == runs[mode]
    for name, tensor in weights(folder / mode / "final").items():
        assert torch.equal(weights(tmp_path / "final")[name], tensor), name


def test_shards_fit_other_numbers_of_processes(run, results, tmp_path):
    """A checkpoint of two processes continues in four, and can be merged into one whole model."""
    folder, runs = results
    again = run(tmp_path / "four", "fsdp2", 4, resume=str(folder / "fsdp2" / "checkpoint-3"))
    assert again["world"] == 4
    got, expected = torch.tensor(again["losses"]), torch.tensor(runs["fsdp2"]["losses"])
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    checkpoint = folder / "fsdp2" / "checkpoint-6"
    merge_fsdp_weights(checkpoint / "pytorch_model_fsdp_0", tmp_path / "whole")
    model = InternImageForImageClassification.from_pretrained(folder / "fsdp2" / "final")
    whole = weights(tmp_path / "whole")
    assert {name: tensor.shape for name, tensor in whole.items()} == {
        name: tensor.shape for name, tensor in model.state_dict().items()
    }
    # the averages lie beside the weights: those are what the finished model holds
    assert not torch.equal(whole["head.weight"], model.head.weight)
    model.config.save_pretrained(tmp_path / "whole")
    loaded, info = InternImageForImageClassification.from_pretrained(tmp_path / "whole", output_loading_info=True)
    assert not any(info.values())
    assert torch.equal(loaded.head.weight, whole["head.weight"])


def test_learning_rates_are_scaled_to_the_images_of_all_processes(run, results, tmp_path):
    """8 images a step, in one process or two, and rates that are given for 4: twice as high."""
    _, runs = results
    recipe = {"learning_rate_batch_size": 4}
    expected = [2 * rate for rate in runs["one"]["rates"]]
    assert expected[2] > 0
    for mode in ("one", "ddp"):
        assert run(tmp_path / mode, mode, recipe=recipe)["rates"] == pytest.approx(expected)


def test_evaluations_have_the_same_batch_norm_statistics_everywhere(run, tmp_path):
    """Each process gathers its own in training; in an evaluation those of the first one count, also in averages."""
    config = {"use_clip_projector": False}  # a head with a batch norm
    same = run(tmp_path, "ddp", config=config, compare_buffers=True)["same_buffers"]
    assert same["step"] == [False] * 6
    assert same["evaluation"] == [True]


@pytest.mark.parametrize("mode", ["ddp", "fsdp2"])
def test_a_loss_that_is_not_finite_in_one_process_stops_all(run, mode, tmp_path):
    (first, second) = run(tmp_path, mode, spoil=[1, 2])["stopped"]
    assert first == second
    assert first[0] == "FloatingPointError"
    assert "the loss of step 2 is not a finite number" in first[1]
    assert not list(tmp_path.glob("checkpoint-*"))


@pytest.mark.parametrize("mode", ["ddp", "fsdp2"])
def test_ctrl_c_in_one_process_saves_in_all(run, results, mode, tmp_path):
    folder, runs = results
    stopped = run(tmp_path, mode, interrupt=[1, 2])["stopped"]
    assert [name for name, _ in stopped] == ["KeyboardInterrupt"] * 2
    assert last_complete_checkpoint(tmp_path) == tmp_path / "checkpoint-2"
    again = run(tmp_path, mode, resume=str(tmp_path / "checkpoint-2"))
    assert again["losses"] == runs[mode]["losses"]
    for name, tensor in weights(folder / mode / "final").items():
        assert torch.equal(weights(tmp_path / "final")[name], tensor), name


def test_gradient_checkpointing_with_shards(run, results, tmp_path):
    _, runs = results
    again = run(tmp_path, "fsdp2", gradient_checkpointing=True)
    torch.testing.assert_close(torch.tensor(again["losses"]), torch.tensor(runs["fsdp2"]["losses"]), rtol=1e-5, atol=0)


def test_a_killed_process_ends_the_job_and_the_job_resumes(run, results, tmp_path):
    folder, found = results
    settings = {"mode": "ddp", "output_dir": str(tmp_path), "kill": [1, 5]}
    (tmp_path / "killed.json").write_text(json.dumps(settings))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", SCRIPT]
    done = subprocess.run(
        [*command, str(tmp_path / "killed.json")], capture_output=True, text=True, env=environment(), timeout=240
    )
    assert done.returncode != 0
    message = done.stderr
    assert "SIGKILL" in message or "exitcode  : -9" in message
    assert last_complete_checkpoint(tmp_path) == tmp_path / "checkpoint-3"
    again = run(tmp_path, "ddp", resume=str(last_complete_checkpoint(tmp_path)))
    assert again == found["ddp"]
    for name, tensor in weights(folder / "ddp" / "final").items():
        assert torch.equal(weights(tmp_path / "final")[name], tensor), name
