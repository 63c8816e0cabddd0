"""The run plane: flows order stages, show progress and do every side effect; they do no numerics."""
