"""Looking at what a model does: which parts of a picture its answer rests on."""
