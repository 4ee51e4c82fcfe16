"""A person's own taste as a reward: picks on disk, a small head on features, an honest report.

    picks -> rows (differences inside a pick, or single pictures)
    pictures -> features (colour and edge statistics, and an encoder if there is one)
    rows x features -> head (one number for a picture) and report (how well it knows its owner)

Here: all of it but the picture of the report. Nothing is sent anywhere.
"""
