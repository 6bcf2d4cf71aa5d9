"""What a candidate is worth: it is timed, and its accuracy, memory, saliency and time by layer are measured."""
