"""The curves of trainings as pictures: read from TensorBoard's event files, several runs at once.

``events`` reads the files, ``catalogue`` says what each curve is and in which unit, ``draw`` draws.
"""
