"""Derivatives by finite differences, judged element by element.

The derivative of a smooth function is the limit of both one-sided quotients

    right(h) = (f(x + h) - f(x)) / h        left(h) = (f(x) - f(x - h)) / h

and their mean, the central quotient, is off by O(h^2) from truncation and by O(eps / h) from
rounding, eps being the spacing of floating-point numbers at 1. The step ``h = eps^(1/3)`` balances
the two: in float64 the mean has about ten digits, in float32 about four.

An analytic derivative that misses the central quotient at that step is looked at again over a range
of steps. Strong curvature or rounding: some step agrees. Another branch of the function within the
step (relu near 0): a shorter step agrees. A kink (relu at 0, a tie in max-pooling): the one-sided
quotients stay apart however short the step, and every number between them is a subgradient. What is
left is a wrong derivative.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

import torch
from torch import Tensor

Tensors = Sequence[Tensor]
Function = Callable[..., tuple[Tensor, ...]]

ELEMENTWISE = 256  # an input of at most so many elements is checked one by one
GROUP = 16  # of a larger one, groups that disagree are halved down to this size
SUSPECTS = 64  # so many elements that disagree are looked at again

# The usual step first; the closer ones tell a kink from curvature, the longer one a wrong
# derivative from rounding.
_STEPS = (1.0, 1 / 30, 1 / 900, 30.0, 1e-5)
_CLOSER = (0, 1, 2)


@dataclass(frozen=True)
class Finding:
    """How an analytic derivative compares with finite differences, at the worst element.

    Attributes:
        ok: Whether it agrees everywhere, kinks aside.
        absolute: Absolute error.
        relative: The same, relative to the larger of the two.
        where: Index of the element; of a tensor too large to go through, that it was projected.
        analytic: The derivative under test.
        numerical: The central difference quotient.
        kinks: What was found at places where the function is not differentiable.
        quotients: All central quotients, in the shape of the tensor, real and imaginary parts
            side by side; None of a tensor too large to go through.
    """

    ok: bool
    absolute: float
    relative: float
    where: str
    analytic: float
    numerical: float
    kinks: tuple[str, ...] = ()
    quotients: Tensor | None = field(default=None, compare=False, repr=False)


_NOTHING = Finding(True, 0.0, 0.0, "", 0.0, 0.0)


def machine_epsilon(tensors: Tensors) -> float:
    """The spacing at 1 of the least precise floating-point tensor among ``tensors``."""
    return max((torch.finfo(t.dtype).eps for t in tensors if _is_float(t)), default=0.0)


def real(tensor: Tensor) -> Tensor:
    """``tensor``, or real and imaginary parts side by side."""
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def check_gradients(
    function: Function, tensors: Tensors, cotangents: Tensors, gradients: Tensors
) -> Iterator[Finding]:
    """Compare gradients with finite differences, one finding a tensor.

    Args:
        function: Pure function of ``tensors``; returns a tuple of tensors.
        tensors: The point, floating or complex.
        cotangents: One for each output; the gradients are those of ``Re <output, cotangent>``.
        gradients: One for each tensor.
    """
    tensors = [t.detach().contiguous() for t in tensors]
    with torch.no_grad():
        outputs = function(*tensors)
        project = _Projection(outputs, cotangents)
        eps = machine_epsilon([*tensors, *outputs])
        for i, gradient in enumerate(gradients):

            def outputs_at(part: Tensor, i: int = i) -> tuple[Tensor, ...]:
                moved = torch.view_as_complex(part) if tensors[i].is_complex() else part
                return function(*tensors[:i], moved, *tensors[i + 1 :])

            point = real(tensors[i])
            steps = (_cube_root(eps) * _scale(point)).flatten()
            yield _Input(outputs_at, outputs, project, point, steps, eps).check(gradient)


def check_tangents(
    function: Function, tensors: Tensors, directions: Tensors, tangents: Tensors
) -> Iterator[Finding]:
    """Compare directional derivatives with finite differences, one finding an output.

    Args:
        function: Pure function of ``tensors``; returns a tuple of tensors.
        tensors: The point, floating or complex.
        directions: One for each tensor.
        tangents: One for each output: its derivative along ``directions``.
    """
    tensors = [t.detach() for t in tensors]
    with torch.no_grad():
        middle = function(*tensors)
        eps = machine_epsilon([*tensors, *middle])

        def at(step: float) -> tuple[Tensor, ...]:
            moved = (t + step * d for t, d in zip(tensors, directions, strict=True))
            return function(*moved)

        base = _cube_root(eps)
        sides = [(at(base * scale), at(-base * scale)) for scale in _STEPS]
        for k, tangent in enumerate(tangents):
            analytic = real(tangent.detach()).flatten().double()

            def quotients(scale: float, rows: Tensor, k: int = k) -> "_Quotients":
                up, down = sides[_STEPS.index(scale)]
                a, b, c = (real(x[k]).flatten()[rows].double() for x in (up, middle, down))
                return _Quotients.of(a, b, c, base * scale, eps)

            rows = torch.arange(analytic.numel(), device=analytic.device)
            numerical = quotients(1.0, rows).central
            suspects = _disagreeing(analytic, numerical, eps)
            shape = tuple(real(tangent).shape)
            yield _judge(analytic, numerical, quotients, suspects, eps, shape)


@dataclass(frozen=True)
class _Quotients:
    """One-sided difference quotients of several derivatives, and the rounding error in them."""

    left: Tensor
    right: Tensor
    noise: Tensor

    @classmethod
    def of(cls, up: Tensor, middle: Tensor, down: Tensor, step: float, eps: float) -> "_Quotients":
        noise = 8 * eps * torch.maximum(up.abs(), down.abs()) / step
        return cls(_minus(middle, down) / step, _minus(up, middle) / step, noise)

    @property
    def central(self) -> Tensor:
        return (self.left + self.right) / 2


class _Projection:
    """``Re <output, cotangent>`` of changes of the outputs."""

    def __init__(self, outputs: Tensors, cotangents: Tensors) -> None:
        self._cotangents = [
            real(c).to(torch.promote_types(real(c).dtype, torch.float64)).flatten()
            for c in cotangents
        ]
        self._plain = all(bool(o.isfinite().all()) for o in outputs)

    def change(self, to: Tensors, start: Tensors) -> Tensor:
        """The projection of ``to - start``, a scalar; outputs that stay infinite have not moved."""
        parts = []
        for a, b, cotangent in zip(to, start, self._cotangents, strict=True):
            difference = a - b if self._plain else _minus(a, b)
            parts.append(torch.dot(real(difference).reshape(-1).to(cotangent.dtype), cotangent))
        return _total(parts)

    def noise(self, outputs: Tensors, to: Tensors, eps: float) -> Tensor:
        """Rounding error of ``change``: that of the outputs that moved."""
        parts = []
        for a, b, cotangent in zip(outputs, to, self._cotangents, strict=True):
            moved = (real(a) != real(b)).flatten() & real(a).isfinite().flatten()
            parts.append((real(a).flatten().to(cotangent.dtype)[moved] * cotangent[moved]).norm())
        return 8 * eps * _total(parts)


def _total(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.stack(parts).sum()


@dataclass(frozen=True)
class _Input:
    """One input under differentiation, all others held fixed.

    Attributes:
        outputs_at: The outputs as a function of this input.
        outputs: Their values at the point.
        project: Turns changes of the outputs into a number.
        point: The input, real.
        steps: ``(N,)`` usual step of each element.
        eps: Machine epsilon of the computation.
    """

    outputs_at: Callable[[Tensor], tuple[Tensor, ...]]
    outputs: Tensors
    project: _Projection
    point: Tensor
    steps: Tensor
    eps: float

    def check(self, gradient: Tensor) -> Finding:
        """Compare the gradient with finite differences."""
        analytic = real(gradient.detach()).reshape(-1).double()
        if not len(analytic):
            return _NOTHING
        shape = tuple(self.point.shape)
        if len(analytic) <= ELEMENTWISE:
            numerical = self.central() if self.may_have_kinks(analytic) else self.forward()
            suspects = _disagreeing(analytic, numerical, self.eps)
            finding = _judge(analytic, numerical, self.quotients, suspects, self.eps, shape)
            return replace(finding, quotients=numerical.view(shape))

        found = list(islice(self.suspects(analytic), SUSPECTS))
        if found:  # the others agree
            suspects = torch.tensor(found, device=analytic.device)
            return _judge(analytic, analytic, self.quotients, suspects, self.eps, shape)
        every = torch.arange(len(analytic), device=analytic.device)
        error, _ = self.miss(every, analytic)
        absolute = error / float(self.steps.double().square().mean().sqrt())
        size = float(analytic.norm())
        where = f"along one direction of all {len(analytic)}"
        return Finding(True, absolute, absolute / size if size else absolute, where, 0.0, 0.0)

    def may_have_kinks(self, analytic: Tensor) -> bool:
        """Whether the function bends along a random direction by more than a smooth one would."""
        step = (self.steps * _signs(self.steps)).view(self.point.shape)
        up, down = self.outputs_at(self.point + step), self.outputs_at(self.point - step)
        bend = self.project.change(up, self.outputs) + self.project.change(down, self.outputs)
        smooth = 1e-3 * (analytic * self.steps.double()).norm()
        return self.eps > 1e-10 or not bool(bend.abs() <= smooth)

    def central(self) -> Tensor:
        """Central quotients of all elements."""
        changes = [
            self.project.change(self.outputs_at(self.point + s), self.outputs_at(self.point - s))
            for s in self._one_by_one(self.steps)
        ]
        return torch.stack(changes).double() / (2 * self.steps.double())

    def forward(self) -> Tensor:
        """Forward quotients of all elements: the loop whose speed matters.

        Half the calls of central ones, and digits enough to tell which to look at again.
        """
        lengths = self.steps / 30
        changes = [
            self.project.change(self.outputs_at(self.point + s), self.outputs)
            for s in self._one_by_one(lengths)
        ]
        return torch.stack(changes).double() / lengths.double()

    def _one_by_one(self, lengths: Tensor) -> tuple[Tensor, ...]:
        return torch.diag(lengths).view(-1, *self.point.shape).unbind()

    def quotients(self, scale: float, rows: Tensor) -> _Quotients:
        """Difference quotients of the elements ``rows``, at ``scale`` times the usual step."""
        left, right, noise = [], [], []
        for row in rows:
            step = self._moved(row, scale * self.steps)
            up, down = self.outputs_at(self.point + step), self.outputs_at(self.point - step)
            left.append(self.project.change(self.outputs, down))
            right.append(self.project.change(up, self.outputs))
            noise.append(
                self.project.noise(self.outputs, up, self.eps)
                + self.project.noise(self.outputs, down, self.eps)
            )
        lengths = (self.steps[rows] * scale).double()
        return _Quotients(*(torch.stack(q).double() / lengths for q in (left, right, noise)))

    def suspects(self, analytic: Tensor) -> Iterator[int]:
        """Elements whose derivative disagrees: groups that disagree are halved."""
        groups = [torch.arange(len(analytic), device=analytic.device)]
        while groups:
            rows = groups.pop()
            if len(rows) <= GROUP:
                close = self.quotients(1.0, rows).central
                wrong = ~((analytic[rows] - close).abs() <= _allowed(close, analytic, self.eps))
                yield from rows[wrong].tolist()
                continue
            error, allowed = self.miss(rows, analytic)
            if not error <= allowed:
                groups += rows.tensor_split(2)

    def miss(self, rows: Tensor, analytic: Tensor) -> tuple[float, float]:
        """Error of the change along the elements ``rows`` at once, and the error allowed."""
        lengths = self.steps * _signs(self.steps)
        step = self._moved(rows, lengths)
        up, down = self.outputs_at(self.point + step), self.outputs_at(self.point - step)
        change = self.project.change(up, down).double() / 2
        expected = analytic * step.flatten().double()
        noise = self.project.noise(self.outputs, up, self.eps)
        allowed = 0.2 * _cube_root(self.eps) * expected.norm() + noise
        return float((change - expected.sum()).abs()), float(allowed)

    def _moved(self, rows: Tensor, lengths: Tensor) -> Tensor:
        step = torch.zeros_like(self.steps)
        step[rows] = lengths[rows]
        return step.view(self.point.shape)


def _judge(
    analytic: Tensor,
    numerical: Tensor,
    quotients: Callable[[float, Tensor], _Quotients],
    suspects: Tensor,
    eps: float,
    shape: tuple[int, ...],
) -> Finding:
    """Look again at ``suspects``, and report the worst element.

    Args:
        analytic: ``(N,)`` derivatives under test.
        numerical: ``(N,)`` central quotients at the usual step.
        quotients: Difference quotients of some elements, at a step so many times the usual.
        suspects: Indices of elements that may be wrong.
        eps: Machine epsilon of the computation.
        shape: Of the tensor that the elements make up.
    """
    if not analytic.numel():
        return _NOTHING
    some = analytic[suspects]
    looks = [quotients(scale, suspects) for scale in _STEPS] if len(suspects) else []
    kinks: tuple[str, ...] = ()
    wrong = on_kink = torch.zeros_like(some, dtype=torch.bool)
    if looks:
        allowed = _allowed(some, analytic, eps)
        central = torch.stack([look.central for look in looks])
        noise = torch.stack([look.noise for look in looks])
        # A step too short to tell right from wrong for the rounding error does not acquit.
        excused = noise.minimum((4 * noise[0]).maximum(1e-3 * some.abs()))
        errors = ((some - central).abs() - excused).nan_to_num(nan=torch.inf)
        agrees = (errors <= allowed).any(0) | _same_not_finite(some, central).any(0)
        jumps = _jumps(*(looks[i] for i in _CLOSER))
        on_kink = ~agrees & (jumps | _is_subgradient(some, looks[0], looks[1], allowed))
        wrong = ~agrees & ~on_kink
        nearest = central.gather(0, errors.argmin(0, keepdim=True))[0]
        numerical = numerical.index_put((suspects,), torch.where(agrees, nearest, central[0]))
        kinks = tuple(
            f"{place(int(suspects[j]), shape)} "
            + (
                "lies on a jump"
                if jumps[j]
                else f"has slope {looks[1].left[j]:.4g} from the left and "
                f"{looks[1].right[j]:.4g} from the right"
            )
            + f"; the derivative given is {some[j]:.4g}"
            for j in on_kink.nonzero().flatten().tolist()
        )
    error = (analytic - numerical).abs()
    error = error.nan_to_num(nan=0.0).index_put((suspects[on_kink],), error.new_zeros(()))
    if wrong.any():
        error = error.index_put(
            (suspects[wrong & ~error[suspects].gt(0)],), error.new_tensor(torch.inf)
        )
        index = int(suspects[wrong][error[suspects[wrong]].argmax()])
    else:
        index = int(error.argmax())
    a, n = float(analytic[index]), float(numerical[index])
    absolute, size = float(error[index]), max(abs(a), abs(n))
    relative = absolute / size if size and absolute else absolute
    return Finding(not wrong.any(), absolute, relative, place(index, shape), a, n, kinks)


def _is_subgradient(some: Tensor, look: _Quotients, closer: _Quotients, allowed: Tensor) -> Tensor:
    """Where one-sided slopes stay apart at a shorter step, and ``some`` lies between them."""
    gap, gap_closer = look.right - look.left, closer.right - closer.left
    stays_apart = (gap_closer.abs() > 0.5 * gap.abs()) & (gap_closer.abs() > 4 * closer.noise)
    edge_of_domain = look.left.isfinite() != look.right.isfinite()
    slopes = torch.stack([closer.left, closer.right])
    low = slopes.amin(0).nan_to_num(nan=-torch.inf, neginf=-torch.inf)
    high = slopes.amax(0).nan_to_num(nan=torch.inf, posinf=torch.inf)
    slack = allowed + closer.noise.nan_to_num(nan=0.0, posinf=0.0)
    # Nor has a vertical tangent a derivative: the quotients grow without bound.
    grows = slopes.abs() > 3 * torch.stack([look.left, look.right]).abs()
    vertical = some.isinf() & (grows & (slopes * some > 0)).any(0)
    between = (low - slack <= some) & (some <= high + slack)
    return ((stays_apart | edge_of_domain) & between) | vertical


def _jumps(*looks: _Quotients) -> Tensor:
    """Where the function itself jumps: a difference that is the same at every step."""
    lengths = [_STEPS[i] for i in _CLOSER]
    found = []
    for side in ("left", "right"):
        jump = torch.stack([getattr(q, side) * h for q, h in zip(looks, lengths, strict=True)])
        noise = torch.stack([q.noise * h for q, h in zip(looks, lengths, strict=True)])
        same = (jump - jump[0]).abs() <= 0.1 * jump[0].abs()
        found.append((same & (jump.abs() > 4 * noise)).all(0))
    return found[0] | found[1]


def place(index: int, shape: tuple[int, ...]) -> str:
    """Return the index of the element number ``index`` of a tensor of ``shape``, to be read."""
    place = []
    for size in reversed(shape):
        index, remainder = divmod(index, size)
        place.append(remainder)
    return str(place[::-1])


def _allowed(some: Tensor, every: Tensor, eps: float) -> Tensor:
    """Error allowed for the derivatives ``some``, among all of a tensor."""
    finite = every[every.isfinite()]
    largest = finite.abs().max() if finite.numel() else some.new_zeros(())
    sizes = some.abs().nan_to_num(nan=0.0, posinf=0.0)
    return _cube_root(eps) * (sizes + 0.01 * largest)


def _disagreeing(analytic: Tensor, numerical: Tensor, eps: float) -> Tensor:
    """Indices where the two differ by more than is allowed, or where one is not a number."""
    allowed = _allowed(analytic, analytic, eps)
    return (~((analytic - numerical).abs() <= allowed)).nonzero().flatten()


def _cube_root(eps: float) -> float:
    return float(eps ** (1 / 3))


def _signs(like: Tensor) -> Tensor:
    return torch.randint(2, like.shape, device=like.device).mul_(2).sub_(1)


def _same_not_finite(a: Tensor, b: Tensor) -> Tensor:
    return (a.isnan() & b.isnan()) | (a.isinf() & (a == b))


def _minus(a: Tensor, b: Tensor) -> Tensor:
    """``a - b``, zero where they are equal infinities."""
    return torch.where(a == b, torch.zeros_like(a), a - b)


def _scale(tensor: Tensor) -> Tensor:
    """The size of each element, at least the root mean square of all: what a step is relative to.

    1 where all are zero.
    """
    finite = tensor[tensor.isfinite()]
    typical = finite.square().mean().sqrt() if finite.numel() else tensor.new_ones(())
    typical = torch.where(typical > 0, typical, torch.ones_like(typical))
    return torch.maximum(tensor.abs(), typical).nan_to_num(posinf=1.0, nan=1.0)


def _is_float(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()
