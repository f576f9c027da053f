"""torchvision's networks in loops of float64 NumPy, channels first: the tests' independent oracle.

A network draws each array when its forward pass first asks for it, under torchvision's name and in
PyTorch's shape: one run gives a state dict and the logits that belong to it.
"""

import numpy as np

INCEPTION = {  # 1x1; 3x3 reduction, 3x3; "5x5" reduction, "5x5"; pool projection
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}


def relu(x):
    return np.maximum(x, 0)


def max_pool(x, window, stride, padding=0, ceil_mode=False):
    """ceil_mode adds a window where pixels are left over, unless it would start in the padding."""
    x = np.pad(x, [(0, 0)] * 2 + [(padding, padding)] * 2, constant_values=-np.inf)
    starts = []
    for size in x.shape[2:]:
        whole = [i for i in range(0, size, stride) if i + window <= size]
        after = whole[-1] + stride
        left_over = whole[-1] + window < size and after < size - padding
        starts.append(whole + [after] * (ceil_mode and left_over))
    rows = [
        np.stack([x[..., i : i + window, j : j + window].max((2, 3)) for j in starts[1]], -1)
        for i in starts[0]
    ]
    return np.stack(rows, -2)


def adaptive_avg_pool(x, out):
    bounds = [
        [(int(np.floor(i * n / out)), int(np.ceil((i + 1) * n / out))) for i in range(out)]
        for n in x.shape[2:]
    ]
    rows = [
        np.stack([x[..., a:b, c:d].mean((2, 3)) for c, d in bounds[1]], -1) for a, b in bounds[0]
    ]
    return np.stack(rows, -2)


class Network:
    """Layers by torchvision's names; `state` fills up as they are used."""

    def __init__(self, seed=0, train=False):
        self.rng = np.random.default_rng(seed)
        self.train = train
        self.state = {}

    def array(self, name, draw, *shape):
        if name not in self.state:
            self.state[name] = draw(size=shape).astype(np.float32)
        return self.state[name].astype(np.float64)

    def normal(self, std):
        return lambda size: self.rng.normal(0, std, size)

    def conv(self, x, name, features, size, stride=1, padding=0, dilation=1, bias=False):
        fan_in = x.shape[1] * size**2
        kernel = self.array(
            f"{name}.weight", self.normal(np.sqrt(2 / fan_in)), features, x.shape[1], size, size
        )
        x = np.pad(x, [(0, 0)] * 2 + [(padding, padding)] * 2)
        extent = dilation * (size - 1)
        y = 0
        for i in range(size):
            for j in range(size):
                rows = slice(i * dilation, x.shape[2] - extent + i * dilation, stride)
                columns = slice(j * dilation, x.shape[3] - extent + j * dilation, stride)
                y = y + np.einsum("nchw,oc->nohw", x[:, :, rows, columns], kernel[:, :, i, j])
        if bias:
            y = y + self.array(f"{name}.bias", self.normal(0.1), features)[:, None, None]
        return y

    def batch_norm(self, x, name, epsilon=1e-5):
        width = x.shape[1]
        scale = self.array(f"{name}.weight", lambda size: self.rng.uniform(0.5, 1.5, size), width)
        bias = self.array(f"{name}.bias", self.normal(0.1), width)
        mean = self.array(f"{name}.running_mean", self.normal(0.1), width)
        var = self.array(
            f"{name}.running_var", lambda size: self.rng.uniform(0.5, 1.5, size), width
        )
        self.state[f"{name}.num_batches_tracked"] = np.array(7)
        if self.train:
            mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3))
        mean, var, scale, bias = (v[:, None, None] for v in (mean, var, scale, bias))
        return (x - mean) / np.sqrt(var + epsilon) * scale + bias

    def linear(self, x, name, features):
        fan_in = x.shape[1]
        kernel = self.array(f"{name}.weight", self.normal(np.sqrt(2 / fan_in)), features, fan_in)
        return x @ kernel.T + self.array(f"{name}.bias", self.normal(0.1), features)


def resnet(net, x, *, bottleneck, depths, width, classes, small=False, dilation=1):
    if small:
        x = net.conv(x, "conv1", width, 3, padding=dilation, dilation=dilation)
    else:
        x = net.conv(x, "conv1", width, 7, stride=2, padding=3 * dilation, dilation=dilation)
    x = relu(net.batch_norm(x, "bn1"))
    if not small:
        x = max_pool(x, 3, 2, padding=1)
    for stage, depth in enumerate(depths):
        for i in range(depth):
            stride = 2 if stage and not i else 1
            block = bottleneck_block if bottleneck else basic_block
            d = 1 if stage else dilation
            x = block(net, x, f"layer{stage + 1}.{i}", width * 2**stage, stride, d)
    return net.linear(x.mean((2, 3)), "fc", classes)


def basic_block(net, x, name, width, stride, d):
    y = net.conv(x, f"{name}.conv1", width, 3, stride, padding=d, dilation=d)
    y = relu(net.batch_norm(y, f"{name}.bn1"))
    y = net.conv(y, f"{name}.conv2", width, 3, padding=d, dilation=d)
    y = net.batch_norm(y, f"{name}.bn2")
    return relu(y + shortcut(net, x, name, width, stride))


def bottleneck_block(net, x, name, width, stride, d):
    y = relu(net.batch_norm(net.conv(x, f"{name}.conv1", width, 1), f"{name}.bn1"))
    y = net.conv(y, f"{name}.conv2", width, 3, stride, padding=d, dilation=d)
    y = relu(net.batch_norm(y, f"{name}.bn2"))
    y = net.batch_norm(net.conv(y, f"{name}.conv3", 4 * width, 1), f"{name}.bn3")
    return relu(y + shortcut(net, x, name, 4 * width, stride))


def shortcut(net, x, name, features, stride):
    if stride == 1 and x.shape[1] == features:
        return x
    x = net.conv(x, f"{name}.downsample.0", features, 1, stride)
    return net.batch_norm(x, f"{name}.downsample.1")


def vgg(net, x, *, depths, width, hidden, classes, batch_norm):
    index = 0
    for depth, multiple in zip(depths, (1, 2, 4, 8, 8), strict=True):
        for _ in range(depth):
            x = net.conv(x, f"features.{index}", multiple * width, 3, padding=1, bias=True)
            if batch_norm:
                x = net.batch_norm(x, f"features.{index + 1}")
            x = relu(x)
            index += 3 if batch_norm else 2
        x = max_pool(x, 2, 2)
        index += 1
    x = adaptive_avg_pool(x, 7).reshape(len(x), -1)
    x = relu(net.linear(x, "classifier.0", hidden))
    x = relu(net.linear(x, "classifier.3", hidden))
    return net.linear(x, "classifier.6", classes)


def googlenet(net, x, *, width, classes):
    """Logits, and a list of the auxiliary ones (without dropout)."""

    def conv(x, name, features, size, stride=1):
        features = features * width // 64
        x = net.conv(x, f"{name}.conv", features, size, stride, padding=size // 2)
        return relu(net.batch_norm(x, f"{name}.bn", epsilon=1e-3))

    def inception(x, name, a, b_in, b, c_in, c, d):
        return np.concatenate(
            [
                conv(x, f"{name}.branch1", a, 1),
                conv(conv(x, f"{name}.branch2.0", b_in, 1), f"{name}.branch2.1", b, 3),
                conv(conv(x, f"{name}.branch3.0", c_in, 1), f"{name}.branch3.1", c, 3),
                conv(max_pool(x, 3, 1, padding=1), f"{name}.branch4.1", d, 1),
            ],
            axis=1,
        )

    def auxiliary(x, name):
        x = conv(adaptive_avg_pool(x, 4), f"{name}.conv", 128, 1).reshape(len(x), -1)
        return net.linear(relu(net.linear(x, f"{name}.fc1", 16 * width)), f"{name}.fc2", classes)

    scale, shift = np.array([0.229, 0.224, 0.225]), np.array([0.485, 0.456, 0.406])
    x = (x * scale[:, None, None] + shift[:, None, None] - 0.5) / 0.5
    x = max_pool(conv(x, "conv1", 64, 7, stride=2), 3, 2, ceil_mode=True)
    x = conv(conv(x, "conv2", 64, 1), "conv3", 192, 3)
    aux = []
    for name, widths in INCEPTION.items():
        if name in ("3a", "4a"):
            x = max_pool(x, 3, 2, ceil_mode=True)
        if name == "5a":
            x = max_pool(x, 2, 2, ceil_mode=True)
        x = inception(x, f"inception{name}", *widths)
        if name in ("4a", "4d"):
            aux.append(auxiliary(x, f"aux{len(aux) + 1}"))
    return net.linear(x.mean((2, 3)), "fc", classes), aux
