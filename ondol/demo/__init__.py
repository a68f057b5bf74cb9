"""`ondol demo`: the embedded stack, started for real, doing embedding jobs on real English and Korean text."""
