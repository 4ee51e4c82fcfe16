"""How well a head learns simulated people, and whether what it says of itself is true."""
