"""The code that a CPU executes: kernels as TIR functions with explicit vectors, and the machine they are for."""
