"""What the tiny language model of the tests is made of."""

TEXT = "the quick brown fox jumps over the lazy dog and runs away from it. " * 40
VOCABULARY = 300
POSITIONS = 32
