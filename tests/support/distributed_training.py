# SPDX-License-Identifier: MIT
"""Short trainings in one process or several, of a process that imports everything once and forks for each.

Without arguments it reads the path of a settings file from each line of its input, and prints the exit code of each
training. Processes are started and watched as by torchrun, but forked. `torchrun distributed_training.py SETTINGS.json`
runs one training.

accelerate refuses FSDP without a GPU; PyTorch itself does not. For the test of FSDP2 on CPUs the processes are
therefore declared to be of a kind that accelerate shards.
"""

import gc
import json
import os
import signal
import sys
import traceback
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import DistributedType
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from torch.utils.data import Dataset
from transformers import TrainerCallback, TrainingArguments

from hf_internimage import InternImageForImageClassification
from hf_internimage.training.classification.trainer import ClassificationRecipe, ClassificationTrainer
from hf_internimage.training.interrupt import saving_on_interrupt
from support.golden_data import tiny_config

torch.set_num_threads(1)


def shard_on_cpus(arguments: TrainingArguments) -> None:
    """Let accelerate prepare FSDP2 on CPUs, which it leaves out."""
    assert arguments.device.type == "cpu"
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_HPU


class Stripes(Dataset):
    """Two classes of 32 x 32 pixels that brightness tells apart."""

    def __len__(self) -> int:
        return 32

    def __getitem__(self, index: int) -> dict:
        generator = torch.Generator().manual_seed(index)
        return {"pixel_values": torch.randn(3, 32, 32, generator=generator) + 0.5 * (index % 2), "labels": index % 2}


class KillAt(TrainerCallback):
    def __init__(self, rank: int, step: int) -> None:
        self.rank, self.step = rank, step

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if state.global_step == self.step and args.process_index == self.rank:
            os.kill(os.getpid(), signal.SIGKILL)


class InterruptAt(TrainerCallback):
    """Send Ctrl-C to one of the processes in a step."""

    def __init__(self, rank: int, step: int) -> None:
        self.rank, self.step = rank, step

    def on_step_begin(self, args, state, control, **kwargs) -> None:
        if state.global_step + 1 == self.step and args.process_index == self.rank:
            os.kill(os.getpid(), signal.SIGINT)


class CompareBuffers(TrainerCallback):
    """Note whether all processes have the same batch norm statistics, after each step and in each evaluation."""

    def __init__(self) -> None:
        self.same: dict[str, list[bool]] = {"step": [], "evaluation": []}

    def compare(self, model: torch.nn.Module) -> bool:
        buffers = [buffer.tolist() for buffer in model.buffers() if buffer.is_floating_point()]
        everywhere = [None] * dist.get_world_size()
        dist.all_gather_object(everywhere, buffers)
        return bool(buffers) and all(others == buffers for others in everywhere)

    def on_step_end(self, args, state, control, model, **kwargs) -> None:
        self.same["step"].append(self.compare(model))

    def on_evaluate(self, args, state, control, model, **kwargs) -> None:
        self.same["evaluation"].append(self.compare(model))


class SpoiledTrainer(ClassificationTrainer):
    """A trainer whose loss is not a number in one process and step."""

    spoiled: tuple[int, int]

    def compute_loss(self, *args, **kwargs):
        loss = super().compute_loss(*args, **kwargs)
        if (self.args.process_index, self.state.global_step + 1) == self.spoiled:
            return loss * float("nan")
        return loss


def main(settings: dict) -> None:
    world = int(os.environ.get("WORLD_SIZE", "1"))
    torch.manual_seed(0)
    # The head of H has no batch norm, whose statistics depend on the size of each process's batch.
    config = tiny_config(
        **{"num_labels": 2, "use_clip_projector": True, "drop_path_rate": 0.0, **settings.get("config", {})}
    )
    model = InternImageForImageClassification(config)
    sharding = {}
    if settings["mode"] == "fsdp2":
        sharding = {"fsdp": True, "fsdp_config": {"version": 2, "state_dict_type": "SHARDED_STATE_DICT"}}
    arguments = TrainingArguments(
        output_dir=settings["output_dir"],
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        per_device_train_batch_size=8 // world,
        max_steps=6,
        save_steps=3,
        save_total_limit=5,
        logging_steps=1,
        learning_rate=1e-3,
        lr_scheduler_type="cosine",
        warmup_steps=2,
        gradient_checkpointing=settings.get("gradient_checkpointing", False),
        ddp_find_unused_parameters=False,
        **sharding,
    )
    if sharding:
        shard_on_cpus(arguments)
    compare = CompareBuffers()
    callbacks = [compare] if settings.get("compare_buffers") else []
    callbacks += [KillAt(*settings["kill"])] if "kill" in settings else []
    callbacks += [InterruptAt(*settings["interrupt"])] if "interrupt" in settings else []
    trainer_class = SpoiledTrainer if "spoil" in settings else ClassificationTrainer
    trainer = trainer_class(
        model=model,
        args=arguments,
        train_dataset=Stripes(),
        eval_dataset=Stripes(),
        recipe=ClassificationRecipe(
            ema_decay=0.5, layer_decay=0.9, geometry_lr_scale=0.1, **settings.get("recipe", {})
        ),
        callbacks=callbacks,
    )
    trainer.spoiled = tuple(settings.get("spoil", ()))
    result_file = Path(settings["output_dir"], "result.json")
    try:
        with saving_on_interrupt(trainer):
            trainer.train(resume_from_checkpoint=settings.get("resume"))
    except (FloatingPointError, KeyboardInterrupt) as error:
        everywhere = [None] * world
        dist.all_gather_object(everywhere, [type(error).__name__, str(error)])
        result_file.write_text(json.dumps({"stopped": everywhere}))
        return
    metrics = trainer.evaluate()
    trainer.save_model(str(Path(settings["output_dir"], "final")))
    if trainer.is_world_process_zero():
        history = [entry for entry in trainer.state.log_history if "loss" in entry]
        result = {
            "losses": [entry["loss"] for entry in history],
            "rates": [entry["learning_rate"] for entry in history],
            "same_buffers": compare.same,
            "norms": [entry["grad_norm"] for entry in history],
            "eval_loss": metrics["eval_loss"],
            "world": world,
            "sharded": type(trainer.model).__name__,
        }
        result_file.write_text(json.dumps(result))


def launch(settings: dict) -> None:
    """Train in this process, or in several below it; what they print goes to a file in the output's folder."""
    log = os.open(Path(settings["output_dir"], "log.txt"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    if settings["processes"] == 1:
        main(settings)
        return
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=settings["processes"],
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        run_id=str(os.getpid()),
        max_restarts=0,
        start_method="fork",
    )
    elastic_launch(config, main)(settings)


def serve() -> None:
    gc.freeze()  # children need not visit what was imported
    for line in sys.stdin:
        process = os.fork()
        if process == 0:
            status = 1
            try:
                launch(json.loads(Path(line.strip()).read_text()))
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(status)
        print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)


if __name__ == "__main__":
    if sys.argv[1:]:
        main(json.loads(Path(sys.argv[1]).read_text()))
    else:
        serve()
