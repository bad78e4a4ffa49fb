"""Random damaged inputs, and what the code does with them (benchmarks/faults.py)."""
