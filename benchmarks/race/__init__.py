"""Which recipe reaches a held-out reward with the fewest units of work, and stays clean?"""
