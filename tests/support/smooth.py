"""Networks without kinks, for tests that compare two ways to compute."""


def smoothed(set_attribute):
    """Put a soft ReLU and a mean in the place of ReLU and maximum, by set_attribute(where, name,
    value).
    """
    from torch import nn

    from localavg.models import dpn, resnet

    for module in (nn.functional, resnet, dpn):
        set_attribute(module, "relu", lambda x, inplace=False: nn.functional.softplus(x))
    set_attribute(
        nn.functional,
        "max_pool2d",
        lambda x, kernel, stride, padding, dilation, ceil_mode, return_indices: (
            nn.functional.avg_pool2d(x, kernel, stride, padding, ceil_mode)
        ),
    )
