"""Archives as people have them (folders, tables, HDF5, tensorflow-datasets) to Records."""
