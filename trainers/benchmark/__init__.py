"""`python -m trainers.benchmark`: measure the speed of the parts of a run."""
