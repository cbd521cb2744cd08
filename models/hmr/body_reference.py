"""The reference implementation of the body layer, the package `smplx`, on our arrays.

smplx is for non-commercial research only, code included; it is optional and never imported unless
it is asked for.
"""

from __future__ import annotations

import contextlib
import io
from typing import TYPE_CHECKING

import numpy as np
from torch import nn

from hmr.errors import ConfigError

if TYPE_CHECKING:
    from hmr.body_arrays import BodyArrays


def smplx_layer(arrays: BodyArrays) -> nn.Module:
    """`smplx.SMPLLayer` with these arrays; nothing in it is saved with a model.

    ConfigError if the package is not installed.
    """
    try:
        import smplx
        from smplx.vertex_ids import vertex_ids
    except ImportError as error:
        raise ConfigError(
            "body.backend is 'smplx', but that package is not installed. Choose 'native', or run "
            "`pip install smplx` if its licence (non-commercial research only, code included) "
            "suits you."
        ) from error
    structure = smplx.utils.Struct(
        v_template=arrays.v_template,
        shapedirs=arrays.shapedirs,
        posedirs=arrays.posedirs,
        J_regressor=arrays.J_regressor,
        weights=arrays.lbs_weights,
        kintree_table=np.stack([arrays.parents, np.arange(len(arrays.parents))]),
        f=arrays.faces,
    )
    # Only the 24 regressed joints are used; real vertex numbers may not exist on this body.
    unused = dict.fromkeys(vertex_ids["smplh"], 0)
    # The constructor prints a warning about every body with ten shape directions.
    with contextlib.redirect_stdout(io.StringIO()):
        layer: nn.Module = smplx.SMPLLayer(
            model_path="", data_struct=structure, vertex_ids=unused, num_betas=10
        )
    for module in layer.modules():
        for name, buffer in list(module.named_buffers(recurse=False)):
            module.register_buffer(name, buffer, persistent=False)
    return layer
