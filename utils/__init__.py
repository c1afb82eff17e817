"""Code that knows neither models nor algorithms: masks, files, the run on disk, options, processes."""
