"""What models need to know about their inputs."""


def image_shape(
    model: str, input_shape: tuple[int, ...], smallest: int = 1
) -> tuple[int, int, int]:
    """Return ``input_shape`` as ``(channels, height, width)``.

    Args:
        model: Name of the model, for the message.
        input_shape: Shape of one input.
        smallest: Least height and width that the model's poolings leave a pixel of.

    Raises:
        ValueError: The input is no image, or too small.
    """
    if len(input_shape) != 3:
        raise ValueError(
            f"{model} needs images of shape (channels, height, width), got inputs of shape "
            f"{input_shape}; mlp takes any shape"
        )
    channels, height, width = input_shape
    if min(height, width) < smallest:
        raise ValueError(
            f"{model} needs images of at least {smallest}x{smallest} pixels, got {width}x{height}"
        )
    return channels, height, width
