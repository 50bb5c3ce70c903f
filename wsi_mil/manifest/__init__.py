"""Tables that people write, slides.csv and labels.csv: checked, and all that is wrong said at once."""
