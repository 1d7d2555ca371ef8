"""Running a model over a data set, and comparing the results."""
