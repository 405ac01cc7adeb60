"""The CTC loss (Graves et al. 2006), whose gradients TensorFlow cannot differentiate.

One of its two is an operation that gives loss and slope, the other a function that does; neither
has derivatives of the slope. Both give what they gave, and the slope has those of the loss as
defined: -log of the sum over all paths, by the forward recursion,

    α_t(s) = y_t(l_s) + log(e^α_{t-1}(s) + e^α_{t-1}(s - 1) + [a skip is allowed] e^α_{t-1}(s - 2))

with y the log-probabilities, and l the labels with blanks between them and at both ends.
"""

import tensorflow as tf
from tensorflow.python.ops import ctc_ops, gen_ctc_ops

# Stands for log 0: a difference of two of them is a number.
_NEVER = -1e30


def _loss_and_slope(original, logits, labels, label_length, logit_length, unique=None):
    """`ctc_ops.ctc_loss_and_grad`, of logits (T, b, C) whose class 0 is the blank."""
    loss, slope = original(logits, labels, label_length, logit_length, unique)
    return loss, _curved(slope, logits, lambda z: _loss(z, labels, label_length, logit_length))


def _operation(original, inputs, labels_indices, labels_values, sequence_length, *rest, **options):
    """`gen_ctc_ops.ctc_loss`, of logits (T, b, C) whose last class is the blank."""
    given = labels_indices, labels_values, sequence_length
    if (
        any(rest)
        or options.get("preprocess_collapse_repeated")
        or not options.get("ctc_merge_repeated", True)
    ):
        return original(inputs, *given, *rest, **options)

    @tf.custom_gradient
    def loss_and_slope(z):
        loss, slope = original(z, *given, *rest, **options)
        count = tf.shape(z, tf.int64)[1]
        longest = tf.reduce_max(tf.concat([labels_indices[:, 1] + 1, [0]], 0))
        labels = tf.scatter_nd(labels_indices, labels_values + 1, tf.stack([count, longest]))
        length = tf.math.bincount(
            tf.cast(labels_indices[:, 0], tf.int32), minlength=tf.cast(count, tf.int32)
        )
        slope = _curved(
            slope, z, lambda z: _loss(tf.roll(z, 1, axis=2), labels, length, sequence_length)
        )
        return (loss, slope), lambda upstream, _: upstream[None, :, None] * slope

    return loss_and_slope(inputs)


def _curved(slope, logits, loss_of):
    """The slope, with the second derivative of a loss for its gradient."""

    @tf.custom_gradient
    def curved(z):
        def gradient(upstream):
            with tf.GradientTape() as outer:
                outer.watch(z)
                with tf.GradientTape() as inner:
                    inner.watch(z)
                    loss = tf.reduce_sum(loss_of(z))
                found = inner.gradient(loss, z)
            return outer.gradient(found, z, output_gradients=upstream)

        return tf.identity(slope), gradient

    return curved(logits)


def _loss(logits, labels, label_length, logit_length):
    """-log of the probability of each example's labels, (b,)."""
    labels = tf.cast(labels, tf.int32)
    count, longest = tf.shape(labels)[0], tf.shape(labels)[1]
    blank = tf.zeros([count, longest + 1], tf.int32)
    between = tf.reshape(tf.stack([blank[:, 1:], labels], 2), [count, 2 * longest])
    states = tf.concat([between, blank[:, :1]], 1)
    y = tf.transpose(tf.nn.log_softmax(logits), [1, 0, 2])
    y = tf.transpose(tf.gather(y, states, axis=2, batch_dims=1), [1, 0, 2])
    skips = tf.concat([tf.zeros_like(states[:, :2]), states[:, :-2]], 1)[:, : 2 * longest + 1]
    skips = states != skips  # Blanks have a blank there.
    going = tf.range(tf.shape(y)[0])[:, None] < tf.cast(logit_length, tf.int32)
    never = tf.constant(_NEVER, y.dtype)

    def later(alpha, by):
        return tf.pad(alpha, [[0, 0], [by, 0]], constant_values=never)[:, : 2 * longest + 1]

    def step(alpha, now):
        emitted, runs = now
        skipped = tf.where(skips, later(alpha, 2), never)
        found = emitted + tf.reduce_logsumexp([alpha, later(alpha, 1), skipped], 0)
        return tf.where(runs[:, None], found, alpha)

    first = tf.where(tf.range(2 * longest + 1)[None] < 2, y[0], never)
    alpha = tf.foldl(step, (y[1:], going[1:]), first)
    ends = 2 * tf.cast(label_length, tf.int32)[:, None] - [[0, 1]]
    last = tf.gather(alpha, tf.maximum(ends, 0), batch_dims=1)
    return -tf.reduce_logsumexp(tf.where(ends >= 0, last, never), 1)


FUNCTIONS = {
    (ctc_ops, "ctc_loss_and_grad"): _loss_and_slope,
    (gen_ctc_ops, "ctc_loss"): _operation,
}
