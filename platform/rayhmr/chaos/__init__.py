"""Faults on purpose: Ray clusters of our own, a training on them, and something that dies.

`node` is one Ray node in a process of its own, `cluster` several of them, `run` the training job as
a subprocess, `scenarios` what is done to it. Only processes started here are ever ended.
"""
