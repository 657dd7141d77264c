"""When everything in a schedule happens: exact event simulation that skips what repeats itself."""
