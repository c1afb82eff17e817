"""The report: any set of run folders as one page with tables and plots."""
