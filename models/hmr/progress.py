"""What a person sees of a training run: one line every few steps, one at the end of an epoch."""

from __future__ import annotations

import math
import sys
from typing import Any

WIDTH = 160
"""Columns that a line fills at most."""

_SHORT = {
    "keypoints_2d": "2d", "keypoints_3d": "3d", "camera": "cam", "v2v_l1": "v1", "v2v_l2": "v2",
}  # fmt: skip


def short_number(value: float, digits: int = 2) -> str:
    """A number in few columns: 0.0123 is .012, 0.000012 is 1.2e-5, 1234 is 1234, 56789 is 5.7e4.

    digits: that count; whole numbers below 10,000 keep all of theirs.
    """
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    whole = 10**digits <= abs(value) < 1e4
    rounded = float(round(value)) if whole else float(f"{value:.{digits - 1}e}")
    if 1e-3 <= abs(rounded) < 1e4:
        return f"{rounded:.4g}".replace("0.", ".", 1) if abs(rounded) < 1 else f"{rounded:.4g}"
    mantissa, exponent = f"{rounded:.{digits - 1}e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def duration(seconds: float) -> str:
    """Time left: 45s, 3m05s, 2h10m, 3d04h; a question mark when nobody knows."""
    if not math.isfinite(seconds):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes_left = divmod(minutes, 60)
    days, hours_left = divmod(hours, 24)
    if days:
        return f"{days}d{hours_left:02d}h"
    if hours:
        return f"{hours}h{minutes_left:02d}m"
    return f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"


def progress_line(facts: dict[str, Any]) -> str:
    """One line for people, of at most WIDTH columns; terms that do not fit are counted as `+2`.

    facts: `epoch`, `epochs`, `step`, `steps`, `losses` (with the total as `loss`), `lr`,
    `images_per_s`, `data_wait`, `eta_s`; where known, `images_per_s_epoch` (mean of the epoch),
    `pa_mpjpe_mm`, `lr_encoder`, `skipped_steps`, `restarts`.
    """
    losses = dict(facts["losses"])
    head = (
        f"epoch {facts['epoch']}/{facts['epochs']} step {facts['step']:.0f}/{facts['steps']} "
        f"loss {short_number(losses.pop('loss'), 3)}"
    )
    terms = [f"{_SHORT.get(name, name)} {short_number(v)}" for name, v in losses.items()]
    line = f"{head} ({' '.join(terms)}) {_tail(facts)}"
    if len(line) > WIDTH:
        line = _fitted(head, terms, _tail(facts | {"images_per_s_epoch": None}))
    return line


def _tail(facts: dict[str, Any]) -> str:
    """What stands behind the losses."""
    error, mean = facts.get("pa_mpjpe_mm"), facts.get("images_per_s_epoch")
    encoder = facts.get("lr_encoder")
    parts = [
        "" if error is None else f"pa {error:.1f}mm",
        f"lr {short_number(facts['lr'])}" + (f"/{short_number(encoder)}" if encoder else ""),
        *(f"{name} {facts[key]:.0f}" if facts.get(key) else "" for name, key in
          (("skipped", "skipped_steps"), ("restarts", "restarts"))),
        f"{facts['images_per_s']:.0f} img/s" + ("" if mean is None else f" (mean {mean:.0f})"),
        f"wait {100 * facts['data_wait']:.0f}%",
        f"eta {duration(facts['eta_s'])}",
    ]  # fmt: skip
    return " ".join(part for part in parts if part)


def _fitted(head: str, terms: list[str], tail: str) -> str:
    """Head, as many terms as fit, tail."""
    for shown in range(len(terms), 0, -1):
        more = [f"+{len(terms) - shown}"] if shown < len(terms) else []
        line = f"{head} ({' '.join(terms[:shown] + more)}) {tail}"
        if len(line) <= WIDTH:
            return line
    return f"{head} {tail}"


def epoch_line(facts: dict[str, Any]) -> str:
    """One line for people at the end of an epoch, or when its validation is there."""
    parts = [f"epoch {facts['epoch']:.0f} done:"]
    if "train/loss" in facts:
        parts.append(f"mean loss {short_number(facts['train/loss'], 3)}")
    if "train/images_per_s" in facts:
        parts.append(f"{facts['train/images_per_s']:.0f} img/s")
    if "val/mpjpe_mm" in facts:
        parts.append(
            f"validation mpjpe {facts['val/mpjpe_mm']:.1f}mm pa {facts['val/pa_mpjpe_mm']:.1f}mm "
            f"pve {facts['val/pve_mm']:.1f}mm over {facts['val/count']:.0f} people"
        )
    if "val/best_pa_mpjpe_mm" in facts:
        parts.append(f"best pa {facts['val/best_pa_mpjpe_mm']:.1f}mm")
    return " ".join(parts)


def resume_line(facts: dict[str, Any]) -> str:
    """One line for people when a run goes on."""
    return f"going on after step {facts['step']:.0f}, from {facts['checkpoint']}"


def print_progress(facts: dict[str, Any]) -> None:
    """Progress on stderr, the default of `fit(log=...)`; nothing for what has no line."""
    lines = {"step": progress_line, "epoch": epoch_line, "resume": resume_line}
    if line := lines.get(facts["kind"]):
        sys.stderr.write(line(facts) + "\n")
        sys.stderr.flush()
