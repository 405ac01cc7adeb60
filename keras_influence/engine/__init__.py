"""A model and its data: losses, gradients, scores and curvature, batch by batch. The only room with TensorFlow's tapes."""
