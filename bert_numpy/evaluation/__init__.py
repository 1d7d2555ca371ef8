"""Running a model over a data set, and comparing what comes out."""
