"""Files of others to ours: SMPL bodies, published checkpoints; and ours to others: exports.

python jobs/convert.py smpl --input basicModel_neutral.pkl --output body.npz
python jobs/convert.py checkpoint --from spin --input model_checkpoint.pt --output bundles/spin
python jobs/convert.py export --to onnx --input registry/hmr/1 --output hmr.onnx
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from rayhmr.command_line import print_results


def _smpl(arguments: argparse.Namespace) -> dict[str, Any]:
    from hmr.smpl_files import convert_smpl

    return convert_smpl(
        arguments.input, arguments.output, gender=arguments.gender,
        extra_regressor=arguments.extra_regressor, h36m_regressor=arguments.h36m_regressor,
    )  # fmt: skip


def _checkpoint(arguments: argparse.Namespace) -> dict[str, Any]:
    from hmr.body import Body
    from hmr.body_arrays import body_from_path
    from hmr.published import convert_checkpoint

    return convert_checkpoint(
        arguments.kind, arguments.input, arguments.output,
        body=Body(body_from_path(arguments.body)), mean_params=arguments.mean_params,
    )  # fmt: skip


def _export(arguments: argparse.Namespace) -> dict[str, Any]:
    from hmr.export import export

    return export(arguments.input, arguments.to, arguments.output)


def parser() -> argparse.ArgumentParser:
    """The command line, with help for every argument."""
    top = argparse.ArgumentParser(
        prog="convert.py", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    commands = top.add_subparsers(required=True, metavar="smpl | checkpoint | export")

    smpl = commands.add_parser("smpl", help="an official SMPL file to a plain .npz and its sha256")
    smpl.add_argument("--input", required=True, help="official .pkl or .npz, or a folder of them")
    smpl.add_argument("--output", required=True, help="the .npz to write; then body=<this file>")
    smpl.add_argument(
        "--gender", choices=("female", "male", "neutral"),
        help="which file of a folder to take",
    )  # fmt: skip
    smpl.add_argument("--extra-regressor", help="J_regressor_extra.npy (SPIN's nine extra joints)")
    smpl.add_argument("--h36m-regressor", help="J_regressor_h36m.npy (Human3.6M's 17 joints)")
    smpl.set_defaults(work=_smpl)

    checkpoint = commands.add_parser("checkpoint", help="published weights to a bundle")
    checkpoint.add_argument(
        "--from", dest="kind", required=True, choices=("spin", "hmr_eth", "mmhuman3d"),
        help="whose layout the file has",
    )  # fmt: skip
    checkpoint.add_argument("--input", required=True, help="the checkpoint file")
    checkpoint.add_argument("--output", required=True, help="folder of the bundle to write")
    checkpoint.add_argument(
        "--body", default="embedded",
        help="the body of the weights: a converted SMPL .npz (default: %(default)s)",
    )  # fmt: skip
    checkpoint.add_argument("--mean-params", help="smpl_mean_params.npz, if the file lacks it")
    checkpoint.set_defaults(work=_checkpoint)

    export = commands.add_parser("export", help="a bundle to ONNX or TorchScript, checked")
    export.add_argument("--to", required=True, choices=("onnx", "torchscript"), help="format")
    export.add_argument("--input", required=True, help="folder of the bundle")
    export.add_argument("--output", required=True, help="file to write")
    export.set_defaults(work=_export)
    return top


def main(words: Sequence[str] | None = None) -> None:
    """Parse, convert, print the results as one JSON line."""
    arguments = parser().parse_args(words)
    print_results(lambda: arguments.work(arguments))
