"""Where our outcome is not torch.nn's on purpose, each with its reason."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from tests.properties.outcomes import Arguments, Outcome, close
from tests.properties.tensors import Made

Applies = Callable[[Arguments, Outcome, Outcome, str], bool]


@dataclass(frozen=True)
class Known:
    """One kind of calls whose outcome differs.

    Attributes:
        ops: Names in ``manual_ops.functional``; none for any.
        where: What differs: ``error``, ``results`` or the name of a tensor.
        reason: Why that is better, or as good.
        applies: Whether a call is of this kind, by its arguments and both outcomes.
    """

    ops: tuple[str, ...]
    where: str
    reason: str
    applies: Applies


def _made(arguments: Arguments) -> list[Made]:
    return [value for value in arguments.values() if isinstance(value, Made)]


def _empty(arguments: Arguments, *_: object) -> bool:
    return any(0 in made.shape for made in _made(arguments))


def _mixed_devices(arguments: Arguments, *_: object) -> bool:
    return len({made.device for made in _made(arguments)}) > 1


def _torch_refuses(*words: str) -> Applies:
    """Torch.nn raises, in one of these words, what has a right answer, which we give."""

    def applies(_: Arguments, ours: Outcome, theirs: Outcome, where: str) -> bool:
        return ours.stage == "done" and any(word in str(theirs.error) for word in words)

    return applies


def _we_refuse(*words: str, when: Callable[[Arguments], bool] = lambda _: True) -> Applies:
    """We raise, in one of these words, where torch.nn goes on, or raises something else."""

    def applies(arguments: Arguments, ours: Outcome, theirs: Outcome, where: str) -> bool:
        return when(arguments) and any(word in str(ours.error) for word in words)

    return applies


def _both_refuse(*words: str) -> Applies:
    """Of two mistakes we name another one than torch.nn, in these words."""

    def applies(_: Arguments, ours: Outcome, theirs: Outcome, where: str) -> bool:
        return theirs.error is not None and all(word in str(ours.error) for word in words)

    return applies


def _names_what_is_no_tensor(_: Arguments, ours: Outcome, theirs: Outcome, where: str) -> bool:
    return type(ours.error) is TypeError and type(theirs.error) is AttributeError


def _earlier(_: Arguments, ours: Outcome, theirs: Outcome, where: str) -> bool:
    stages = (ours.stage, theirs.stage)
    return stages == ("forward", "backward") and type(ours.error) is type(theirs.error)


def _in_place_of_overlap(arguments: Arguments, *_: object) -> bool:
    input = arguments.get("input")
    return bool(arguments.get("inplace")) and isinstance(input, Made) and input.layout == "overlap"


def _only_at_nan(arguments: Arguments, ours: Outcome, theirs: Outcome, where: str) -> bool:
    """Outcomes differ only where the input is NaN."""
    elsewhere = ~arguments["input"].build().detach().isnan()
    return close(ours.tensors[where][elsewhere], theirs.tensors[where][elsewhere])


def _only_beyond_numbers(_: Arguments, ours: Outcome, theirs: Outcome, where: str) -> bool:
    """Outcomes differ only where both are infinite or NaN."""
    if where not in ours.tensors:
        return False
    here, there = ours.tensors[where], theirs.tensors[where]
    if here.shape != there.shape:
        return False
    known = here.isfinite() | there.isfinite()
    return close(here[known], there[known])


def _only_where_torch_is_nan(_: Arguments, ours: Outcome, theirs: Outcome, where: str) -> bool:
    """Outcomes differ only where torch.nn's is NaN."""
    if where not in ours.tensors or ours.tensors[where].shape != theirs.tensors[where].shape:
        return False
    here, there = ours.tensors[where], theirs.tensors[where]
    return close(here[~there.isnan()], there[~there.isnan()])


def _only_where_torch_is_not_finite(
    _: Arguments, ours: Outcome, theirs: Outcome, where: str
) -> bool:
    here, there = ours.tensors[where], theirs.tensors[where]
    return close(here[there.isfinite()], there[there.isfinite()])


def _only_where_ours_is_nan(_: Arguments, ours: Outcome, theirs: Outcome, where: str) -> bool:
    return _only_where_torch_is_nan(_, theirs, ours, where)


def _mixed_dtypes(arguments: Arguments, *_: object) -> bool:
    return len({made.dtype for made in _made(arguments)}) > 1


def _to_float32(_: Arguments, ours: Outcome, theirs: Outcome, where: str) -> bool:
    """In float64 outcomes agree to what float32 resolves."""
    here, there = ours.tensors[where], theirs.tensors[where]
    return here.dtype == torch.float64 and torch.allclose(
        here, there, rtol=1e-7, atol=0, equal_nan=True
    )


def _half(arguments: Arguments, *_: object) -> bool:
    return any(made.dtype.itemsize == 2 for made in _made(arguments))


def _certain(arguments: Arguments, *_: object) -> bool:
    probability = arguments["input"].build()
    return bool(((probability == 0) | (probability == 1)).any())


def _one_element(arguments: Arguments, *_: object) -> bool:
    if "normalized_shape" in arguments:
        return torch.Size(arguments["normalized_shape"]).numel() == 1
    _n, c, *image = arguments["input"].shape
    return torch.Size((c, *image)).numel() == arguments["num_groups"]


def _two_values(arguments: Arguments, *_: object) -> bool:
    """Whether each mean is one of two values."""
    if "normalized_shape" in arguments:
        return torch.Size(arguments["normalized_shape"]).numel() == 2
    n, c, *image = arguments["input"].shape
    if "num_groups" in arguments:
        return torch.Size((c, *image)).numel() == 2 * arguments["num_groups"]
    return torch.Size((n, *image)).numel() == 2


def _no_keys(arguments: Arguments, *_: object) -> bool:
    return arguments["key"].shape[0 if "num_heads" in arguments else -2] == 0


CONVOLUTIONS = ("conv1d", "conv2d", "conv2d_relu", "batch_norm_relu_conv2d")
CLASS_LOSSES = ("nll_loss", "cross_entropy", "linear_cross_entropy")
SUMS = (
    *CLASS_LOSSES,
    *(
        "softmax",
        "log_softmax",
        "linear",
        "linear_relu",
        *CONVOLUTIONS,
        "avg_pool2d",
        "adaptive_avg_pool2d",
    ),
    *("batch_norm", "layer_norm", "group_norm", "mse_loss", "binary_cross_entropy_with_logits"),
    *("scaled_dot_product_attention", "multi_head_attention_forward"),
)
ATTENTION = ("scaled_dot_product_attention", "multi_head_attention_forward")

KNOWN: tuple[Known, ...] = (
    Known(
        (),
        "error",
        "a TypeError names the argument that is not a Tensor; torch.nn misses an attribute of it",
        _names_what_is_no_tensor,
    ),
    Known((), "error", "the same error, in forward instead of backward", _earlier),
    Known(
        (),
        "",
        "torch.nn's kernels compare devices here and there, if at all",
        _mixed_devices,
    ),
    Known(
        (),
        "",
        "what is written in place of overlapping elements depends on the order, in torch.nn too",
        _in_place_of_overlap,
    ),
    Known(
        ("dropout",),
        "error",
        "a leaf that requires grad is refused in place also where it is empty",
        _we_refuse("a leaf Variable that requires grad", when=_empty),
    ),
    Known(
        ("elu",),
        "error",
        "torch.nn has no backward of elu in place with a negative alpha",
        _torch_refuses("In-place elu backward calculation is triggered with a negative slope"),
    ),
    Known(
        ("relu6", "elu", "hardswish"),
        "gradient of input",
        "at NaN torch.nn's depends on whether its kernel takes the element alone or with others",
        _only_at_nan,
    ),
    Known(
        ("gelu",),
        "error",
        "torch.nn's backward by oneDNN refuses overlapping strides of the gradient above",
        _torch_refuses("could not construct a memory descriptor"),
    ),
    Known(
        ("linear", "linear_relu"),
        "error",
        "one unnamed output may have a bias of one element, whatever the dims of input",
        _torch_refuses("mat2 must be a matrix"),
    ),
    Known(
        ("nll_loss",),
        "error",
        "torch.nn has no backward for images in channels_last",
        _torch_refuses("grad_input must be contiguous"),
    ),
    Known(
        CLASS_LOSSES,
        "error",
        "of labels of uint8 torch.nn takes some in forward alone, and some not at all",
        _torch_refuses("expected scalar type Long but found Byte", "Expected dtype int32/int64"),
    ),
    Known(
        CLASS_LOSSES,
        "error",
        "a label of uint8 out of bounds: torch.nn cannot print it",
        lambda _, ours, theirs, where: (
            (type(ours.error), type(theirs.error)) == (IndexError, UnicodeDecodeError)
        ),
    ),
    Known(
        CLASS_LOSSES,
        "error",
        "of two mistakes we name the weight that requires grad",
        _both_refuse("not differentiable with respect to argument 'weight'"),
    ),
    Known(
        ("nll_loss", "cross_entropy"),
        "error",
        "no batch dim in input but one in target: torch.nn refuses two classes or more",
        lambda arguments, ours, *_: (
            len(arguments["input"].shape) == 1
            and len(arguments["target"].shape) == 1
            and ours.stage == "backward"
        ),
    ),
    Known(
        SUMS,
        "",
        "the order of sums decides between infinity and NaN",
        _only_beyond_numbers,
    ),
    Known(
        CONVOLUTIONS,
        "gradient",
        "torch.nn multiplies padding by an infinite gradient, which is NaN; we leave padding out",
        _only_where_torch_is_nan,
    ),
    Known(
        ("mse_loss",),
        "gradient of weight",
        "losses less their mean cancel, in half precision to the rounding of either",
        _half,
    ),
    Known(
        ("layer_norm", "group_norm"),
        "gradient of input",
        "of one element the gradient is 0 but for rounding",
        _one_element,
    ),
    Known(
        ("group_norm",),
        "error",
        "of two mistakes we name num_groups",
        _both_refuse("num_groups"),
    ),
    Known(
        ("batch_norm", "batch_norm_relu_conv2d"),
        "error",
        "shapes that do not fit are refused also where input is empty",
        _we_refuse("batch_norm: expected", when=_empty),
    ),
    Known(
        ("batch_norm", "batch_norm_relu_conv2d"),
        "error",
        "torch.nn overwrites running statistics whose elements share memory",
        _we_refuse("more than one element of the written-to tensor"),
    ),
    Known(
        ("batch_norm", "batch_norm_relu_conv2d"),
        "error",
        "without channels there is no channel of one value",
        lambda arguments, ours, *_: ours.stage == "done" and _empty(arguments),
    ),
    Known(
        ("embedding",),
        "error",
        "padding_idx 0 is outside a table without rows",
        _we_refuse("padding_idx must be within the 0 rows"),
    ),
    Known(
        ("cross_entropy", "linear_cross_entropy"),
        "error",
        "label_smoothing outside [0, 1] is refused also beside probabilities",
        _we_refuse("label_smoothing must be between"),
    ),
    Known(
        ("binary_cross_entropy",),
        "gradient of target",
        "the value clamps both logarithms at -100; ours is its gradient, torch.nn's clamps nothing",
        _certain,
    ),
    Known(
        ("binary_cross_entropy",),
        "gradient of input",
        "torch.nn's bound 1e-12 of the denominator is rounded to float32",
        _to_float32,
    ),
    Known(
        ("adaptive_avg_pool2d",),
        "error",
        "torch.nn has no backward of an output without elements",
        _torch_refuses("Expected grad_output to have non-zero"),
    ),
    Known(
        ("batch_norm", "batch_norm_relu_conv2d"),
        "error",
        "of two mistakes we name the shape of input, or what is missing",
        _both_refuse("batch_norm: expected"),
    ),
    Known(
        ("batch_norm", "batch_norm_relu_conv2d"),
        "error",
        "without channels torch.nn's kernel has none to look at, whether there is one value or not",
        _both_refuse("index 0 out of range for tensor of size [0]"),
    ),
    Known(
        CONVOLUTIONS,
        "error",
        "a bias of another dtype is refused; some of torch.nn's kernels convert it",
        _we_refuse("expected bias of weight's dtype"),
    ),
    Known(
        CONVOLUTIONS,
        "gradient",
        "an infinite gradient times 0 in a padded place is NaN, in torch.nn on some paths only",
        _only_where_ours_is_nan,
    ),
    Known(
        ("multi_head_attention_forward",),
        "outputs",
        "output and weights come from one Function: where one requires grad, so does the other",
        lambda _, ours, *__: ours.structure == (True, True),
    ),
    Known(
        ("binary_cross_entropy_with_logits", "binary_cross_entropy", "mse_loss"),
        "gradient",
        "of two dtypes the narrower one overflows",
        _mixed_dtypes,
    ),
    Known(
        CLASS_LOSSES,
        "error",
        "one weight without dims for one class: torch.nn takes it for a vector",
        lambda arguments, *_: (
            isinstance(arguments["weight"], Made) and not arguments["weight"].shape
        ),
    ),
    Known(
        CLASS_LOSSES,
        "error",
        "an input without dims: another of its checks is the first",
        _both_refuse("Expected 1 or more dimensions"),
    ),
    Known(
        ("cross_entropy", "linear_cross_entropy"),
        "output",
        "label smoothing without classes: torch.nn divides 0 by 0",
        lambda arguments, *_: _empty(arguments) and _only_where_torch_is_nan(arguments, *_),
    ),
    Known(
        CONVOLUTIONS,
        "error",
        "of two dtypes that do not fit we name another one",
        _both_refuse("not implemented for"),
    ),
    Known(
        CONVOLUTIONS,
        "error",
        "dtypes of what is empty",
        lambda arguments, *_: _empty(arguments),
    ),
    Known(
        ATTENTION,
        "",
        "overflow in scores: the fused kernel that torch.nn's choice of path avoids gives NaN",
        _only_where_ours_is_nan,
    ),
    Known(
        ATTENTION,
        "",
        "ATen's fused kernel, which torch.nn takes for some dims alone, misreads elements that "
        "share memory; expanded ones in half precision",
        lambda arguments, *_: any(
            m.layout == "overlap" or (m.layout == "expanded" and _half(arguments))
            for m in _made(arguments)
        ),
    ),
    Known(
        ("multi_head_attention_forward",),
        "error",
        "shapes are checked in another order",
        lambda _, ours, theirs, where: None not in (ours.error, theirs.error),
    ),
    Known(
        ("multi_head_attention_forward",),
        "error",
        "shapes that broadcast or reshape are taken",
        _torch_refuses("Dimension out of range", "is invalid for input of size", "mat2 must be"),
    ),
    Known(
        CLASS_LOSSES,
        "error",
        "without classes there is no label to be right",
        _we_refuse("with size 0", "out of bounds", when=_empty),
    ),
    Known(
        ("layer_norm", "group_norm"),
        "error",
        "weight and bias of two floating dtypes are taken as they are",
        _torch_refuses("expected scalar type", "mixed dtype"),
    ),
    Known(
        ("batch_norm", "batch_norm_relu_conv2d"),
        "error",
        "running statistics keep their dtype, whatever that of input, when training",
        _torch_refuses("expected scalar type", "mixed dtype"),
    ),
    Known(
        ("batch_norm", "batch_norm_relu_conv2d"),
        "gradient",
        "in evaluation torch.nn's backward reads strided running statistics as if contiguous",
        lambda arguments, *_: any(
            isinstance(arguments[name], Made) and arguments[name].layout != "contiguous"
            for name in ("running_mean", "running_var")
        ),
    ),
    Known(
        ("scaled_dot_product_attention",),
        "error",
        "key and value of other numbers of heads are refused, as torch.nn's documentation does",
        _we_refuse("as many heads in key as in value"),
    ),
    Known(
        ("linear_cross_entropy",),
        "gradient",
        "of one class the gradient is 0 but for rounding",
        lambda arguments, *_: arguments["linear_weight"].shape[0] == 1,
    ),
    Known(
        CLASS_LOSSES,
        "error",
        "of two mistakes we name the size of a target beside one sample",
        _both_refuse("For 1D input, 1D target must have size 1"),
    ),
    Known(
        ("multi_head_attention_forward",),
        "gradient",
        "of weights that are 0 and 1 but for rounding it is what terms leave when they cancel",
        lambda arguments, *_: any(m.values in ("grid", "huge") for m in _made(arguments)),
    ),
    Known(
        ("batch_norm", "layer_norm", "group_norm"),
        "gradient of input",
        "of two values the gradient is what its terms leave when they cancel",
        _two_values,
    ),
    Known(
        ("batch_norm", "layer_norm", "group_norm"),
        "gradient",
        "of the largest numbers torch.nn's terms overflow first",
        lambda arguments, *_: (
            any(made.values in ("huge", "extreme") for made in _made(arguments))
            and _only_where_torch_is_not_finite(arguments, *_)
        ),
    ),
    Known(
        ("batch_norm", "batch_norm_relu_conv2d"),
        "error",
        "of boolean running statistics both refuse something",
        _both_refuse("with a bool tensor is not supported"),
    ),
    Known(
        ("batch_norm",),
        "error",
        "dtypes of what is empty",
        _empty,
    ),
    Known(
        ("mse_loss",),
        "error",
        "torch.nn subtracts booleans without a weight alone",
        _torch_refuses("Subtraction, the `-` operator, with a bool tensor"),
    ),
    Known(
        ("embedding",),
        "error",
        "of two mistakes we name the dims of weight",
        _both_refuse("'weight' must be 2-D"),
    ),
    Known(
        ("linear", "linear_relu"),
        "error",
        "a 1-D weight is one output, whose bias has one element; torch.nn adds what broadcasts",
        _we_refuse(
            "doesn't match the broadcast shape",
            when=lambda arguments: len(arguments["weight"].shape) == 1,
        ),
    ),
    Known(
        CONVOLUTIONS,
        "error",
        "of two mistakes we name padding='same' beside a stride",
        _both_refuse("padding='same' is not supported for strided"),
    ),
    Known(
        ("embedding",),
        "error",
        "torch.nn has no sparse gradient of one index without dims",
        _torch_refuses("too many indices for tensor of dimension 0"),
    ),
    Known(
        ("scaled_dot_product_attention",),
        "outputs",
        "an empty output of a mask that requires grad requires grad",
        _empty,
    ),
    Known(
        ("binary_cross_entropy_with_logits",),
        "gradient of input",
        "torch.nn's terms cancel where logits and pos_weight are large",
        _to_float32,
    ),
    Known(
        ATTENTION,
        "error",
        "shapes that do not fit are refused also where something is empty",
        _we_refuse("Expected", when=_empty),
    ),
    Known(
        ATTENTION,
        "error",
        "torch.nn cannot reshape what is empty",
        _torch_refuses("cannot reshape tensor of 0 elements"),
    ),
    Known(
        ATTENTION,
        "",
        "a query that may attend to no key gets 0, and overflow is NaN in torch.nn alone",
        _only_where_torch_is_nan,
    ),
    Known(
        ATTENTION,
        "",
        "NaN dropped is NaN times 0; torch.nn's fused kernel does not multiply",
        lambda arguments, *_: (
            arguments.get("dropout_p", 0) > 0 and _only_where_ours_is_nan(arguments, *_)
        ),
    ),
    Known(
        ATTENTION,
        "gradient",
        "NaN in weights is not lost where value has no features",
        lambda arguments, *_: _empty(arguments) and _only_where_ours_is_nan(arguments, *_),
    ),
    Known(
        ATTENTION,
        "error",
        "torch.nn takes no notice of a negative dropout_p, or where nothing is dropped",
        _we_refuse("Expected dropout_p between 0 and 1"),
    ),
    Known(
        ("scaled_dot_product_attention",),
        "results",
        "the gradient of a mask of which nothing depends is 0; torch.nn has none",
        _empty,
    ),
    Known(
        ATTENTION,
        "gradient",
        "without keys the output is 0 whatever the query is: its gradient is 0, torch.nn's NaN",
        _no_keys,
    ),
    Known(
        ("scaled_dot_product_attention",),
        "output 0",
        "torch.nn gives an empty output the query's shape, without broadcasting",
        _empty,
    ),
    Known(
        ("relu6", "leaky_relu", "elu", "silu", "hardswish", "hardsigmoid"),
        "error",
        "of integers in overlapping memory, both refused in place, ours names the integers",
        _both_refuse("not implemented for"),
    ),
    Known(
        ("hardsigmoid",),
        "gradient",
        "torch.nn multiplies by 1/6 rounded to float32, in float64 as well",
        lambda arguments, *_: arguments["input"].dtype == torch.float64,
    ),
    Known(
        ("leaky_relu",),
        "error",
        "torch.nn has no gradient in place where the slope is negative",
        _torch_refuses("In-place leakyReLu"),
    ),
    Known(
        ("batch_norm_relu_conv2d",),
        "error",
        "three calls of torch.nn are one here, which looks at all shapes before it begins",
        _both_refuse(""),
    ),
    Known(
        ("batch_norm_relu_conv2d",),
        "error",
        "images without a batch, and numbers for a residual, are refused",
        _we_refuse("batch_norm_relu_conv2d: expected"),
    ),
    Known(
        ("batch_norm_relu_conv2d",),
        "gradient",
        "what overflows on the way is computed again, or summed, in another order",
        lambda arguments, *_: any(made.values in ("huge", "extreme") for made in _made(arguments)),
    ),
)


def known_of(
    op: str, where: str, arguments: Arguments, ours: Outcome, theirs: Outcome
) -> Known | None:
    """Return why the outcomes of a call may differ, if they may."""
    for known in KNOWN:
        here = (not known.ops or op in known.ops) and where.startswith(known.where)
        if here and known.applies(arguments, ours, theirs, where):
            return known
    return None
