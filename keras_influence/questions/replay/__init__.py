"""Recording a training, and differentiating it: a callback, the states it keeps, the way back."""
