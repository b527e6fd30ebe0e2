"""Stand-in for ColossalAI Chat, generation G2 (pooling at the last attended token).

Same module paths, signatures, shapes and defects as that generation, in few lines, without
ColossalAI and without a GPU.  For tests and demonstrations only; do not train with it.
"""
