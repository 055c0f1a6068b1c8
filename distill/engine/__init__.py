"""One run, from a recipe to a results.json."""
