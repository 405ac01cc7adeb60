"""Resizing of images: linear in the image, one axis at a time.

TensorFlow calls the gradient of bilinear resizing "not differentiable", and counts it as
constant; those of the other ways it does not know. Here a gradient is two products with small
matrices, the operation's own result for unit vectors, so that every method, alignment and
antialiasing is met exactly and all further derivatives are those of products. (`ResizeArea` has
no gradient at all: no model can be trained through it.)
"""

import tensorflow as tf


def _resize(operation):
    """The gradient of an operation that takes an image and a size."""

    def gradient(original, op, upstream):
        image = op.inputs[0]
        options = {name: op.get_attr(name) for name in ("align_corners", "half_pixel_centers")}

        def column(units, length, axis):
            return operation(images=units, size=[length, 1], **options)

        return _by_matrices(column, image, upstream), None

    return gradient


def _scale_and_translate(original, op, upstream):
    image, _, scale, translation = op.inputs
    options = {name: op.get_attr(name) for name in ("kernel_type", "antialias")}

    def column(units, length, axis):
        return tf.raw_ops.ScaleAndTranslate(
            images=units,
            size=[length, 1],
            scale=[scale[axis], 1.0],
            translation=[translation[axis], 0.0],
            **options,
        )

    return _by_matrices(column, image, upstream), None, None, None


def _by_matrices(column, image, upstream):
    """Σ_op P[h, o] upstream[o, p] Q[w, p] for the weights P of rows and Q of columns.

    Args:
        column: resizes images of one column to a length, as rows (axis 0) or columns (1) are.
        image: (b, h, w, c).
        upstream: (b, o, p, c).
    """
    dtype = upstream.dtype if image.dtype.size < upstream.dtype.size else image.dtype
    weights = []
    for axis in (0, 1):
        units = tf.eye(tf.shape(image)[1 + axis], dtype=image.dtype)[:, :, None, None]
        resized = column(units, tf.shape(upstream)[1 + axis], axis)
        weights.append(tf.cast(resized[:, :, 0, 0], dtype))
    rows, columns = weights
    found = tf.einsum("ho,bopc,wp->bhwc", rows, tf.cast(upstream, dtype), columns)
    return tf.cast(tf.ensure_shape(found, image.shape), image.dtype)


def _crop_and_resize_image(original, op, upstream):
    """∂/∂image ⟨grads, crop(image, boxes)⟩, paired with U: ⟨grads, crop(U, boxes)⟩."""
    grads, boxes, owner, _ = op.inputs
    method = op.get_attr("method")
    size = tf.shape(grads)[1:3]
    found = tf.raw_ops.CropAndResize(
        image=upstream, boxes=boxes, box_ind=owner, crop_size=size, method=method
    )
    moved = tf.raw_ops.CropAndResizeGradBoxes(
        grads=grads, image=upstream, boxes=boxes, box_ind=owner
    )
    return tf.cast(found, grads.dtype), moved, None, None


GRADIENTS = {
    "ResizeBilinear": _resize(tf.raw_ops.ResizeBilinear),
    "ResizeBicubic": _resize(tf.raw_ops.ResizeBicubic),
    "ResizeNearestNeighbor": _resize(tf.raw_ops.ResizeNearestNeighbor),
    "ScaleAndTranslate": _scale_and_translate,
    "CropAndResizeGradImage": _crop_and_resize_image,
}
