"""Why the slide model says what it says: one score per patch, for one class."""
