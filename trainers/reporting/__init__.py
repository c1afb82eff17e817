"""The report of many runs: gather them, group them, and write one page with plots and tables.

The order of the work, and of reading: `report` (the mode), `gather` (run folders to records), `series` (records to
experiments, series and tasks), `contents` and `tables` (what is tabulated), `plotting` and `plots` (what is drawn, from
the rows of the tables), `page` (HTML and Markdown). `published` has the paper's results. `measured` is a command of its
own, for the README.
"""
