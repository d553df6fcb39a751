"""What demo, tests and benchmarks share. Not part of the package."""
