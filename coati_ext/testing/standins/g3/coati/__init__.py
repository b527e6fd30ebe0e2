"""Stand-in for ColossalAI Chat, generation G3 ("RLHF V2": per-token values, GAE, boosters).

Same module paths, signatures, shapes and defects as that generation, in few lines, without
ColossalAI and without a GPU.  For tests and demonstrations only; do not train with it.
"""
