"""Models as policies: one file for each family, and one for the embedded tiny FLUX."""
