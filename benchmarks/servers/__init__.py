"""Three servers as their projects' documentation teaches them, for benchmarks/serving.py to stand beside."""
