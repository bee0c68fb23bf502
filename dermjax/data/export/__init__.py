"""A manifest's kept images as data sets that other programs read: imagefolder, WebDataset, array_record, Croissant."""
