"""Many prompts on one frozen model, behind HTTP."""
