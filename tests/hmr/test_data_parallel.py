"""Two ranks with unequal parts of a batch compute what one rank computes with the whole of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

_RUN = """
import sys
from pathlib import Path
import torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from hmr.body import Body
from hmr.camera import project_weak
from hmr.config import AugmentConfig, LossConfig, ModelConfig, OptimizerConfig, TrainConfig
from hmr.local_context import LocalContext
from hmr.model import build_model
from hmr.rotations import axis_angle_to_matrix
from hmr.structures import Batch
from hmr.training import fit

folder, rank, world = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
if world > 1:
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world
    )
body = Body.embedded()

def people(count, seed):
    g = torch.Generator().manual_seed(seed)
    rotmats = axis_angle_to_matrix(0.3 * torch.randn(count, 24, 3, generator=g))
    betas = torch.randn(count, 10, generator=g)
    joints = body.landmarks(rotmats, betas)
    cams = torch.tensor([0.9, 0.0, 0.0]).expand(count, 3)
    confidence = (torch.rand(count, 49, 1, generator=g) > 0.3).float()
    return Batch(
        images=torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=g),
        keypoints_2d=torch.cat([project_weak(joints, cams, 32), confidence], -1),
        keypoints_3d=torch.cat([joints, confidence], -1), rotmats=rotmats, betas=betas,
        # The second rank's people have no SMPL labels in the first batch.
        has_smpl=torch.tensor([(n % 3 == 0) if seed else (n < 5) for n in range(count)]),
        sample_ids=tuple(f"{seed}/{n}" for n in range(count)),
    )

class Data:
    steps_per_epoch = 3
    def train_batches(self, epoch, first_step=0):
        for step in range(first_step, 3):
            whole = people(7, step)
            rows = (slice(0, 5), slice(5, 7))[rank] if world > 1 else slice(0, 7)
            yield Batch(**{
                n: getattr(whole, n)[rows] for n in Batch.__dataclass_fields__
            })
    def val_batches(self):
        yield people(4, 9)

class Context(LocalContext):
    def prepare_model(self, model):
        return DistributedDataParallel(model, broadcast_buffers=False) if world > 1 else model

context = Context(folder / f"run-{world}-{rank}", "cpu")
context.rank, context.world_size = rank, world
torch.manual_seed(0)
model = build_model(ModelConfig(encoder_width=4, image_size=32, hidden=32, dropout=0.0, n_iter=2))
config = TrainConfig(
    epochs=2, accumulate=int(sys.argv[4]), freeze_encoder=True, log_every=1,
    augment=AugmentConfig(flip=0, channel_noise=0), optimizer=OptimizerConfig(lr=1e-3),
    losses=LossConfig(v2v_l1=1.0, iteration_weights="all"),
)
losses = []
metrics = fit(
    config, model=model, body=body, data=Data(), context=context,
    log=lambda f: losses.append(f["losses"]["loss"]) if f["kind"] == "step" else None,
)
from safetensors.torch import save_file
state = {n: v.contiguous() for n, v in model.state_dict().items()}
state["losses"] = torch.tensor(losses or [0.0], dtype=torch.float64)
state["mean"] = torch.tensor(metrics["train/loss"], dtype=torch.float64)
save_file(state, folder / f"{world}-{rank}.safetensors")
"""


def run(folder: Path, world: int, accumulate: int) -> list[dict[str, torch.Tensor]]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", _RUN, str(folder), str(rank), str(world), str(accumulate)],
            env=environment, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(world)
    ]  # fmt: skip
    for process in ranks:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    return [load_file(folder / f"{world}-{rank}.safetensors") for rank in range(world)]


def test_two_ranks_train_as_one(tmp_path: Path) -> None:
    (alone,) = run(tmp_path, 1, 1)
    first, second = run(tmp_path, 2, 2)
    for name, value in alone.items():
        if name not in ("losses", "mean"):
            assert torch.equal(first[name], second[name]), f"{name}: the ranks drifted apart"
        if name != "losses" and value.is_floating_point():
            torch.testing.assert_close(first[name], value, atol=1e-5, rtol=1e-4, msg=name)
    # Rank 0 speaks for both: losses are those of the whole step.
    assert len(alone["losses"]) == 6
    torch.testing.assert_close(first["losses"], alone["losses"], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(first["mean"], second["mean"], atol=0, rtol=0)
