"""What a kernel computes, and the loop nest that computes it: from a region and a mapping to spatial operations."""
