"""Into which blocks the weights of a network fall."""

from keras_influence.engine.layers.channel_part import ChannelPart
from keras_influence.engine.layers.channels import split_of
from keras_influence.engine.layers.gradient_part import GradientPart
from keras_influence.engine.layers.matrix_part import MatrixPart
from keras_influence.engine.layers.own import Own
from keras_influence.engine.layers.rest_part import RestPart
from keras_influence.engine.layers.sites import weights_of
from keras_influence.engine.layers.views import as_matrix


def parts_of(parameters, signals):
    """The parts that cover all of θ.

    Args:
        parameters: the `Parameters` θ.
        signals: `pseudo.PseudoSignals` of the layers that are looked at, which but for an `Own` are
            linear in their weights. What the outputs depend on by other ways too is no layer's.
    """
    parts, taken, sites = [], set(), signals.sites
    seen = [v for v, elsewhere in zip(parameters.variables, signals.elsewhere) if not elsewhere]
    for layer in dict.fromkeys(site.layer for site in sites):
        own = [v for v in weights_of(layer) if any(v is s for s in seen) and id(v) not in taken]
        calls = [site for site in sites if site.layer is layer]
        # In a kernel the number of examples is not known; what has another first axis has no examples.
        by_example = all(site.outputs.shape[0] is None for site in calls)
        view = as_matrix(calls[0])
        if view is not None and any(v is view.kernel for v in own):
            # A matrix that other layers multiply by too is one matrix.
            calls = [site for site in sites if _has(site.layer, view.kernel)]
            part = MatrixPart([site.layer for site in calls], view, parameters, by_example)
            parts.append(part)
            taken |= {id(v) for v in part.weights}
            own = [v for v in own if id(v) not in taken]
        if isinstance(layer, Own):
            for width in sorted({_width(v) for v in own}):
                wide = [v for v in own if _width(v) == width]
                parts.append(GradientPart(layer, wide, parameters))
            taken |= {id(v) for v in own}
            continue
        split = split_of(layer, own)
        if split is not None:
            parts.append(ChannelPart(layer, split, parameters, by_example))
            taken |= {id(v) for v in split.weights}
    rest = [v for v in parameters.variables if id(v) not in taken]
    silent = all(signals.gradients[parameters.index(v)] is None for v in rest)
    return [*parts, RestPart(rest, parameters, silent)] if rest else parts


def _width(variable):
    return variable.shape[-1] if len(variable.shape) else 1


def _has(layer, variable):
    return any(v is variable for v in weights_of(layer))
