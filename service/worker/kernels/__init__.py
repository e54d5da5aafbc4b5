"""The exact arithmetic in C: ``arithmetic.h`` defines it, ``kernel.c`` is the CPU's engine; ``build`` makes and loads the library."""
