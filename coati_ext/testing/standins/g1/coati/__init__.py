"""Stand-in for ColossalAI Chat, generation G1 (the package at the time of issue 4475).

Same module paths, signatures, shapes and defects as that generation, in few lines, without
ColossalAI and without a GPU.  For tests and demonstrations only; do not train with it.
"""
