"""Kinds of kernels: attention, one matrix product, and what each brings so that the passes can treat all alike."""
