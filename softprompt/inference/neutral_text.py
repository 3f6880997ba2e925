"""Neutral text, written for this purpose: what a model that has forgotten nothing finds as likely as before."""

from importlib.resources import files

PASSAGES = tuple(files("softprompt.inference").joinpath("neutral_text.txt").read_text(encoding="utf-8").splitlines())
