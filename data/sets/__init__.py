"""The data sets, one module each, with a declaration (`SPEC`) and a function that reads it (`load`)."""
