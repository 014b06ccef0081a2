"""The networks: known counts and work, a step of training with weights that lie in a flat row, and
learning the digits.
"""

import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode

from localavg.errors import UserError
from localavg.models import MODELS, make

# those everybody has, but for the sums written out here; biases and BatchNorm's two numbers a
# channel last
PARAMETERS = {
    "mlp": 64 * 128 + 128 * 128 + 128 * 10 + 2 * 128 + 10,
    "resnet8": 16 * 9 + 2 * 16 * 16 * 9 + 16 * 32 * (9 + 1) + 32 * 32 * 9 + 32 * 64 * (9 + 1) + 64 * 64 * 9 + 64 * 10
    + 10 + 2 * (3 * 16 + 3 * 32 + 3 * 64),
    "nin": 3 * 192 * 25 + 192 * 160 + 160 * 96 + 96 * 192 * 25 + 2 * 192 * 192 + 192 * 192 * 9 + 192 * 192 + 192 * 10
    + 2 * (192 + 160 + 96 + 5 * 192 + 10),
    "vgg": 14728266 + 512 * 512 + 512 + 2 * 512,  # VGG16, a hidden layer of 512 and its BatchNorm
    "vgg16": 14728266,
    "vgg19": 20040522,
    "googlenet": 6166250,
    "resnet18": 11173962,
    "preactresnet18": 11171146,
    "senet18": 11260354,
    "densenet": 6956298,
    "mobilenet": 3217226,
    "dpn26": 11574842,
    "dpn92": 34236634,
    "resnet50": 25557032,
    "alexnet": 61100840,
}  # fmt: skip

NORMALISED = {  # channels with BatchNorm, summed by hand from the papers' tables
    "mlp": 0,
    "resnet8": 3 * 16 + 3 * 32 + 3 * 64,
    "nin": 192 + 160 + 96 + 3 * 192 + 2 * 192 + 10,
    "vgg16": 2 * 64 + 2 * 128 + 3 * 256 + 6 * 512,
    "vgg": 2 * 64 + 2 * 128 + 3 * 256 + 6 * 512 + 512,
    "vgg19": 2 * 64 + 2 * 128 + 4 * 256 + 8 * 512,
    "resnet18": 5 * (64 + 128 + 256 + 512),
    "mobilenet": 32 + (32 + 64) + (64 + 128) + (128 + 128) + (128 + 256) + (256 + 256) + (256 + 512) + 5 * (512 + 512)
    + (512 + 1024) + (1024 + 1024),
    "resnet50": 26560,
    "alexnet": 0,
}  # fmt: skip

# millions an image, as published for these networks: they tell strides and pooling, which counts do
# not
MULTIPLICATIONS = {
    "vgg16": 313, "vgg19": 398, "googlenet": 1522, "resnet18": 555, "preactresnet18": 555, "senet18": 555, "densenet": 888,
    "mobilenet": 46.4, "dpn92": 2042, "resnet50": 4089, "alexnet": 714,
    # weights × pixels
    "nin": (14.4 + 30.7 + 15.4) * 1.024 + (460.8 + 2 * 36.9) * 0.256 + (331.8 + 36.9 + 1.9) * 0.064,
}  # fmt: skip

DROPOUT = {"nin": [0.5] * 2, "vgg": [0.3] + [0.4] * 7 + [0.5] * 2, "alexnet": [0.5] * 2}

DIGITS = {"mlp": (20, 0.1), "nin": (5, 0.05), "resnet8": (5, 0.05)}  # epochs, step size


def shape(name):
    """(H, W, C) of the images that a network was made for."""
    side = MODELS[name].side
    return side, side, 1 if side == 8 else 3


def classes(name):
    return 1000 if MODELS[name].side == 224 else 10


def statistics(net):
    """The floating-point buffers of a network."""
    return [b for b in net.buffers() if b.is_floating_point()]


def into_a_row(net):
    """Make the parameters views into one flat row [d], convolutions as O, H, W, I; return the
    row.
    """
    parameters = list(net.parameters())
    row = torch.empty(sum(p.numel() for p in parameters))  # [d]
    for p, segment in zip(parameters, row.split([p.numel() for p in parameters]), strict=True):
        if p.ndim == 4:
            o, i, h, w = p.shape
            view = segment.view(o, h, w, i).permute(0, 3, 1, 2)
        else:
            view = segment.view(p.shape)
        p.data = view.copy_(p.data)
    return row


@pytest.fixture(scope="module", params=MODELS)
def made(request):
    """(name, the network), made once."""
    torch.manual_seed(0)
    return request.param, make(request.param, shape(request.param), classes(request.param))


def test_parameter_counts_are_those_that_everybody_has(made):
    name, net = made
    assert sum(p.numel() for p in net.parameters()) == PARAMETERS[name]


def test_a_parameter_belongs_to_one_module_and_is_float32(made):
    _, net = made
    everywhere = list(net.named_parameters(remove_duplicate=False))
    assert len(everywhere) == len(list(net.parameters()))
    assert {p.dtype for _, p in everywhere} == {torch.float32}


def test_nothing_but_batchnorm_keeps_statistics(made):
    name, net = made
    layers = [m for m in net.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    assert sum(b.numel() for b in statistics(net)) == sum(
        2 * layer.num_features for layer in layers
    )
    if name in NORMALISED:
        assert sum(layer.num_features for layer in layers) == NORMALISED[name]


def test_dropout_is_where_the_papers_have_it(made):
    name, net = made
    assert [m.p for m in net.modules() if isinstance(m, nn.Dropout)] == DROPOUT.get(name, [])


def test_a_step_of_training_with_channels_last_weights_in_a_flat_row(made):
    """All weights get a gradient, stay in the row, and moving the row against it lowers the
    loss.
    """
    name, net = made
    h, w, c = shape(name)
    torch.manual_seed(1)
    x = torch.randn(2, c, h, w).to(memory_format=torch.channels_last)
    y = torch.tensor([1, 7])
    row = into_a_row(net)
    before = [b.clone() for b in statistics(net)]
    net.train()
    for m in net.modules():
        if isinstance(m, nn.Dropout):
            m.eval()
    logits = net(x)
    assert logits.shape == (2, classes(name)) and logits.dtype == torch.float32
    loss = cross_entropy(logits, y)
    loss.backward()
    assert [
        n for n, p in net.named_parameters() if p.grad is None or not p.grad.isfinite().all()
    ] == []
    assert [
        n
        for n, p in net.named_parameters()
        if p.untyped_storage().data_ptr() != row.untyped_storage().data_ptr()
    ] == []
    assert all(not torch.equal(a, b) for a, b in zip(before, statistics(net), strict=True))
    square = sum(p.grad.square().sum() for p in net.parameters())
    with torch.no_grad():
        for p in net.parameters():
            p -= 1e-3 * loss / square * p.grad
        assert cross_entropy(net(x), y) < loss
    net.zero_grad(set_to_none=True)


@pytest.mark.parametrize("name", MULTIPLICATIONS)
def test_the_work_an_image_takes_is_that_of_the_known_networks(name):
    h, w, c = shape(name)
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        make(name, shape(name), classes(name)).eval()(torch.empty(1, c, h, w))
    assert counter.get_total_flops() / 2e6 == pytest.approx(MULTIPLICATIONS[name], rel=5e-3)


@pytest.mark.parametrize(
    "name",
    [
        "googlenet",
        "dpn26",
        *(pytest.param(name, marks=pytest.mark.long) for name in ("senet18", "densenet")),
    ],
)
def test_where_weights_lie_does_not_change_what_is_computed(name, smooth):
    torch.manual_seed(0)
    plain, flat = (make(name, shape(name), 10) for _ in range(2))
    flat.load_state_dict(plain.state_dict())
    into_a_row(flat)
    h, w, c = shape(name)
    x, y = torch.randn(3, c, h, w), torch.tensor([0, 4, 9])
    for net in (plain, flat):
        net.eval()
        cross_entropy(net(x), y).backward()
    torch.testing.assert_close(flat(x), plain(x), rtol=1e-3, atol=1e-5)
    for p, q in zip(plain.parameters(), flat.parameters(), strict=True):
        torch.testing.assert_close(
            q.grad, p.grad, rtol=1e-2, atol=1e-4 * float(p.grad.abs().max()) + 1e-7
        )


@pytest.mark.parametrize("name", MODELS)
def test_the_smallest_images_and_any_number_of_channels(name):
    least = MODELS[name].least
    net = make(name, (least, least + 2, 2), 5).eval()
    with torch.no_grad():
        assert net(torch.randn(1, 2, least, least + 2)).shape == (1, 5)


@pytest.mark.parametrize("name", [name for name in MODELS if MODELS[name].least > 1])
@pytest.mark.parametrize("turn", [1, -1], ids=["low", "narrow"])
def test_smaller_images_are_refused_with_what_fits(name, turn):
    least = MODELS[name].least
    h, w = (least - 1, least + 5)[::turn]
    with pytest.raises(UserError) as error:
        make(name, (h, w, 3), 10)
    start, _, fitting = str(error.value).partition("; these fit: ")
    assert start == f"`model = {name}` takes images from {least}×{least} pixels on, not {h}×{w}"
    assert fitting.split(", ") == [other for other in MODELS if MODELS[other].least < least]


def test_images_without_pixels_or_channels_are_refused():
    with pytest.raises(UserError, match=r"not 0×8; these fit: none$"):
        make("mlp", (0, 8, 1), 10)
    with pytest.raises(
        UserError, match="`model = resnet18` takes images of 1 channel or more, not 0"
    ):
        make("resnet18", (32, 32, 0), 10)


def test_an_unknown_model_lists_the_known_ones():
    with pytest.raises(UserError) as error:
        make("resnet19", (32, 32, 3), 10)
    assert str(error.value) == f"`model = resnet19`: must be one of {', '.join(MODELS)}"


def test_the_table_loads_no_torch_and_making_a_model_does():
    code = """if True:
        import sys
        from localavg.models import MODELS, make
        assert "nin" in MODELS and "torch" not in sys.modules
        make("mlp", (8, 8, 1), 10)
        assert "torch" in sys.modules
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_rows_lead_to_modules():
    for name, row in MODELS.items():
        assert find_spec(f"localavg.models.{row.where.partition(':')[0]}"), name
        assert row.least <= row.side


def test_nin_is_the_papers_from_32_pixels_on_and_little_below():
    little, large = (
        sum(p.numel() for p in make("nin", (side, side, 3), 10).parameters()) for side in (31, 32)
    )
    assert little < 30_000 < 900_000 < large


def test_the_models_of_large_steps_start_from_the_norms_that_go_with_them():
    torch.manual_seed(0)
    nin, vgg = (make(name, (32, 32, 3), 10) for name in ("nin", "vgg"))
    for net, std in ((nin, lambda c: 0.05), (vgg, lambda c: (2 / 9 / c.out_channels) ** 0.5)):
        for c in (m for m in net.modules() if isinstance(m, nn.Conv2d)):
            assert float(c.weight.detach().std()) == pytest.approx(std(c), rel=0.1)


@pytest.fixture(scope="module")
def digits():
    """scikit-learn's digits in a seeded order: x, y of 1437 images to learn from, x, y of 360 to
    test.
    """
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    x = torch.tensor(data.images[order] / 16, dtype=torch.float32)[
        :, None
    ]  # [1797, 1, 8, 8] in [0, 1]
    y = torch.tensor(data.target[order])
    return x[:1437], y[:1437], x[1437:], y[1437:]


@pytest.mark.parametrize("name", ["mlp", "nin", pytest.param("resnet8", marks=pytest.mark.long)])
def test_the_small_networks_learn_the_digits(name, digits):
    """SGD, momentum 0.9, B = 32, the step size falling to 0 along a line over the epochs."""
    x, y, x_test, y_test = digits
    epochs, lr = DIGITS[name]
    torch.manual_seed(0)
    net = make(name, (8, 8, 1), 10)
    optimizer = torch.optim.SGD(net.parameters(), lr, momentum=0.9)
    falling = torch.optim.lr_scheduler.PolynomialLR(optimizer, epochs)
    for _ in range(epochs):
        for batch in torch.randperm(len(x)).split(32):
            optimizer.zero_grad()
            cross_entropy(net(x[batch]), y[batch]).backward()
            optimizer.step()
        falling.step()
    net.eval()
    with torch.no_grad():
        right = int((net(x_test).argmax(1) == y_test).sum())
    assert right / len(y_test) >= 0.97
