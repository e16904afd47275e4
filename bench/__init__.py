"""Benchmarks: our path beside what people would pick instead, on the same engine, in the same run."""
