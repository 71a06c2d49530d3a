"""Block images, taken apart."""


def blocks_of(data):
    """The signal and the null block of each example, cut out through the masks."""
    n, channels, rows, width = data.images.shape
    masks = data.signal_masks.expand_as(data.images)
    shape = (n, channels, rows // 2, width)
    return data.images[masks].reshape(shape), data.images[~masks].reshape(shape)
