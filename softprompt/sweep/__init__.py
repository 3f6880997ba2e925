"""Search over the settings of a run: engines propose, trials learn, validation decides, test is scored once."""
