"""`python -m trainers.benchmark`: how fast the parts of a run are."""
