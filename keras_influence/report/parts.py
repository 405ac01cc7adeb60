"""How one example is shown: a thumbnail, text, a table of its numbers."""

import base64
import dataclasses
import io

import keras
import numpy as np

# Numbers of a vector that are features, each of a meaning of its own; more are a signal.
_FEATURES = 1000
# Rows of a table, and characters of a text, that are kept.
_ROWS, _CHARACTERS = 40, 2000
# A picture's longer side, in pixels; small ones are kept as they are.
_SIDE, _SMALL = 96, 40


@dataclasses.dataclass(frozen=True)
class Parts:
    """One example as it is shown.

    Attributes:
        images: pictures, arrays (height, width) or (height, width, channels).
        text: what can be read.
        numbers: dict from the names of features to numbers.
        rows: pairs of texts: what there is besides.
    """

    images: list
    text: str
    numbers: dict
    rows: list


def parts_of(inputs, feature_names=None, show=None):
    """How an example is shown.

    Args:
        inputs: a dict from names of inputs to arrays, as in `Examples`.
        feature_names: names of the features, where the input is one vector.
        show: a function of the example's input that says what to show: text, a picture, or a
            dict of numbers and texts.

    Raises:
        TypeError: `show` returns something else.
    """
    if show is not None:
        inputs = _as_inputs(show(inputs[""] if set(inputs) == {""} else inputs))
        feature_names = None
    found = Parts([], "", {}, [])
    texts = []
    for name, value in inputs.items():
        array = np.asarray(value)
        if array.dtype.kind in "OSU":
            texts.append((name, _text(array)))
        elif array.dtype.kind not in "biuf":
            found.rows.append((name, f"{array.dtype} of shape {array.shape}"))
        elif is_image(array):
            found.images.append(array)
        elif array.size == 1:
            found.numbers[name or "value"] = float(array.reshape(-1)[0])
        elif array.ndim == 1 and array.size <= _FEATURES:
            found.numbers.update(_features(array, name, feature_names))
        else:
            found.rows.extend(_summary(array, name))
    lines = [text if len(texts) == 1 else f"{name}: {text}" for name, text in texts]
    return dataclasses.replace(found, text="\n".join(lines)[:_CHARACTERS])


def _as_inputs(shown):
    if isinstance(shown, dict):
        return shown
    if isinstance(shown, (str, bytes)) or np.ndim(shown):
        return {"": shown}
    raise TypeError(
        "`show` should return text, an array or a dict of them for one example. "
        f"Received: {type(shown).__name__}"
    )


def _text(array):
    values = array.reshape(-1).tolist()
    return ", ".join(
        v.decode("utf-8", "replace") if isinstance(v, bytes) else str(v) for v in values
    )


def is_image(array):
    """(h, w), or (h, w, c) with one, three or four channels, neither side a sliver."""
    array = channels_last(array)
    sides = array.shape[:2]
    right = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 3, 4))
    return right and min(sides) >= 4 and max(sides) <= 8 * min(sides)


def channels_last(array):
    """A picture with its channels behind, as Keras's image format says where they are."""
    first = keras.config.image_data_format() == "channels_first"
    return np.moveaxis(array, 0, -1) if first and array.ndim == 3 else array


def _features(array, name, feature_names):
    if feature_names is not None and len(feature_names) != array.size:
        raise ValueError(
            f"`feature_names` should be {array.size} names, one for each feature. "
            f"Received: {len(feature_names)}"
        )
    names = [str(n) for n in (range(array.size) if feature_names is None else feature_names)]
    prefix = f"{name}/" if name and feature_names is None else ""
    return {f"{prefix}{n}": float(v) for n, v in zip(names, array)}


def _summary(array, name):
    prefix = f"{name} " if name else ""
    numbers = np.asarray(array, np.float64)
    found = {"shape": " × ".join(map(str, array.shape))}
    if numbers.size:
        found |= {"mean": f"{numbers.mean():.4g}", "deviation": f"{numbers.std():.4g}"}
        found |= {"smallest": f"{numbers.min():.4g}", "largest": f"{numbers.max():.4g}"}
    return [(prefix + key, value) for key, value in found.items()]


def table_of(parts):
    """The rows of an example's table, pairs of texts: the first of its numbers, and the rest."""
    rows = [(name, f"{value:.5g}") for name, value in parts.numbers.items()][:_ROWS]
    left = len(parts.numbers) - len(rows)
    return [*rows, *parts.rows, *([("…", f"{left} more features")] if left > 0 else [])]


# ---- pictures


def brightness(images):
    """The numbers that are black and white: (0, 1), (0, 255), (-1, 1), or what there is."""
    low = min((float(image.min()) for image in images), default=0.0)
    high = max((float(image.max()) for image in images), default=1.0)
    if images and images[0].dtype.kind in "iu" and low >= 0:
        return (0.0, 255.0) if high > 64 else (0.0, max(high, 1.0))
    for known in ((0.0, 1.0), (-1.0, 1.0)):
        if known[0] <= low and high <= known[1]:
            return known
    return (0.0, 255.0) if low >= 0 and 128 < high <= 255 else (low, high)


def thumbnail(image, limits):
    """A picture as a data URI; needs Pillow.

    Small ones are kept pixel by pixel (PNG), larger ones made smaller (WebP).

    Args:
        image: (height, width) or (height, width, channels).
        limits: the numbers that are black and white.
    """
    from PIL import Image

    low, high = limits
    image = np.squeeze(channels_last(np.asarray(image, np.float64)))
    scaled = np.clip((image - low) / ((high - low) or 1) * 255, 0, 255)
    picture = Image.fromarray(np.round(scaled).astype(np.uint8))
    file = io.BytesIO()
    if max(picture.size) <= _SMALL:
        picture.save(file, "PNG", optimize=True)
        kind = "png"
    else:
        picture.thumbnail((_SIDE, _SIDE))
        picture.save(file, "WEBP", quality=70)
        kind = "webp"
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
