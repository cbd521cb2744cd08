"""Three ranks that go on from a checkpoint compute the bits of three that were left alone.

With two ranks any order of adding gives the same sum; from three on a number's place counts.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

_RUN = """
import shutil, sys
from pathlib import Path
import torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from hmr.body import Body
from hmr.config import ModelConfig, OptimizerConfig, TrainConfig
from hmr.local_context import LocalContext
from hmr.model import build_model
from hmr.structures import Batch
from hmr.training import fit

folder, rank = Path(sys.argv[1]), int(sys.argv[2])
dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=3)

class Data:
    steps_per_epoch = 3
    def train_batches(self, epoch, first_step=0):
        for step in range(first_step, 3):
            g = torch.Generator().manual_seed(100 * epoch + 10 * step + rank)
            yield Batch(
                images=torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=g),
                keypoints_2d=torch.rand(4, 49, 3, generator=g),
                keypoints_3d=torch.rand(4, 49, 4, generator=g),
                rotmats=torch.eye(3).repeat(4, 24, 1, 1),
                betas=torch.randn(4, 10, generator=g), has_smpl=torch.ones(4, dtype=torch.bool),
            )
    def val_batches(self):
        yield from self.train_batches(9, 2)

class Context(LocalContext):
    rank, world_size = rank, 3
    def prepare_model(self, model):
        return DistributedDataParallel(model, broadcast_buffers=False)
    def report(self, metrics, checkpoint):
        if rank == 0:
            super().report(metrics, checkpoint)

def run(name, seed):
    torch.manual_seed(seed)
    model = build_model(ModelConfig(encoder_width=4, image_size=32, hidden=64, n_iter=2))
    config = TrainConfig(epochs=2, log_every=1, optimizer=OptimizerConfig(lr=1e-3, grad_clip=1.0))
    losses = []
    # Ranks read the folder of rank 0, which has no checkpoint before all have looked.
    context = Context(folder / name, "cpu")
    dist.barrier()
    fit(config, model=model, body=Body.embedded(), data=Data(), context=context,
        log=lambda f: losses.append(f["losses"]["loss"]) if f["kind"] == "step" else None)
    return model.state_dict() | {"losses": torch.tensor(losses, dtype=torch.float64)}

whole = run("whole", 0)
dist.barrier()
if rank == 0:
    (folder / "resumed").mkdir()
    shutil.copytree(folder / "whole/epoch-0001", folder / "resumed/epoch-0001")
dist.barrier()
resumed = run("resumed", 1)
from safetensors.torch import save_file
if rank == 0:
    for name, state in (("a", whole), ("b", resumed)):
        save_file({n: v.contiguous() for n, v in state.items()}, folder / f"{name}.safetensors")
"""


def test_three_ranks_resume_bit_for_bit(tmp_path: Path) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", _RUN, str(tmp_path), str(rank)], env=environment,
            stderr=subprocess.PIPE, text=True,
        )
        for rank in range(3)
    ]  # fmt: skip
    for process in ranks:
        _, errors = process.communicate(timeout=400)
        assert process.returncode == 0, errors
    whole = load_file(tmp_path / "a.safetensors")
    resumed = load_file(tmp_path / "b.safetensors")
    assert torch.equal(whole.pop("losses")[3:], resumed.pop("losses"))
    different = [name for name, value in whole.items() if not torch.equal(value, resumed[name])]
    assert different == []
