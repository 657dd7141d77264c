"""What a tile, a mapping and a schedule cost, what they must cost at the least, and why."""
