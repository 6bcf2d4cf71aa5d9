"""What a CPU executes: kernels written as TIR functions with explicit vectors, and the machine they are written for."""
