"""The training child: one fine-tune run in a process of its own, from the plan file to the canonical version folder.

It reports on a descriptor (`events`), stops at a step boundary on SIGTERM, and resumes bit-equal from its checkpoints.
"""
