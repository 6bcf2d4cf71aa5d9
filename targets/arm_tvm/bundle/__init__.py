"""The folder that goes to the device: linked code, weights, runtime libraries, and the program that starts it."""
