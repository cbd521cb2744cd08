"""The README.md of a bundle: what the model is, what it was measured at, what it is not for."""

from __future__ import annotations

from typing import Any

import yaml

from hmr.config import ModelConfig

BASELINE = "baseline_"

_USER_BODY = (
    "It was trained with a body from a user's file, which is not part of this folder. SMPL bodies "
    "are licensed by the Max Planck Society; that licence may reach weights trained with them."
)
_OWN_BODY = "The body is computed by the package itself; nothing licensed is needed."


def _numbers(metrics: dict[str, Any]) -> dict[str, float]:
    return {k: v for k, v in sorted(metrics.items()) if isinstance(v, int | float)}


def _metrics_table(metrics: dict[str, Any]) -> str:
    """Each figure, beside the mean-pose baseline where `baseline_<name>` is given."""
    numbers = _numbers(metrics)
    if not numbers:
        return "Not measured."
    rows = ["| metric | model | mean-pose baseline |", "|---|---|---|"]
    for name, value in numbers.items():
        if name.startswith(BASELINE) and name.removeprefix(BASELINE) in numbers:
            continue
        baseline = numbers.get(BASELINE + name)
        rows.append(f"| {name} | {value:.4g} | {'–' if baseline is None else f'{baseline:.4g}'} |")
    return "\n".join(rows)


def model_card(
    config: ModelConfig, body: dict[str, Any], metrics: dict[str, Any], provenance: dict[str, Any]
) -> str:
    """Markdown with the YAML header that model hubs read.

    body: name, licence and vertices, as in body.json.
    """
    own_body = body["licence"] == "project"
    header = yaml.safe_dump(
        {
            "library_name": "rayhmr",
            "license": "apache-2.0" if own_body else "other",
            "tags": ["human-mesh-recovery", "3d-human-pose-estimation"],
            "metrics": list(_numbers(metrics)),
        },
        sort_keys=False,
    )
    made = "\n".join(f"- {key}: {value}" for key, value in sorted(provenance.items()))
    return f"""---
{header}---
# Human mesh recovery: {config.encoder}, T = {config.n_iter}

A photo of a person in; pose, shape and camera of an SMPL-structured body out. Encoder
`{config.encoder}` at {config.image_size} px, {config.n_iter} refinement steps, body
`{body["name"]}` with {body["vertices"]} vertices. {_OWN_BODY if own_body else _USER_BODY}

```python
from hmr.checkpoint import load_bundle
from hmr.crops import read_image

predictor = load_bundle("path/to/this/folder")
people = predictor.predict(read_image("photo.jpg"), boxes=[[x1, y1, x2, y2]])
```

## Measured
{_metrics_table(metrics)}

## Intended use
Research and teaching: body pose and shape of people in photos, from their boxes.

## Limits
One person for each box. Distance is a convention unless the focal length is given. The figures
above hold for the data they were measured on; expect less on other pictures. Not for identifying
people, nor for decisions about them.

## Made from
{made or "- not recorded"}
"""
