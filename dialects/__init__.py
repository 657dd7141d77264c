"""What a program is: the attn, flat and spatial dialects, one file each."""
