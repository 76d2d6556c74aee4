"""Three ways to speak to a model, each in its own file: the conversation as its request, its stream as our blocks."""
