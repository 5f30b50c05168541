"""Commands that measure niwaki's speed and quality: `python -m benchmarks.NAME`."""
