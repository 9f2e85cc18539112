"""Benchmarks: every figure is a ratio between contenders that took turns in one process, with device and versions."""
