"""Code that knows neither models nor algorithms: masks, files, the run on disk, options, processes.

Nothing here imports from the other packages. Read `masks` and `rng` first: masks are what the tool is about, and every
random stream of a run comes from `derive_rng`. Then `run.run`, through which a run is stored, and `errors`.
"""
