"""Many runs, by many workers: what a sweep's file says, who does what, and the search for good options."""
