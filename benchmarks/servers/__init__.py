"""Three servers as in the tutorials of their projects, for comparison in benchmarks/serving.py."""
