"""What a program is: the attn, flat and spatial dialects, one file each."""

if __name__ != "flatc.dialects":
    raise ImportError(f"import flatc.dialects instead of '{__name__}': one definition of each op is enough")
