"""Stand-in for ColossalAI Chat, generation G4 (GRPO, verifiable rewards, rollouts in chunks).

Same module paths, signatures, shapes and defects as that generation, in few lines, without
ColossalAI and without a GPU.  For tests and demonstrations only; do not train with it.
"""
