"""Pictures, and what TensorBoard shows."""
