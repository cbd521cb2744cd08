"""What `input` of a batch prediction names: a folder, a pattern, a list, shards, or a video."""

from __future__ import annotations

import importlib.util

from hmr.errors import ConfigError
from rayhmr.config import PredictJob
from rayhmr.eth_submission import EthFrames
from rayhmr.picture_list import LIST_ENDINGS, ListedPictures, PictureList
from rayhmr.pictures import Images, Pictures
from rayhmr.shard_pictures import ShardPictures, is_shards
from rayhmr.video_frames import VIDEO_ENDINGS, VideoFrames


def open_pictures(job: PredictJob) -> Pictures:
    """The source of `job.input`, with the boxes of `job.boxes`. ConfigError when there is none."""
    if job.eth_labels is not None:
        return EthFrames(job.input, job.eth_labels)
    if job.boxes is not None:
        chosen = PictureList(job.boxes, "boxes")
        return ListedPictures(_source(job, listed=False), chosen)
    return _source(job, listed=True)


def _source(job: PredictJob, *, listed: bool) -> Pictures:
    ending = job.input.lower()
    if ending.endswith(LIST_ENDINGS):
        return ListedPictures.beside(job.input)
    if ending.endswith(VIDEO_ENDINGS):
        if importlib.util.find_spec("av") is None:
            raise ConfigError(
                f"input={job.input}: reading videos needs PyAV; install it with "
                "`pip install 'rayhmr[video]'`"
            )
        return VideoFrames(job.input)
    if is_shards(job.input):
        return ShardPictures(job.input, job.split)
    return Images(job.input) if listed else Images.below(job.input)
