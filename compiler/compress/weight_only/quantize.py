"""Weights of a language model in few bits, each in its own format, as accurate as a limit of bytes allows.

    1  segment by segment: what every matrix reads on calibration data (H), its rounding error in every format,
       and the matrix itself in the first format, its rounding compensated (GPTQ)
    2  trials: the divergence of the model's answers when the weights of one role and depth are in the first format.
       Divergence / Σ tr(ΔW·H·ΔWᵀ) is the price of an error there
    3  the format of each weight: the least expected divergence in the bytes (choose.py)
    4  segment by segment again: every matrix in its format

Sums of one segment are in memory at a time, and what is finished lies in a folder, so that a run that was killed goes
on behind the last finished segment, and comes to the same bytes.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from compiler.compress.quant.apply import at_opset
from compiler.compress.quant.compensate import Factor, factor_of, round_again, round_in_turn
from compiler.compress.threads import in_parallel, one_blas_thread
from compiler.compress.weight_only.apply import OPSET, Stored, apply_weights
from compiler.compress.weight_only.choose import Option
from compiler.compress.weight_only.divergence import Trials
from compiler.compress.weight_only.fit import BlockScales, fit_blocks, rounding_loss, some_rows
from compiler.compress.weight_only.layers import WeightKind, WeightLayer, find_layers
from compiler.compress.weight_only.segments import Segment, Stream, cut_segments, sum_squares
from compiler.errors import DataError, UnsupportedModel
from compiler.model.numerics import Array, Arrays
from compiler.passes.instrument import measure as measure_model
from compiler.passes.values import constant_of
from compiler.store.atomic import write_atomic
from compiler.target.scheme import BlockFormat, WeightChoices

Floats = NDArray[np.float32]

SEGMENT_BYTES = 48 << 20
"""Float weights of one segment; its sums take about as much again."""

LARGE_BYTES = 32 << 20
"""Weights of more bytes are fitted one after another: each takes six times as much meanwhile."""

TOGETHER = 1 << 22
"""Weights of one matrix whose roundings are compensated together: each takes eight floats meanwhile."""

KEPT_BYTES = 1 << 30
"""Most bytes of what products read that are kept from the first walk for the second; of more, it is summed again."""

TRIAL_BATCHES = 4
"""Batches that trials are run on: with 256 tokens each, the divergence of a group is known to some percent."""

DEPTHS = 3
"""Parts of the depth whose weights have a price of their own: first layers of a decoder are others than the last."""

SWEEPS = {4: 2, 6: 2}
"""Bits → times that weights are rounded anew behind the first, where they are delivered; 8 bits err next to nothing."""

_QUICK = (1.0, 0.85)
"""Ranges tried where only the error of a format is asked for."""

_SOME = 4
"""One output of so many is enough to tell the errors of two formats from each other."""


@dataclass(frozen=True)
class WeightOptions:
    """How weights are put in few bits.

    Args:
        compensate: Whether roundings compensate each other (GPTQ).
        batches: Batches of calibration data that are used.
    """

    compensate: bool = True
    batches: int = 24


Tell = Callable[[str], None]


def measure_weights(
    model: ir.Model,
    batches: Iterable[Arrays],
    choices: WeightChoices,
    options: WeightOptions,
    *,
    logits: str,
    folder: Path,
    result: Path,
    reads: Path,
    tell: Tell,
) -> None:
    """Measures what each format of each weight costs (steps 1 and 2), and writes that to a file.

    Args:
        model: In float32, types and shapes inferred, every node named; left as it is.
        batches: Inputs of the model.
        choices: Formats that the target reads.
        options: How.
        logits: The output whose divergence is to be small.
        folder: Where finished segments are kept; empty, or of the same work.
        result: The file.
        reads: A folder that gets what products read, so that `fit_weights` need not sum it again.
        tell: Is told what happens.

    Raises:
        UnsupportedModel: Nothing can be quantized, or weights are not finite.
        DataError: There are no calibration data.
    """
    work = _begin(model, batches, options, folder, tell, reads)
    with one_blas_thread():
        curves = work.measure(choices, logits)
    weights = [
        {
            "name": layer.name,
            "node": layer.node,
            "op": layer.op,
            "elements": layer.elements if layer.reads else 0,
            "options": [[astuple(option.format), option.bytes, option.kl] for option in curves[layer.name]],
        }
        for layer in work.layers
    ]
    write_atomic(result, json.dumps({"other_bytes": work.other_bytes, "weights": weights}).encode())


def fit_weights(
    model: ir.Model,
    batches: Iterable[Arrays],
    formats: Mapping[str, BlockFormat],
    options: WeightOptions,
    *,
    folder: Path,
    reads: Path,
    tell: Tell,
) -> ir.Model:
    """The model with its weights in formats that were chosen (step 4); they stay in the folder until they are read.

    Args:
        model: The one that was measured.
        batches: The same.
        formats: Weight → its format.
        options: The same.
        folder: Where finished segments are kept; empty, or of the same work.
        reads: The folder that `measure_weights` was given.
        tell: Is told what happens.
    """
    work = _begin(model, batches, options, folder, tell, reads)
    with one_blas_thread():
        work.fit_all(formats)
    layers = {layer.name: layer for layer in work.layers}
    return apply_weights(work.model, layers, formats, lambda name: work.fitted(layers[name]))


def _begin(
    model: ir.Model,
    batches: Iterable[Arrays],
    options: WeightOptions,
    folder: Path,
    tell: Tell,
    reads: Path,
) -> _Work:
    folder.mkdir(parents=True, exist_ok=True)
    held = [dict(batch) for batch in islice(batches, options.batches)]
    if not held:
        raise DataError("weights are fitted on calibration data, and there are none", where="calibration")
    raised = at_opset(model, OPSET)
    layers = find_layers(raised)
    if not layers:
        raise UnsupportedModel("the model has no matrix in float32 that weights in blocks could stand for")
    _refuse_not_finite(raised, layers)
    return _Work(raised, layers, held, options, folder, tell, reads)


def _refuse_not_finite(model: ir.Model, layers: Sequence[WeightLayer]) -> None:
    problems = []
    for layer in layers:
        weight = constant_of(model.graph.initializers[layer.name])
        if weight is not None and not np.isfinite(weight).all():
            problems.append(f"{layer.name} ({int((~np.isfinite(weight)).sum())})")
    if problems:
        raise UnsupportedModel(f"weights are NaN or infinite: {', '.join(problems)}")


@dataclass(frozen=True)
class _Read:
    """What a product reads on calibration data.

    Args:
        gram: H, the mean of x·xᵀ (inputs, inputs).
        factor: Of H; absent where roundings do not compensate each other.
    """

    gram: Floats
    factor: Factor | None

    @property
    def squares(self) -> Floats:
        """Mean square of each input (inputs,)."""
        return np.diagonal(self.gram).copy()


@dataclass(frozen=True)
class _Work:
    """All that one quantization works on."""

    model: ir.Model
    layers: tuple[WeightLayer, ...]
    batches: list[dict[str, Array]]
    options: WeightOptions
    folder: Path
    tell: Tell
    reads: Path

    @property
    def products(self) -> tuple[WeightLayer, ...]:
        return tuple(layer for layer in self.layers if layer.kind == WeightKind.PRODUCT)

    @property
    def tables(self) -> tuple[WeightLayer, ...]:
        return tuple(layer for layer in self.layers if layer.kind == WeightKind.TABLE)

    @property
    def other_bytes(self) -> int:
        """Of weights that stay as they are."""
        return measure_model(self.model).bytes - sum(4 * layer.elements for layer in self.layers)

    def weight(self, layer: WeightLayer) -> Floats:
        """The matrix (outputs, inputs)."""
        array = constant_of(self.model.graph.initializers[layer.name])
        assert array is not None  # noqa: S101  layers are made of constants
        floats = array.astype(np.float32, copy=False)
        return np.ascontiguousarray(floats.T) if layer.is_turned else floats

    def measure(self, choices: WeightChoices, logits: str) -> dict[str, list[Option]]:
        """What each format of each weight costs."""
        first = choices.products[0]
        losses = self._losses(choices.products)
        groups = list(self._groups())
        trials = self._trials(logits, groups)
        curves = {layer.name: self._table_curve(layer, choices.tables, trials) for layer in self.tables}
        for number, group in enumerate(groups):
            what = f"{group[0].role} ×{len(group)} in {first}"
            values = partial(self._all_first_values, group)
            kl = self._trial(f"group-{number:04d}", what, values, trials)
            total = sum(losses[layer.name][str(first)] for layer in group)
            price = kl / total if total > 0 else 0.0
            for layer in group:
                row = losses[layer.name]
                curves[layer.name] = [
                    _option(layer, format_, price * row[str(format_)]) for format_ in choices.products
                ]
        return curves

    def _trials(self, logits: str, groups: Sequence[Sequence[WeightLayer]]) -> Trials:
        """Trials that begin with the segment of a group's first weight."""
        first = {group[0].name for group in groups}
        segments = cut_segments(self.model, self.layers, most_bytes=SEGMENT_BYTES)
        starts = {segment.nodes[0] for segment in segments if first & {layer.name for layer in segment.layers}}
        names = [layer.name for layer in self.layers]
        return Trials(self.model, logits, self.batches[:TRIAL_BATCHES], weights=names, starts=starts)

    def fit_all(self, formats: Mapping[str, BlockFormat]) -> None:
        """Puts every weight in its format, into the folder."""
        for layer in self.tables:
            if not self._is_fitted(layer, formats):
                self._keep("final", layer, *self._fit_table(layer, formats[layer.name]))

        def fit(layer: WeightLayer, read: _Read) -> None:
            format_ = formats[layer.name]
            self._keep("final", layer, *self._fitted(layer, format_, read, sweeps=SWEEPS.get(format_.bits, 0)))

        for segment, sums in self._segments(lambda x: all(self._is_fitted(layer, formats) for layer in x.products)):
            self._for_each_product(segment, sums, fit)
            self.tell(f"weights of segment {segment.number} are in their formats")

    def fitted(self, layer: WeightLayer) -> Stored:
        """A weight in its format, from the folder."""
        return self._kept("final", layer)

    def _groups(self) -> Iterator[list[WeightLayer]]:
        """Products of one role and depth."""
        by_role: dict[str, list[WeightLayer]] = defaultdict(list)
        for layer in self.products:
            by_role[layer.role].append(layer)
        for alike in by_role.values():
            size = math.ceil(len(alike) / DEPTHS)
            yield from (alike[start : start + size] for start in range(0, len(alike), size))

    def _segments(self, is_done: Callable[[Segment], bool]) -> Iterator[tuple[Segment, dict[str, Floats]]]:
        """Every segment with the mean squares of what its products read; those behind the last unfinished are left."""
        segments = cut_segments(self.model, self.layers, most_bytes=SEGMENT_BYTES)
        todo = [segment for segment in segments if segment.products and not is_done(segment)]
        if not todo:
            return
        if all(place.exists() for segment in todo for place in self._places(segment).values()):
            yield from ((segment, self._kept_reads(segment)) for segment in todo)
            return
        stream = Stream(self.model, segments, [dict(batch) for batch in self.batches])
        for segment in segments[: todo[-1].number + 1]:
            tapped = segment.reads if segment in todo else ()
            sums = sum_squares(stream.run(segment, tapped), tapped)
            if segment in todo:
                self._keep_reads(segment, sums)
                yield segment, sums

    def _places(self, segment: Segment) -> dict[str, Path]:
        """What the products of a segment read → its file; whether it is there or not."""
        known = sorted({layer.reads for layer in self.products})
        return {name: self.reads / f"{known.index(name):04d}.npy" for name in segment.reads}

    def _keep_reads(self, segment: Segment, sums: Mapping[str, Floats]) -> None:
        """Keeps what products read, where there is room for that of all of them."""
        if sum({layer.reads: 4 * layer.inputs**2 for layer in self.products}.values()) > KEPT_BYTES:
            return
        self.reads.mkdir(exist_ok=True)
        for name, place in self._places(segment).items():
            write_atomic(place, partial(np.save, arr=sums[name]))

    def _kept_reads(self, segment: Segment) -> dict[str, Floats]:
        return {name: np.load(place) for name, place in self._places(segment).items()}

    def _losses(self, formats: Sequence[BlockFormat]) -> dict[str, dict[str, float]]:
        """Weight → format → tr(ΔW·H·ΔWᵀ); in the first format measured, in others by the ratio of plain rounding."""

        def measure(layer: WeightLayer, read: _Read) -> None:
            self._keep_losses(layer, self._measure(layer, formats, read))

        for segment, sums in self._segments(lambda segment: all(self._has_losses(x) for x in segment.layers)):
            self._for_each_product(segment, sums, measure)
            self.tell(f"errors of segment {segment.number} are known")
        return {layer.name: self._read_losses(layer) for layer in self.products}

    def _for_each_product(
        self, segment: Segment, sums: Mapping[str, Floats], work: Callable[[WeightLayer, _Read], None]
    ) -> None:
        """Calls `work` for the products of a segment, several at a time; they share what they read."""
        names = segment.reads if self.options.compensate else ()
        most = 1 if 4 * max(layer.elements for layer in segment.products) > LARGE_BYTES else None
        factors = dict(zip(names, in_parallel(lambda name: factor_of(sums[name][None]), names, most=most), strict=True))

        def of_layer(layer: WeightLayer) -> None:
            work(layer, _Read(sums[layer.reads], factors.get(layer.reads)))

        in_parallel(of_layer, segment.products, most=most)

    def _measure(self, layer: WeightLayer, formats: Sequence[BlockFormat], read: _Read) -> dict[str, float]:
        first = formats[0]
        weight, squares = self.weight(layer), read.squares
        integers, scales = self._fitted(layer, first, read, sweeps=0)  # errors of all formats fall alike by them
        self._keep("first", layer, integers, scales)
        error = weight - scales.values(integers)
        measured = float(np.einsum("ij,ij->", error @ read.gram, error))
        some = weight[::_SOME]
        plain = {
            str(format_): rounding_loss(some, squares, fit_blocks(some, squares, format_, shrinks=_QUICK))
            for format_ in formats
        }
        base = max(plain[str(first)], 1e-30)
        return {name: measured * loss / base for name, loss in plain.items()}

    def _fitted(self, layer: WeightLayer, format_: BlockFormat, read: _Read, *, sweeps: int) -> Stored:
        """A product's weights in a format: scales by weighted error, roundings that compensate each other."""
        weight = self.weight(layer)
        scales = fit_blocks(weight, read.squares, format_)
        if read.factor is None:
            return scales.integers(weight), scales
        return compensated(weight, scales, read.factor, read.gram, sweeps=sweeps), scales

    def _trial(self, name: str, what: str, values: Callable[[], Mapping[str, Floats]], trials: Trials) -> float:
        """The divergence of a trial, measured once however often the work is begun."""
        place = self.folder / f"trial-{name}.json"
        if not place.exists():
            kl = trials.measure(values())
            write_atomic(place, json.dumps(kl).encode())
            self.tell(f"{what}: {kl:.4f} nats a token")
        return float(json.loads(place.read_bytes()))

    def _all_first_values(self, group: Sequence[WeightLayer]) -> dict[str, Floats]:
        return {layer.name: self._first_values(layer) for layer in group}

    def _first_values(self, layer: WeightLayer) -> Floats:
        integers, scales = self._kept("first", layer)
        values = scales.values(integers)
        return np.ascontiguousarray(values.T) if layer.is_turned else values

    def _table_curve(self, layer: WeightLayer, formats: Sequence[BlockFormat], trials: Trials) -> list[Option]:
        options = []
        for number, format_ in enumerate(formats):
            values = partial(self._table_values, layer, format_)
            name = f"{self._place('table', layer).stem}-{number}"
            options.append(_option(layer, format_, self._trial(name, f"{layer.name} in {format_}", values, trials)))
        return options

    def _table_values(self, layer: WeightLayer, format_: BlockFormat) -> dict[str, Floats]:
        integers, scales = self._fit_table(layer, format_)
        return {layer.name: scales.values(integers)}

    def _fit_table(self, layer: WeightLayer, format_: BlockFormat) -> Stored:
        """A table's vectors: every one is looked up by itself, so that all its elements count alike."""
        weight = self.weight(layer)
        scales = fit_blocks(weight, np.ones(layer.inputs, np.float32), format_)
        return scales.integers(weight), scales

    def _place(self, kind: str, layer: WeightLayer) -> Path:
        number = next(index for index, other in enumerate(self.layers) if other.name == layer.name)
        return self.folder / f"{kind}-{number:04d}.npz"

    def _keep(self, kind: str, layer: WeightLayer, integers: NDArray[np.uint8], scales: BlockScales) -> None:
        format_ = scales.format
        facts = np.array([format_.bits, format_.block, format_.symmetric, format_.scale_bits], np.int64)
        arrays: dict[str, Any] = {"integers": integers, "scale": scales.scale, "zero": scales.zero, "format": facts}
        write_atomic(self._place(kind, layer), lambda file: np.savez(file, **arrays))

    def _kept(self, kind: str, layer: WeightLayer) -> Stored:
        with np.load(self._place(kind, layer), allow_pickle=False) as file:
            bits, block, symmetric, scale_bits = (int(number) for number in file["format"])
            format_ = BlockFormat(bits, block, bool(symmetric), scale_bits)
            return file["integers"], BlockScales(format_, file["scale"], file["zero"], layer.inputs)

    def _is_fitted(self, layer: WeightLayer, formats: Mapping[str, BlockFormat]) -> bool:
        return self._place("final", layer).exists() and self.fitted(layer)[1].format == formats[layer.name]

    def _has_losses(self, layer: WeightLayer) -> bool:
        return layer.kind == WeightKind.TABLE or self._place("losses", layer).exists()

    def _keep_losses(self, layer: WeightLayer, losses: Mapping[str, float]) -> None:
        arrays: dict[str, Any] = {"names": np.array(list(losses)), "values": np.array(list(losses.values()))}
        write_atomic(self._place("losses", layer), lambda file: np.savez(file, **arrays))

    def _read_losses(self, layer: WeightLayer) -> dict[str, float]:
        with np.load(self._place("losses", layer), allow_pickle=False) as file:
            return dict(zip(file["names"].tolist(), file["values"].tolist(), strict=True))


def _option(layer: WeightLayer, format_: BlockFormat, kl: float) -> Option:
    return Option(format_, format_.bytes_of(layer.outputs, layer.inputs), kl)


def compensated(weight: Floats, scales: BlockScales, factor: Factor, gram: Floats, *, sweeps: int) -> NDArray[np.uint8]:
    """The integers of the least tr(ΔW·H·ΔWᵀ), rounded one input after another, then anew.

    Args:
        weight: (outputs, inputs).
        scales: Its lattice.
        factor: Of H (1, inputs, inputs).
        gram: H (inputs, inputs).
        sweeps: Times that they are rounded anew.
    """
    integers = np.empty(weight.shape, np.uint8)
    for rows in some_rows(weight.shape, TOGETHER):
        integers[rows] = _compensated(weight[rows], scales.of_rows(rows), factor, gram, sweeps)
    return integers


def _compensated(weight: Floats, scales: BlockScales, factor: Factor, gram: Floats, sweeps: int) -> NDArray[np.uint8]:
    order = factor.order[0]
    by_input = [scales.spread(array)[:, order].T for array in (scales.scale, scales.zero)]
    scale, zero = (np.ascontiguousarray(array)[None] for array in by_input)
    integers = np.empty((weight.shape[1], weight.shape[0]), np.uint8)

    def on_lattice(row: Floats, place: slice) -> Floats:
        moved = np.clip(np.rint(row / scale[:, place]) + zero[:, place], 0, scales.top)
        integers[order[place]] = moved[0].astype(np.uint8)
        values: Floats = (moved - zero[:, place]) * scale[:, place]
        return values

    wanted = np.ascontiguousarray(weight[:, order].T)
    rounded = round_in_turn(wanted[None], factor.lower, on_lattice)[0]
    for _ in range(sweeps):
        round_again(wanted, rounded, gram, order, lambda row, place: on_lattice(row[None], place)[0])
    return integers.T
