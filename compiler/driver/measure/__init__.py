"""What a candidate is worth: accuracy, speed, memory, saliency, and time by layer."""
