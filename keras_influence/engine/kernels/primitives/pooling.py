"""Max pooling: a choice of inputs, made once; what follows is linear.

TensorFlow's second derivative is wrong where the output is as large as the input (stride 1
with padding "same"): inside a `tf.function` the operation `MaxPoolGradGrad` writes its result
into the memory that it still reads. It is missing where the padding is given in numbers, and
for `max_pool_with_argmax`.

Here the place of the largest input of each window is found by `MaxPoolWithArgmax`, whose
choice among equals is that of TensorFlow's gradient on CPU: the first one. To send gradients
there and to fetch them from there are two linear maps, each the other's transpose.

In three dimensions TensorFlow's gradient gives each of several equals the whole, which is no
derivative of anything; here too it is one of them that gets it.
"""

import contextlib

import tensorflow as tf

_LAST, _FIRST = [0, 2, 3, 1], [0, 3, 1, 2]


def _max_pool(original, op, upstream):
    """The gradient of `MaxPool`: `upstream` at the chosen places, zero elsewhere."""
    if not _in_the_plane(op):
        return original(op, upstream)
    image, places, window = _chosen(op)
    slopes = _spread(image, places, _channels_last(op, upstream), window)
    if _is(op, "padding", "EXPLICIT"):
        before = _padding(op)[:, 0]
        slopes = tf.slice(slopes, before, tf.shape(_channels_last(op, op.inputs[0])))
    return tf.transpose(slopes, _FIRST) if _is(op, "data_format", "NCHW") else slopes


def _max_pool_3d(original, op, upstream):
    """The gradient of `MaxPool3D`: largest in each layer, then largest of the layers."""
    volume = op.inputs[0]
    axes = [1, 2, 3] if _is(op, "data_format", "NDHWC") else [2, 3, 4]
    if axes[0] == 2:
        volume, upstream = (tf.transpose(t, [0, 2, 3, 4, 1]) for t in (volume, upstream))
    (kd, kh, kw), (sd, sh, sw) = ([op.get_attr(a)[i] for i in axes] for a in ("ksize", "strides"))
    padding = _text(op.get_attr("padding"))
    flat = {"ksize": [1, kh, kw, 1], "strides": [1, sh, sw, 1], "padding": padding}
    deep = {"ksize": [1, kd, 1, 1], "strides": [1, sd, 1, 1], "padding": padding}

    size, out = tf.shape(volume), tf.shape(upstream)
    layers = tf.reshape(volume, tf.concat([[-1], size[2:]], 0))
    in_layers = _places(layers, flat)
    columns = [size[0], size[1], out[2] * out[3], size[4]]
    largest = tf.reshape(_fetch(layers, in_layers), columns)
    in_columns = _places(largest, deep)
    slopes = tf.reshape(upstream, [size[0], out[1], out[2] * out[3], size[4]])
    slopes = tf.reshape(_spread(largest, in_columns, slopes, deep), tf.shape(in_layers))
    slopes = tf.reshape(_spread(layers, in_layers, slopes, flat), size)
    return tf.transpose(slopes, [0, 4, 1, 2, 3]) if axes[0] == 2 else slopes


def _max_pool_grad_with_argmax(original, op, upstream):
    """The gradient of `_spread`."""
    places = op.inputs[2]
    if not op.get_attr("include_batch_in_index"):
        shape = tf.shape(upstream, places.dtype)
        first = tf.range(shape[0]) * tf.reduce_prod(shape[1:])
        places += first[:, None, None, None]
    return None, _fetch(upstream, places), None


def _spread(image, places, slopes, window):
    """Σ over windows of `slopes`, each at the place of its choice in `image`."""
    return tf.raw_ops.MaxPoolGradWithArgmax(
        input=image, grad=slopes, argmax=places, include_batch_in_index=True, **window
    )


def _fetch(image, places):
    found = tf.gather(tf.reshape(image, [-1]), tf.reshape(places, [-1]))
    return tf.reshape(found, tf.shape(places))


def _places(image, window):
    """Where in the flat image each window has its largest entry."""
    return tf.raw_ops.MaxPoolWithArgmax(
        input=image, include_batch_in_index=True, Targmax=tf.int64, **window
    ).argmax


def _chosen(op):
    """The pooled image, with channels last and padding by name; the places; the window."""
    window = {"ksize": op.get_attr("ksize"), "strides": op.get_attr("strides")}
    if _is(op, "data_format", "NCHW"):
        window = {name: [sizes[i] for i in _LAST] for name, sizes in window.items()}
    explicit = _is(op, "padding", "EXPLICIT")
    window["padding"] = "VALID" if explicit else _text(op.get_attr("padding"))
    with _graph_of(op.inputs[0]):
        image = _channels_last(op, op.inputs[0])
        if explicit:
            lowest = tf.constant(-float("inf"), image.dtype)
            image = tf.pad(image, _padding(op), constant_values=lowest)
        return image, _places(image, window), window


@contextlib.contextmanager
def _graph_of(tensor):
    """The graph of `tensor`, if the present one is inside of it: what is made there is made once.

    A loop over vectors asks for the same places in each round.
    """
    graph = None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()
    while graph is not None and graph is not getattr(tensor, "graph", None):
        graph = getattr(graph, "outer_graph", None)
    with contextlib.nullcontext() if graph is None else graph.as_default():
        yield


def _in_the_plane(op):
    channels = 1 if _is(op, "data_format", "NCHW") else 3
    known = _text(op.get_attr("data_format")) in ("NHWC", "NCHW")
    return known and op.get_attr("ksize")[0] == op.get_attr("ksize")[channels] == 1


def _channels_last(op, tensor):
    return tf.transpose(tensor, _LAST) if _is(op, "data_format", "NCHW") else tensor


def _padding(op):
    pairs = tf.reshape(tf.constant(op.get_attr("explicit_paddings")), [4, 2])
    return tf.gather(pairs, _LAST) if _is(op, "data_format", "NCHW") else pairs


def _is(op, name, value):
    return _text(op.get_attr(name)) == value


def _text(attribute):
    return attribute.decode() if isinstance(attribute, bytes) else attribute


GRADIENTS = {
    "MaxPool": _max_pool,
    "MaxPool3D": _max_pool_3d,
    "MaxPoolGradWithArgmax": _max_pool_grad_with_argmax,
}
