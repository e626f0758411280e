# SPDX-License-Identifier: MIT
"""A checkpoint belongs to data, a model and settings: going on with others is refused in one line, in every task."""

import json
import re
import shutil
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.tiny_tasks import TASKS, Classification, Detection, arguments

from hf_internimage import InternImageConfig
from hf_internimage.training.classification import main as classification
from hf_internimage.training.command_line import UsageError
from hf_internimage.training.detection import main as detection
from hf_internimage.training.run import RunArguments
from hf_internimage.training.run_record import refuse_other_run, run_record
from hf_internimage.training.segmentation import main as segmentation
from hf_internimage.training.sources import SourceArguments
from hf_internimage.training.trainer import RECORD_NAME, RecipeArguments, find_best_checkpoint, last_complete_checkpoint

LARGER = '{"channels": 32, "depths": [1, 1, 1, 1], "groups": [1, 2, 4, 8]}'


@pytest.fixture(scope="module", params=TASKS)
def finished(request, tmp_path_factory):
    """A task, and the folder of its data with a finished training of two epochs, out, in it."""
    task, folder = TASKS[request.param], tmp_path_factory.mktemp(request.param)
    task.write(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert task.main(arguments(task)) == 0
    return task, folder


@pytest.fixture
def again(finished, tmp_path, monkeypatch, capsys, caplog):
    """A copy of that folder as the working directory, and a function that starts the training there once more."""
    task, original = finished
    folder = tmp_path / "copy"
    shutil.copytree(original, folder)
    monkeypatch.chdir(folder)

    def train(*options, **changes):
        capsys.readouterr()
        result = task.main([*arguments(task, **changes), *options])
        return result, capsys.readouterr().err + caplog.text

    return task, folder, train


def steps(folder):
    return json.loads((folder / "trainer_state.json").read_text())["global_step"]


def refused(result, error, *words):
    """Check that a run ended with one line of these words."""
    assert result == 1
    (line,) = [line for line in error.splitlines() if line.startswith("error: ")]
    assert all(word in line for word in words), line
    return "Traceback" not in error


@pytest.mark.slow
def test_other_classes_always_stop(again):
    task, folder, train = again
    task.rename_class(folder)
    before = (folder / "out" / "model.safetensors").read_bytes()
    for options in ([], ["--ignore_data_changes"], ["--num_train_epochs=4", "--ignore_data_changes"]):
        assert refused(*train(*options), "other classes (gone: ", "; new: ", "start anew with --overwrite_output_dir")
    assert (folder / "out" / "model.safetensors").read_bytes() == before


@pytest.mark.slow
def test_other_examples_stop_unless_they_are_to_be_ignored(again):
    task, folder, train = again
    count = steps(folder / "out")
    task.add_examples(folder)
    assert refused(*train(num_train_epochs=4), "other data (train examples is ", "add --ignore_data_changes to go on")
    assert steps(folder / "out") == count
    assert train("--ignore_data_changes", num_train_epochs=4)[0] == 0
    assert steps(folder / "out") > count
    assert train(num_train_epochs=5)[0] == 0  # these are the data of the last checkpoint


@pytest.mark.slow
def test_other_models_and_settings_stop(again):
    task, folder, train = again
    before = (folder / "out" / "model.safetensors").read_bytes()
    assert refused(*train(config_overrides=LARGER), "another model (", "channels is 32, there 16", "set this back")
    changes = {"learning_rate": 2e-3, "layer_decay": 0.9, "seed": 3, "ema_decay": 0.6, "max_grad_norm": 0.5}
    for name, value in {**changes, **task.changed}.items():
        assert refused(*train(**{name: value}), f"other settings ({name} is {value}, there ", "set this back to go on")
    assert refused(*train(per_device_train_batch_size=2), "images a step is 2, there 4")
    checkpoint = last_complete_checkpoint("out")
    assert refused(*train(f"--resume_from_checkpoint={checkpoint}", output_dir="new", seed=3), "seed is 3, there 42")
    assert (folder / "out" / "model.safetensors").read_bytes() == before


def test_a_step_is_of_all_processes(tmp_path):
    """Its images may be divided in another way, but a training does not go on with more or fewer of them."""

    def record(batch, accumulation, processes):
        training = SimpleNamespace(
            train_batch_size=batch, gradient_accumulation_steps=accumulation, world_size=processes
        )
        recipe = RecipeArguments()
        arguments = SimpleNamespace(
            training=training, data=SourceArguments(train_dir="train"), model=recipe, augmentation=recipe,
            recipe=recipe, run=RunArguments(),
        )  # fmt: skip
        data = SimpleNamespace(train=None, validation=None, label_names=["a", "b"])
        return run_record(arguments, data, InternImageConfig.from_size("t"))

    (tmp_path / RECORD_NAME).write_text(json.dumps(record(8, 1, 1)))
    for same in ((8, 1, 1), (4, 2, 1), (4, 1, 2), (2, 2, 2), (1, 1, 8)):
        refuse_other_run(record(*same), tmp_path, ignore_data_changes=False)
    for other, images in (((8, 1, 2), 16), ((8, 2, 1), 16), ((4, 2, 2), 16), ((4, 1, 1), 4)):
        with pytest.raises(UsageError, match=rf"other settings \(images a step is {images}, there 8\): set this back"):
            refuse_other_run(record(*other), tmp_path, ignore_data_changes=False)


@pytest.mark.slow
def test_a_finished_training_says_that_nothing_is_left(again):
    _, folder, train = again
    count, results = steps(folder / "out"), (folder / "out" / "train_results.json").read_bytes()
    before = load_file(folder / "out" / "model.safetensors")
    # none of these decides the result, nor how the batch is divided
    free = {"logging_steps": 3, "save_total_limit": 5, "per_device_eval_batch_size": 1, "dataloader_num_workers": 1}
    free |= {"train_dir": folder / "train", "output_dir": folder / "out", "per_device_train_batch_size": 2}
    result, error = train("--gradient_accumulation_steps=2", **free)
    assert result == 0
    assert f"The training is finished, with {count} steps: nothing is trained." in error
    assert (folder / "out" / "train_results.json").read_bytes() == results
    after = load_file(folder / "out" / "model.safetensors")
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert refused(*train(num_train_epochs=1), f"has {count} steps, and the training ends after {count // 2}")
    assert train(num_train_epochs=3)[0] == 0
    assert steps(folder / "out") == count // 2 * 3


@pytest.mark.slow
def test_starting_anew_removes_the_earlier_checkpoints(again):
    _, folder, train = again
    count = steps(folder / "out")
    assert refused(*train("--resume_from_checkpoint=false", seed=3), "start anew with --overwrite_output_dir")
    (folder / "out" / "checkpoint-of-mine").mkdir()
    (folder / "out" / "checkpoint-777").mkdir()
    (folder / "out" / "checkpoint-777" / "thesis.txt").write_text("of the user")
    (folder / "elsewhere").mkdir()
    (folder / "elsewhere" / "trainer_state.json").write_text("{}")  # a checkpoint of another run
    (folder / "out" / "checkpoint-778").symlink_to(folder / "elsewhere")
    earlier = {path.name for path in (folder / "out").glob("checkpoint-*")}
    assert train("--overwrite_output_dir", learning_rate=-1.0)[0] == 1
    assert {path.name for path in (folder / "out").glob("checkpoint-*")} == earlier, "refused, so nothing is lost"
    # Trainer itself removes whatever is named checkpoint-N beyond save_total_limit.
    assert train("--overwrite_output_dir", seed=3, num_train_epochs=1, save_total_limit=9)[0] == 0
    checkpoints = {path.name for path in (folder / "out").glob("checkpoint-*")}
    assert checkpoints == {f"checkpoint-{count // 2}", "checkpoint-of-mine", "checkpoint-777", "checkpoint-778"}
    assert (folder / "out" / "checkpoint-777" / "thesis.txt").exists()
    assert (folder / "elsewhere" / "trainer_state.json").exists()
    wrong = train("--overwrite_output_dir", f"--resume_from_checkpoint=out/checkpoint-{count // 2}")
    assert refused(*wrong, "overwrite_output_dir starts anew: leave out")


def remove(path):
    path.unlink()


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def change_a_byte(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("optimizer.pt", remove, "optimizer.pt is missing"),
        ("optimizer.pt", cut, "optimizer.pt is damaged"),
        ("optimizer.pt", change_a_byte, "optimizer.pt is damaged"),
        ("scheduler.pt", remove, "scheduler.pt is missing"),
        ("scheduler.pt", cut, "scheduler.pt is damaged"),
        ("model.safetensors", cut, "model.safetensors is damaged"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_damaged_checkpoints_are_not_gone_on_from(name, damage, message, again):
    """Trainer begins with a new optimizer and schedule where their files are missing, and says nothing."""
    _, folder, train = again
    for checkpoint in (folder / "out").glob("checkpoint-*"):
        damage(checkpoint / name)
    assert refused(*train(num_train_epochs=3), message, "choose another checkpoint")


@pytest.mark.slow
def test_checkpoints_of_models_alone_are_not_overwritten(again):
    _, folder, train = again
    for checkpoint in (folder / "out").glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    (folder / "out" / "run.json").unlink()
    assert train(save_only_model="true")[0] == 0
    assert refused(*train(save_only_model="true"), "out has checkpoints of save_only_model, from which no training")


@pytest.mark.slow
def test_a_damaged_record_is_one_line(again):
    _, folder, train = again
    for checkpoint in (folder / "out").glob("checkpoint-*"):
        (checkpoint / "run.json").write_text("{}")
    assert refused(*train(seed=3), "run.json cannot be read (it lacks some of classes, data, model, settings)")


@pytest.mark.slow
def test_a_finished_model_without_checkpoints_is_not_overwritten(again):
    _, folder, train = again
    for checkpoint in (folder / "out").glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    before = (folder / "out" / "model.safetensors").read_bytes()
    assert refused(*train(seed=3), "out belongs to a training with other settings (seed is 3, there 42)")
    assert (folder / "out" / "model.safetensors").read_bytes() == before


@pytest.mark.slow
def test_the_best_checkpoint_is_found_from_another_working_directory(again, monkeypatch):
    """Trainer writes its path as it was given, relative to the working directory."""
    task, folder, train = again
    state = json.loads((last_complete_checkpoint("out") / "trainer_state.json").read_text())
    best = state["best_model_checkpoint"]
    assert best.startswith("out/checkpoint-")
    monkeypatch.chdir(folder.parent)
    places = {"train_dir": "copy/train", "validation_dir": "copy/validation", "output_dir": "copy/out"}
    if "label_names_file" in task.own:
        places["label_names_file"] = "copy/names.txt"
    result, error = train(**places)
    assert result == 0
    assert f"Resuming from copy/{last_complete_checkpoint(folder / 'out').relative_to(folder)}." in error
    assert "does not exist anymore" not in error
    state = json.loads((folder / "out" / "trainer_state.json").read_text())
    assert state["best_model_checkpoint"] == f"copy/{best}"
    averages = load_file(folder / best / "averaged_weights.safetensors")
    model = load_file(folder / "out" / "model.safetensors")
    shared = sorted(averages.keys() & model.keys())
    assert shared or task is Classification  # whose files have the original's names
    assert all(torch.equal(averages[name], model[name]) for name in shared)


def test_a_best_checkpoint_that_is_gone_is_forgotten(tmp_path, caplog):
    checkpoint = tmp_path / "checkpoint-20"
    checkpoint.mkdir()
    state = {
        "global_step": 20,
        "best_model_checkpoint": "out/checkpoint-10",
        "best_metric": 0.9,
        "best_global_step": 10,
    }
    (checkpoint / "trainer_state.json").write_text(json.dumps(state))
    find_best_checkpoint(checkpoint)
    assert "The best checkpoint, out/checkpoint-10, is gone: the best from now on is kept." in caplog.text
    expected = {"global_step": 20, "best_model_checkpoint": None, "best_metric": None, "best_global_step": None}
    assert json.loads((checkpoint / "trainer_state.json").read_text()) == expected


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
@pytest.mark.slow
def test_a_diverged_training_leaves_no_model(task, tmp_path, monkeypatch, capsys):
    task.write(tmp_path)
    monkeypatch.chdir(tmp_path)
    # With such a rate the weights overflow in the first step, and the loss of the second is not a number.
    options = arguments(task, learning_rate=1e38, lr_scheduler_type="constant", logging_steps=50)
    assert refused(task.main([*options, "--do_train", "--do_eval"]), capsys.readouterr().err, "has diverged", " step ")
    names = {path.name for path in (tmp_path / "out").glob("*")}
    assert not names & {"model.safetensors", "README.md", "eval_results.json", "train_results.json", "run.json"}
    assert not list((tmp_path / "out").glob("checkpoint-*/trainer_state.json"))


OF_TRAINER = {
    "adam_beta1", "adam_beta2", "adam_epsilon", "bf16", "data_seed", "dataloader_drop_last", "fp16",
    "greater_is_better", "label_smoothing_factor", "learning_rate", "lr_scheduler_kwargs", "lr_scheduler_type",
    "max_grad_norm", "metric_for_best_model", "neftune_noise_alpha", "optim", "optim_args", "seed",
    "train_sampling_strategy", "warmup_steps", "weight_decay", "images a step",
}  # fmt: skip
FREE = {  # of the scripts' own options
    "model": {
        "model_type", "size", "config_overrides", "drop_path_rate", "trust_remote_code", "head", "head_overrides",
    },
    "data": {
        "train_dir", "validation_dir", "test_dir", "train_annotations", "validation_annotations", "test_annotations",
        "test_split_name", "data_cache_dir", "label_names_file", "num_classes", "bad_images",
    },
    "augmentation": set(),
    "recipe": {"total_train_batch_size"},
    "run": {
        "overwrite_output_dir", "ignore_data_changes", "save_on_interrupt", "license", "early_stopping_patience",
        "check_data", "overlays", "overlay_threshold",
    },
}  # fmt: skip


@pytest.mark.parametrize("script", [classification, segmentation, detection], ids=lambda script: script.__name__)
def test_options_that_may_change_are_the_free_ones(script):
    arguments = script.read_arguments(["--train_dir=train", "--use_cpu=true"])
    data = SimpleNamespace(train=None, validation=None, label_names=["a", "b"])
    record = run_record(arguments, data, InternImageConfig.from_size("t", num_labels=2))
    recorded = {group: set(vars(getattr(arguments, group))) - free for group, free in FREE.items()}
    assert set(record["data"]) == recorded.pop("data") | {"train examples", "validation examples"}
    assert set(record["settings"]) == OF_TRAINER.union(*recorded.values())
    # names and versions may change, too
    gone = {"_name_or_path", "architectures", "auto_map", "dtype", "id2label", "label2id", "transformers_version"}
    fields = InternImageConfig.from_size("t", num_labels=2).to_dict()
    assert set(record["model"]) == set(fields) - gone - {"torch_dtype", "num_labels"}


@pytest.mark.parametrize(
    ("earlier", "now", "expected"),
    [
        ({"classes": ["a", "b"]}, {"classes": ["b", "a"]}, "the same names in another order"),
        ({"classes": ["a", "b"]}, {"classes": ["a", "c"]}, "gone: b; new: c"),
        ({"model": {"part": {"width": 1}}}, {"model": {"part": {"width": 2}}}, "part.width is 2, there 1"),
        ({"model": {"part": {"width": 1}}}, {"model": {"part": None}}, 'part is null, there {"width": 1}'),
        ({"model": {"part": None}}, {"model": {"part": {"width": 1}}}, 'part is {"width": 1}, there null'),
        ({"settings": dict.fromkeys("abcd", 1)}, {"settings": dict.fromkeys("abcd", 2)}, "a is 2, there 1, b is 2, "
         "there 1, c is 2, there 1 and 1 more"),
        ({"settings": {"a": "x" * 58}}, {"settings": {"a": "y" * 59}}, f'a is "{"y" * 56}..., there "{"x" * 58}"'),
    ],
)  # fmt: skip
def test_differences_are_named(earlier, now, expected, tmp_path):
    earlier, now = ({"classes": ["a"], "data": {}, "model": {}, "settings": {}} | part for part in (earlier, now))
    (tmp_path / RECORD_NAME).write_text(json.dumps(earlier))
    with pytest.raises(UsageError, match=re.escape(f" ({expected}): ")):
        refuse_other_run(now, tmp_path, ignore_data_changes=False)


def test_a_folder_that_has_moved_is_the_same(tmp_path):
    """Of folders only their names are compared; repositories by their whole name."""

    def recorded(path):
        arguments = classification.read_arguments([f"--dataset_name={path}", "--use_cpu=true"])
        data = SimpleNamespace(train=None, validation=None, label_names=["a", "b"])
        return run_record(arguments, data, InternImageConfig.from_size("t"))["data"]["dataset_name"]

    for place in ("here", "there"):
        (tmp_path / place / "images").mkdir(parents=True)
        assert recorded(tmp_path / place / "images") == "images"
    assert recorded("me/images") == "me/images"


def test_a_checkpoint_without_a_record_is_warned_of(tmp_path, caplog):
    for name, warned in (("out", False), ("checkpoint-3", True)):
        refuse_other_run({"classes": []}, tmp_path / name, ignore_data_changes=False)
        assert (f"{name} has no run.json: it may belong to other data, or another model." in caplog.text) is warned


@pytest.mark.slow
def test_a_head_whose_saved_weights_have_other_names_goes_on(tmp_path, monkeypatch, caplog, capsys):
    """transformers saves a DETR's backbone under the names of an older release, and Trainer did not find them again."""
    Detection.write(tmp_path)
    monkeypatch.chdir(tmp_path)
    fields = '"encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "num_queries": 6'
    changes = {"head": "detr", "head_overrides": f'{{"d_model": 32, {fields}}}', "shortest_edge": 64, "ema_decay": None}
    assert Detection.main(arguments(Detection, **changes)) == 0
    straight = load_file("out/model.safetensors")
    assert any("conv_encoder" in name for name in straight)  # the finished model is for from_pretrained
    for name in ("checkpoint-4", "model.safetensors"):
        path = tmp_path / "out" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert Detection.main(arguments(Detection, **changes)) == 0
    resumed = load_file("out/model.safetensors")
    assert straight.keys() == resumed.keys()
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)
    assert "keys in the checkpoint" not in caplog.text
    # A checkpoint of such names is refused.
    checkpoint = tmp_path / "out" / "checkpoint-4" / "model.safetensors"
    weights = {
        name.replace("backbone.model", "backbone.conv_encoder.model"): value
        for name, value in load_file(checkpoint).items()
    }
    save_file(weights, checkpoint, metadata={"format": "pt"})
    capsys.readouterr()
    result = Detection.main(arguments(Detection, **changes, num_train_epochs=3))
    assert refused(result, capsys.readouterr().err, "has weights that the model has no place for, such as ")
