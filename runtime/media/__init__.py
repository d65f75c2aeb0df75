"""Files <-> frames: reading, time stamps, colours, writing. Knows no networks."""
