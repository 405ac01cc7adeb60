"""The layers that a model is made of, and what a layer holds."""


def layers_of(model, itself=True):
    """A model's layers, those inside of layers too, and itself first unless that is not wanted."""
    return model._flatten_layers(include_self=itself)


def leaves_of(model):
    """The layers that are made of no others."""
    return [layer for layer in layers_of(model) if not layer._layers]


def inputs_of(model):
    """The tensors that a graph of layers begins with; none of another model."""
    return getattr(model, "_inputs", None) or ()


def holding(layer, kernel, bias):
    """A new layer, with variables of others for those that it would make when it is built."""
    layer._kernel, layer.bias, layer.built = kernel, bias, True
    return layer


def holding_rows(layer, embeddings):
    """A new embedding, with another's table for the one that it would make when it is built."""
    layer._embeddings, layer.built = embeddings, True
    return layer


def adds_losses(layer):
    """Whether a layer has ever added to the loss by `add_loss`."""
    return bool(layer._loss_ids)


def losses_added_by(layer):
    """What a layer has added to the loss in this scope, by `add_loss` or an activity regulariser."""
    return layer._get_own_losses()
