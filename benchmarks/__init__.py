"""What is claimed of niwaki's speed and quality, as commands that measure it: `python -m
benchmarks.NAME`."""
