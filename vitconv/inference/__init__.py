"""A folder runs: images become pixels, a runtime turns pixels into logits, an engine does that for a whole list."""
