"""Second moments of token activations, accumulated in float32 about a provisional mean.

Rows are tokens: x [T, n], r [T, d]. Padding never gets here.

Products of centred activations stay exact however far the mean is from zero: the first tokens' mean is subtracted
before anything is multiplied, and what that mean was off by is corrected in float64. (A Gram matrix accumulated about
zero and centred afterwards is the difference of two huge numbers: with mean^2 / variance near 1e6 it is no longer
positive definite.)

Products may round their factors (never their sums) to bfloat16 or TF32 where the machine multiplies those faster: the
result is the exact moment of activations that differ from the true ones by 0.2 % of their distance from the mean, so it
stays positive semi-definite, and the noise is far below every ridge. Only blocks on and above the diagonal are
computed.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import torch
from torch import Tensor

from faster_pruner.host.arithmetic import bfloat16_pays
from faster_pruner.host.mapped import zeros
from faster_pruner.host.ranks import Ranks
from faster_pruner.linalg.solve import solve_dtype

# Columns per strip of the symmetric update; narrower strips save little and multiply slower. A GPU wants larger
# products (its sizes are not measured).
_STRIP_ON_CPU, _STRIP_ELSEWHERE = 192, 1024
# Outputs whose error is computed together.
_OUTPUTS = 256
# Tokens that are collected before they are multiplied. CPU libraries generate code for every new shape of a product,
# for up to a millisecond, and batches come in many lengths.
_TOKENS_ON_CPU, _TOKENS_ELSEWHERE = 1024, 4096


@contextmanager
def reduced_products(device: torch.device) -> Generator[None]:
    """float32 matrix products round their factors to bfloat16 or TF32 where that pays; put back afterwards."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium" if device.type != "cpu" or bfloat16_pays() else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


class _TokenSums:
    """Sums over tokens of z = [x | r] - centre, [T, n + d]: of z, x' z and ||r||^2.

    Attributes:
        n: columns of x.
        centre: [n + d] float32, the provisional mean: that of the first tokens given.
        product: [n, n + d] float32, x' z, at home; blocks of x' x below the diagonal are wrong.
        total: [n + d] float64.
        square: 0-d float64, sum of ||r||^2.
        count: tokens.
    """

    def __init__(self, n: int, d: int, device: torch.device, home: torch.device | None = None) -> None:
        self.n, self.count = n, 0
        self.centre = torch.zeros(n + d, device=device)
        self.product = zeros((n, n + d), device=home or device)
        self.total = torch.zeros(n + d, dtype=solve_dtype(device), device=device)
        self.square = torch.zeros((), dtype=solve_dtype(device), device=device)
        on_cpu = device.type == "cpu"
        self._strip = _STRIP_ON_CPU if on_cpu else _STRIP_ELSEWHERE
        self._tokens = _TOKENS_ON_CPU if on_cpu else _TOKENS_ELSEWHERE
        self._waiting: Tensor | None = None
        self._filled, self._has_centre = 0, False

    def add(self, *parts: Tensor) -> None:
        """Add tokens: x [T, n], or x and r [T, d]."""
        count = parts[0].shape[0]
        widths = [part.shape[1] for part in parts]
        if count and not self._has_centre:
            self.centre = torch.cat([part.float().mean(dim=0) for part in parts])
            self._has_centre = True
        centres = self.centre.split(widths)
        start = 0
        while start < count:
            if self._waiting is None:
                self._waiting = zeros((self._tokens, self.total.numel()), device=self.total.device)
            stop = min(count, start + self._tokens - self._filled)
            rows = self._waiting[self._filled : self._filled + stop - start]
            for place, part, centre in zip(rows.split(widths, dim=1), parts, centres, strict=True):
                # one pass over memory: collected and centred
                torch.sub(part[start:stop], centre, out=place)
            self._filled += stop - start
            start = stop
            if self._filled == self._tokens:
                self._multiply(self._waiting)
        self.count += count
        if self.product.device != self.total.device:
            # where sums do not fit, neither do the tokens that wait for all of them
            self.finish()

    def finish(self) -> None:
        """Add what still waits."""
        if self._waiting is not None:
            if self._filled:
                self._multiply(self._waiting)
            self._waiting = None

    def share_centre(self, ranks: Ranks) -> None:
        """Take the first rank's centre, before anything is added here: factors are then rounded as in one process."""
        if ranks.alone:
            return
        found = torch.cat([self.centre, torch.full_like(self.centre[:1], self._has_centre)])
        ranks.broadcast_(found)
        if not ranks.first:
            assert not self.count, "tokens were added about another centre"
            self.centre, self._has_centre = found[:-1].clone(), bool(found[-1])

    def add_up(self, ranks: Ranks) -> None:
        """Make these the sums over the tokens of all ranks."""
        if ranks.alone:
            return
        self.finish()
        count = torch.tensor(self.count)
        ranks.sum_(count)
        if not self._centred_alike(ranks):
            self._move_to(self._mean_of_all(ranks, int(count)))
        ranks.sum_(self.product, self.total, self.square)
        self.count, self._has_centre = int(count), True

    def _centred_alike(self, ranks: Ranks) -> bool:
        """Whether all ranks have the first one's centre."""
        found = self.centre.clone()
        ranks.broadcast_(found)
        differ = torch.tensor(int(not torch.equal(found, self.centre)))
        ranks.sum_(differ)
        return not int(differ)

    def _mean_of_all(self, ranks: Ranks, count: int) -> Tensor:
        """[n + d] float32: the mean of the tokens of all ranks."""
        found = self.total + self.count * self.centre.to(self.total.dtype)
        ranks.sum_(found)
        return (found / max(1, count)).float()

    def _move_to(self, centre: Tensor) -> None:
        """The same sums about another centre."""
        s, off = self.total, self.centre.to(self.total.dtype) - centre.to(self.total.dtype)
        moved = self.product.to(s).addr_(off[: self.n], s).addr_(s[: self.n] + self.count * off[: self.n], off)
        self.product.copy_(moved)
        own, r = off[self.n :], s[self.n :]
        self.square += 2 * own @ r + self.count * own.square().sum()
        self.total, self.centre = s + self.count * off, centre

    def _multiply(self, z: Tensor) -> None:
        """Add the tokens z [tokens, n + d] that are filled."""
        z[self._filled :].zero_()
        with reduced_products(z.device):
            for start in range(0, self.n, self._strip):
                stop = min(self.n, start + self._strip)
                block, left, right = self.product[start:stop, start:], z[:, start:stop].T, z[:, start:]
                if block.device == z.device:
                    block.addmm_(left, right)
                else:
                    block += (left @ right).to(block.device)
        self.total += z.sum(dim=0).to(self.total.dtype)
        self.square += z[:, self.n :].square().sum().to(self.square.dtype)
        self._filled = 0


class SecondMoment:
    """Sums of x and of x' x.

    Args:
        n: columns of x.
        device: where x is.
        sums: of more than x, which this is a view of.
        home: where x' x is kept, if not there: on the CPU, for instance, where those of many layers are added up.
    """

    def __init__(
        self, n: int, device: torch.device, sums: _TokenSums | None = None, *, home: torch.device | None = None
    ) -> None:
        self._sums = sums or _TokenSums(n, 0, device, home)
        self._mirrored_at = 0

    def add(self, x: Tensor) -> None:
        """Add tokens x [T, n]."""
        self._sums.add(x)

    def finish(self) -> None:
        """Complete the sums and free what was needed to add to them; adding more is still possible."""
        self._sums.finish()

    def share_centre(self, ranks: Ranks) -> None:
        """Take the first rank's provisional mean, before anything is added on the others."""
        self._sums.share_centre(ranks)

    def add_up(self, ranks: Ranks) -> None:
        """Make this the moment of the tokens of all ranks."""
        self._sums.add_up(ranks)

    @property
    def count(self) -> int:
        """Tokens."""
        return self._sums.count

    @property
    def centre(self) -> Tensor:
        """[n] float32, the provisional mean that `about_centre` and `total_about_centre` are taken about."""
        self._sums.finish()
        return self._sums.centre[: self._sums.n]

    @property
    def about_centre(self) -> Tensor:
        """[n, n] float32, sum of ``(x - centre)' (x - centre)``, where it is kept."""
        self._sums.finish()
        gram = self._sums.product[:, : self._sums.n]
        if self._mirrored_at != self.count:
            for start in range(0, self._sums.n, _STRIP_ON_CPU):
                stop = start + _STRIP_ON_CPU
                square = gram[start:stop, start:stop]
                square.copy_(square.triu() + square.triu(1).T)
                gram[stop:, start:stop] = gram[start:stop, stop:].T
            self._mirrored_at = self.count
        return gram

    @property
    def total_about_centre(self) -> Tensor:
        """[n] float64, sum of ``x - centre``."""
        self._sums.finish()
        return self._sums.total[: self._sums.n]

    @property
    def total(self) -> Tensor:
        """[n] float64, sum of x."""
        return self.total_about_centre + self.count * self.centre.to(self.total_about_centre.dtype)

    @classmethod
    def of(cls, about_centre: Tensor, total_about_centre: Tensor, centre: Tensor, count: int) -> SecondMoment:
        """A moment from its parts."""
        made = cls(0, centre.device)
        made._sums.n, made._sums.product, made._sums.count = about_centre.shape[0], about_centre, count
        made._sums.total, made._sums.centre = total_about_centre, centre
        made._sums._has_centre, made._mirrored_at = True, count  # pyright: ignore[reportPrivateUsage]
        return made

    def plus(self, other: SecondMoment) -> SecondMoment:
        """The moment of both sets of tokens, about the centre of the larger one."""
        first, second = (self, other) if self.count >= other.count else (other, self)
        centre = first.centre
        own = first.about_centre
        both = (own + second._about(centre).to(own.device)).to(own.dtype)
        total = first.total_about_centre + second.total - second.count * centre.to(second.total.dtype)
        return SecondMoment.of(both, total, centre, first.count + second.count)

    def _about(self, point: Tensor) -> Tensor:
        """[n, n] float64: sum of ``(x - point)' (x - point)`` for a point [n]."""
        s = self.total_about_centre
        c = self.centre.to(s.dtype) - point.to(s.dtype)
        return self.about_centre.to(s, copy=True).addr_(c, s).addr_(s + self.count * c, c)

    def plain(self) -> Tensor:
        """[n, n] float64: sum of ``x' x``."""
        return self._about(torch.zeros_like(self.centre))

    def centred(self) -> Tensor:
        """[n, n] float64: sum of ``(x - mean)' (x - mean)``, what is left when a bias absorbs the mean."""
        s = self.total_about_centre
        return self.about_centre.to(s, copy=True).addr_(s, s, alpha=-1 / max(1, self.count))


class RegressionMoments:
    """All that a least-squares fit of r [T, d] on x [T, n] with intercept needs.

    Attributes:
        x: second moment of x.
    """

    def __init__(self, n: int, d: int, device: torch.device) -> None:
        self._sums = _TokenSums(n, d, device)
        self.x = SecondMoment(n, device, self._sums)

    def add(self, x: Tensor, r: Tensor) -> None:
        """Add tokens x [T, n] with targets r [T, d]."""
        self._sums.add(x, r)

    def share_centre(self, ranks: Ranks) -> None:
        """As in `SecondMoment`."""
        self._sums.share_centre(ranks)

    def add_up(self, ranks: Ranks) -> None:
        """Make these the moments of the tokens of all ranks."""
        self._sums.add_up(ranks)

    @property
    def count(self) -> int:
        """Tokens."""
        return self._sums.count

    @property
    def target_total(self) -> Tensor:
        """[d] float64, sum of r."""
        centre, total = self._of_targets()
        return total + self.count * centre

    @property
    def target_square(self) -> Tensor:
        """0-d float64, sum of ||r||^2."""
        centre, total = self._of_targets()
        return self._sums.square + 2 * centre @ total + self.count * centre.square().sum()

    def _of_targets(self) -> tuple[Tensor, Tensor]:
        """About the centre, float64: centre of r [d], sum of r [d]."""
        self._sums.finish()
        n, total = self._sums.n, self._sums.total
        return self._sums.centre[n:].to(total.dtype), total[n:]

    def _cross(self) -> Tensor:
        """[n, d] float64: cross moment about the centre."""
        self._sums.finish()
        return self._sums.product[:, self._sums.n :].to(self._sums.total.dtype, copy=True)

    def centred_cross(self) -> Tensor:
        """[n, d] float64: sum of ``(x - mean)' (r - mean)``."""
        _, total = self._of_targets()
        return self._cross().addr_(self.x.total_about_centre, total, alpha=-1 / max(1, self.count))

    def plain_cross(self) -> Tensor:
        """[n, d] float64: sum of ``x' r``."""
        cross, (centre, total) = self._cross(), self._of_targets()
        c = self.x.centre.to(cross.dtype)
        return cross.addr_(c, total).addr_(self.x.total_about_centre + self.count * c, centre)

    def normal_equations(self, *, intercept: bool) -> tuple[Tensor, Tensor]:
        """Matrix [n, n] and right sides [n, d] of the fit, float64; centred when a bias takes the means."""
        return (self.x.centred(), self.centred_cross()) if intercept else (self.x.plain(), self.plain_cross())

    def intercept(self, weight: Tensor) -> Tensor:
        """[d] float64: the bias that goes with `weight` [d, n]."""
        tokens = max(1, self.count)
        return self.target_total / tokens - weight.to(self.target_total) @ (self.x.total / tokens)

    def error(self, weight: Tensor, bias: Tensor | None) -> float:
        """Relative root-mean-square error ``||x W' + b - r|| / ||r||`` over all tokens added."""
        sums, n = self._sums, self._sums.n
        centre, total = self._of_targets()
        dtype = total.dtype
        a, x_centre, square = self.x.about_centre.to(dtype), self.x.centre.to(dtype), sums.square
        # by blocks of outputs: little is computed beside the moment
        for j in range(0, weight.shape[0], _OUTPUTS):
            own = slice(j, j + _OUTPUTS)
            w, e, s = weight[own].to(total), centre[own], total[own]
            b = torch.zeros_like(e) if bias is None else bias[own].to(total)
            # with x = z + c and r = s + e: x W' + b - r = z W' - s + (c W' + b - e)
            rest = w @ x_centre + b - e
            cross = sums.product[:, n:][:, own].to(dtype)
            square = square + (w.T * (a @ w.T - 2 * cross)).sum() + self.count * rest.square().sum()
            square = square + 2 * rest @ (w @ self.x.total_about_centre - s)
        relative = square.clamp(min=0) / self.target_square.clamp(min=torch.finfo(dtype).tiny)
        return float(relative.sqrt())
