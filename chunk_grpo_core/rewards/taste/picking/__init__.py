"""Pictures are shown, and a person or a text picks: what is shown, and what becomes of a click."""
