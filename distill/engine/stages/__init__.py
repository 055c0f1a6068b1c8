"""The stages of a run, one file each; `distill.engine.pipeline` puts them in order."""
