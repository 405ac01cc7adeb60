"""What TensorBoard shows of influence scores, epoch by epoch. Needs tensorboard and matplotlib."""

import numpy as np
import tensorflow as tf

from keras_influence.report import canvas


class Board:
    """Writes summaries to a folder that TensorBoard reads.

    Args:
        log_dir: the folder; it is made when there is something to write.

    Raises:
        ImportError: tensorboard or matplotlib is missing.
    """

    def __init__(self, log_dir):
        try:
            import matplotlib  # noqa: F401
            import tensorboard  # noqa: F401
        except ImportError as error:
            raise ImportError(
                f"`log_dir` needs {error.name}: pip install tensorboard matplotlib"
            ) from error
        self._log_dir = str(log_dir)
        self._writer = None

    def write(self, step, scores, self_influence, figure, report=None):
        """Write one step: a gallery, a histogram of self-influence, and the solves' evidence.

        Args:
            report: path of an HTML report to name, if there is one.
        """
        if self._writer is None:
            self._writer = tf.summary.create_file_writer(self._log_dir)
        with self._writer.as_default(step=step):
            tf.summary.image("influence/gallery", tf.image.decode_png(canvas.png(figure))[None])
            tf.summary.histogram("influence/self_influence", self_influence)
            if report is not None:
                tf.summary.text("influence/report", f"`{report.absolute()}`")
            # On TensorBoard's linear axes residuals of 1e-6 all look like zero.
            residuals = np.log10(np.maximum(scores.residual, 1e-16))
            tf.summary.histogram("influence/log10_residual", residuals)
            tf.summary.scalar("influence/log10_largest_residual", residuals.max())
            tf.summary.scalar("influence/converged_fraction", scores.converged.mean())
            tf.summary.scalar("influence/passes", scores.passes)
        self._writer.flush()
