"""The data sets: a module each, with what it declares (`SPEC`) and how it is read (`load`)."""
