"""The exported Keras network, rebuilt in PyTorch with the same weights."""

import functools

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader


class _ChannelsLast(nn.Module):
    def forward(self, x):
        return x.permute(0, 2, 3, 1).contiguous()


class _MaxPool(nn.Module):
    """2 x 2 pooling; `nn.MaxPool2d` has no second derivative under `torch.func.vmap`."""

    def forward(self, x):
        h, w = x.shape[-2] // 2, x.shape[-1] // 2
        return x[..., : 2 * h, : 2 * w].unflatten(-1, (w, 2)).unflatten(-3, (h, 2)).amax((-1, -3))


class Prepared:
    """A problem's network and data as PyTorch objects.

    Attributes:
        network: logits of images (n, c, h, w), PyTorch's layout.
        train, test: pairs of tensors, images in that layout.
    """

    def __init__(self, problem, threads):
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        self._problem = problem
        self.network = self.rebuilt()
        self.train = _tensors(problem.x_train, problem.y_train)
        self.test = _tensors(problem.x_test, problem.y_test)
        with torch.no_grad():
            x, y = self.test
            problem.check_loss(float(cross_entropy(self.network(x), y)))

    def rebuilt(self):
        """The network anew, for libraries that change the one that they are given."""
        return _network(self._problem.weights, strided=self._problem.kind.startswith("strided"))

    def batches(self, size, data=None):
        """The training data (or `data`) as a list of ready pairs, in order."""
        x, y = data or self.train
        return list(zip(x.split(size), y.split(size)))

    def loader(self, size, data=None):
        """The same as a `DataLoader` that does no work of its own."""
        return DataLoader(self.batches(size, data), batch_size=None)

    def dataset(self, data=None):
        return torch.utils.data.TensorDataset(*(data or self.train))

    def in_keras_order(self, rows):
        """(k, p) rows in the order of `network.parameters()`, as Keras orders its weights."""
        sizes = [p.numel() for p in self.network.parameters()]
        pieces = torch.as_tensor(rows).detach().split(sizes, dim=1)
        return np.concatenate(
            [
                _keras_layout(piece.reshape(-1, *p.shape)).reshape(len(piece), -1)
                for piece, p in zip(pieces, self.network.parameters())
            ],
            axis=1,
        )


class Ready(torch.utils.data.Dataset):
    """A dataset that hands over whole batches, for `collate_fn=lambda batch: batch`."""

    def __init__(self, x, y):
        self.x, self.y = x, y

    def __len__(self):
        return len(self.y)

    def __getitem__(self, index):
        return self.x[index], self.y[index]

    __getitems__ = __getitem__


cross_entropy = nn.functional.cross_entropy


def margin(logits, labels):
    """Logit of the label less the log-sum-exp of the others, one per example."""
    picked = labels[..., None] == torch.arange(logits.shape[-1])
    others = logits.masked_fill(picked, -torch.inf)
    return (logits * picked).sum(-1) - others.logsumexp(-1)


def target_function(problem):
    """`f(logits, labels)`, the sum over a batch of what is explained."""
    if problem.target == "margin":
        return lambda logits, labels: margin(logits, labels).sum()
    return functools.partial(cross_entropy, reduction="sum")


def _tensors(x, y):
    images = np.ascontiguousarray(np.moveaxis(x, 3, 1), np.float32)
    return torch.as_tensor(images), torch.as_tensor(np.asarray(y, np.int64))


def _network(weights, strided):
    """Convolutions, then dense layers, with relu between them.

    A convolution is valid and followed by 2 x 2 pooling, or `strided`: stride 2 and Keras's
    "same" padding of even sizes, one more row and column at the end.
    """
    modules, last = [], None
    for kernel, bias in zip(weights[::2], weights[1::2]):
        kernel, bias = torch.as_tensor(kernel).float(), torch.as_tensor(bias).float()
        if kernel.ndim == 4:
            modules += [nn.ZeroPad2d((0, 1, 0, 1))] if strided else []
            stride, pooling = (2, []) if strided else (1, [_MaxPool()])
            layer = nn.Conv2d(*kernel.shape[2:], tuple(kernel.shape[:2]), stride=stride)
            layer.weight.data = kernel.permute(3, 2, 0, 1).contiguous()
            after, last = [nn.ReLU(), *pooling], "conv"
        else:
            modules += {None: [nn.Flatten()], "conv": [_ChannelsLast(), nn.Flatten()]}.get(last, [])
            layer = nn.Linear(*kernel.shape)
            layer.weight.data = kernel.T.contiguous()
            after, last = [nn.ReLU()], "dense"
        layer.bias.data = bias
        modules += [layer, *after]
    return nn.Sequential(*modules[:-1])


def _keras_layout(batch):
    """(k, *torch shape) -> (k, *keras shape) of a kernel or bias."""
    order = {5: (0, 3, 4, 2, 1), 3: (0, 2, 1), 2: (0, 1)}[batch.ndim]
    return batch.permute(order).cpu().numpy()
