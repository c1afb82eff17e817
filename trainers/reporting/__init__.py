"""The report: any set of run folders as one page, its tables and its figures."""
