"""Find the red cells of an image, and look them up in the network's feature pyramid.

Every image is seen in tiles, at the scale where its cells have the diameter that the network was trained for
(`nominal`).
Axes: N cells, H W pixels. Boxes are x0 y0 x1 y1 in pixels of the image, half-open.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float16, Int64, UInt8
from torch import Tensor
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import batched_nms

from hemomil.detect import stored
from hemomil.detect.examples import CLASSES, RED, Mask
from hemomil.detect.kinds import in_doubt_red
from hemomil.detect.masks import cut_masks
from hemomil.detect.net import CHANNELS, MAP_SIZE, STRIDE, build, build_coco, roi_align
from hemomil.detect.rounding import searching_in_bfloat16, uses_bfloat16
from hemomil.detect.scale import BLUE, ENOUGH, GREEN, SURE, guess_diameter, resize
from hemomil.detect.settings import Backbone, DetectSettings
from hemomil.detect.tiles import Tiles, in_core, lay_tiles, not_inside_a_better, owners
from hemomil.memory import give_back_memory
from hemomil.types import Detections

FIRST_LOOK = 640
"""Longer side, in pixels, at which an image is looked at whose cell size cannot be guessed."""
SAMPLE = 512
"""Side, at the network's scale, of the middle that tells the size of the cells of an image in tiles."""
TOLERANCE = 1.25
"""A guess within this factor of the cells found is left as it is."""
MOST_ZOOM = 4.0
MOST_LOOKS = 4
"""Looks at a part of the image until the size of its cells is settled."""
CLOSER = 1.6
"""Factor by which the next look is closer where hardly any cell was found."""

Pyramid = dict[str, Tensor]
"""Feature maps of a batch of tiles, by level."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """Cells found, on the device; boxes in pixels of the image."""

    boxes: Float[Tensor, "N 4"]
    scores: Float[Tensor, "N"]
    labels: Tensor
    masks: Float[Tensor, "N M M"]
    maps: Float16[Tensor, "_ C S S"]
    """No rows if they were not asked for."""

    def rows(self, rows: Tensor) -> "_Found":
        return _Found(**{name: value[rows] if len(value) else value for name, value in self._items()})

    def _items(self) -> list[tuple[str, Tensor]]:
        return [(name, getattr(self, name)) for name in self.__slots__]


@dataclass(frozen=True, slots=True)
class _Look:
    """What came of a first guess at the size of cells."""

    diameter: float
    found: _Found | None
    """All cells, if the whole image was searched at this diameter."""
    enough: bool
    """Enough cells were found to tell their size."""


class Detector:
    """Mask R-CNN for red cells, with the scale it was trained at.

    Weights are rounded to half precision on entry, so what runs is exactly what is saved.
    """

    def __init__(
        self,
        net: MaskRCNN,
        *,
        backbone: Backbone,
        nominal: float,
        classes: tuple[str, ...] = CLASSES,
        settings: DetectSettings | None = None,
    ) -> None:
        self.backbone: Backbone = backbone
        self.nominal = nominal
        self.classes = classes
        self.settings = settings or DetectSettings()
        self.device = pick_device(self.settings.device)
        stored.round_to_half(net)
        self.net = net.to(self.device, memory_format=torch.channels_last).eval()
        self.net.requires_grad_(False)
        in_bfloat16 = uses_bfloat16(self.device, self.settings.bfloat16)
        self._searching = searching_in_bfloat16(self.net, self.device) if in_bfloat16 else self.net
        self.fingerprint = stored.fingerprint(net)
        """Names the weights; part of what a model remembers of its input."""

    @classmethod
    def untrained(
        cls,
        backbone: Backbone = "small",
        *,
        nominal: float = 40.0,
        seed: int = 0,
        settings: DetectSettings | None = None,
    ) -> "Detector":
        """Random weights: somewhere to start training, and a control."""
        return cls(build(backbone, len(CLASSES), seed), backbone=backbone, nominal=nominal, settings=settings)

    @classmethod
    def coco(
        cls, *, nominal: float = 96.0, seed: int = 0, settings: DetectSettings | None = None
    ) -> "Detector":
        """The paper's ResNet-50 with torchvision's COCO weights: RoI maps at once, cells after training."""
        return cls(build_coco(len(CLASSES), seed), backbone="resnet50", nominal=nominal, settings=settings)

    @classmethod
    def shipped(cls, backbone: Backbone = "small", *, settings: DetectSettings | None = None) -> "Detector":
        """The detector in the package. Raises ModelError where none is shipped for the backbone."""
        return cls.load(stored.shipped_path(backbone), settings=settings)

    @classmethod
    def load(cls, path: Path, *, settings: DetectSettings | None = None) -> "Detector":
        """A detector saved to a file or folder. Raises ModelError if it is not one."""
        about, tensors = stored.read(path)
        net = build(about.backbone, len(about.classes), seed=0)
        stored.fill(net, tensors, path)
        return cls(
            net, backbone=about.backbone, nominal=about.nominal, classes=about.classes, settings=settings
        )

    def with_settings(self, settings: DetectSettings) -> "Detector":
        """The same weights, applied otherwise."""
        return Detector(
            self.net, backbone=self.backbone, nominal=self.nominal, classes=self.classes, settings=settings
        )

    def save(self, path: Path) -> None:
        """Write the weights in half precision: into the `.safetensors` file named, or a folder."""
        about = stored.About(backbone=self.backbone, nominal=self.nominal, classes=self.classes)
        stored.write(path, self.net, about)

    def detect(self, image: UInt8[np.ndarray, "H W 3"]) -> Detections:
        """The cells of an image of any size, by rising y0, then x0."""
        found = self._cut(*self._find(image, with_maps=False))
        give_back_memory()
        return found

    def detect_with_roi(
        self, image: UInt8[np.ndarray, "H W 3"]
    ) -> tuple[Detections, Float16[np.ndarray, "N 256 14 14"]]:
        """The cells, and their RoI maps: from the same forward pass, unless that was in bfloat16."""
        exact = self._searching is self.net
        diameter, found = self._find(image, with_maps=exact)
        cells = self._cut(diameter, found)
        maps = found.maps.cpu().numpy() if exact else self.roi_maps(image, cells.boxes, diameter=diameter)
        return cells, maps

    def diameter(self, image: UInt8[np.ndarray, "H W 3"]) -> float:
        """Typical diameter of the cells, in pixels: the setting, or estimated from the whole image."""
        return self._look(image, with_maps=False)[0]

    def roi_maps(
        self,
        image: UInt8[np.ndarray, "H W 3"],
        boxes: Float[np.ndarray, "N 4"],
        *,
        diameter: float | None = None,
    ) -> Float16[np.ndarray, "N 256 14 14"]:
        """RoIAlign of the feature pyramid at these boxes: one map a box, whatever the other boxes are.

        The image is seen at the scale of its own cells (`Detector.diameter`), not of the boxes given; a cell
        larger than its neighbours is larger to the network too, though RoIAlign then samples every box alike.
        Where the only box is the whole image (`kind=cell`), that box gets the nominal diameter and its size
        is lost; give `diameter`, the same for all, to keep it. For boxes that were detected, `diameter` as
        the detections have it saves a search and changes nothing.
        """
        if len(boxes) == 0:
            return np.zeros((0, CHANNELS, MAP_SIZE, MAP_SIZE), dtype=np.float16)
        with self._running():
            size = diameter or self._diameter_for(image, boxes)
            return self._roi_maps(image, boxes, size).cpu().numpy()

    def masks_at(
        self,
        image: UInt8[np.ndarray, "H W 3"],
        boxes: Float[np.ndarray, "N 4"],
        labels: Int64[np.ndarray, "N"] | None = None,
    ) -> tuple[Mask, ...]:
        """Masks of what lies in these boxes, each cut to its box rounded outwards as in `Detections`.

        `labels` says what each is (from 1, in the order of `classes`; red cells if not given). The image is
        seen at the scale of the boxes.
        """
        if len(boxes) == 0:
            return ()
        kinds = torch.full((len(boxes),), RED) if labels is None else torch.from_numpy(labels)
        sides = np.sqrt((boxes[:, 2:] - boxes[:, :2]).prod(axis=1))
        red = sides[kinds.numpy() == RED]
        size = self.settings.diameter or float(np.median(red if len(red) else sides))
        heads = self.net.roi_heads

        def read(pyramid: Pyramid, local: list[Tensor], sizes: list[tuple[int, int]]) -> Tensor:
            logits = heads.mask_predictor(heads.mask_head(heads.mask_roi_pool(pyramid, local, sizes)))
            return torch.as_tensor(logits.sigmoid())

        with self._running():
            parts = self._at(image, boxes, size, read)
            probabilities = torch.cat([values for _, values in parts])
            order = torch.argsort(torch.cat([rows for rows, _ in parts])).cpu()
            chosen = probabilities.cpu()[order, kinds.clamp(max=len(self.classes))]
        return cut_masks(chosen, boxes)

    @contextmanager
    def _running(self) -> Iterator[None]:
        threads = torch.get_num_threads()
        torch.set_num_threads(self.settings.threads or threads)
        try:
            with torch.inference_mode():
                yield
        finally:
            torch.set_num_threads(threads)

    def _find(self, image: UInt8[np.ndarray, "H W 3"], *, with_maps: bool) -> tuple[float, _Found]:
        """The diameter searched for, and what was found."""
        diameter, found = self._look(image, with_maps=with_maps)
        if found is None:
            with self._running():
                found = self._search(image, diameter, with_maps=with_maps)
        return diameter, found

    def _look(self, image: UInt8[np.ndarray, "H W 3"], *, with_maps: bool) -> tuple[float, _Found | None]:
        """The diameter to search with; and what was found on the way, if the whole image was searched."""
        if self.settings.diameter is not None:
            return self.settings.diameter, None
        looks = (self._approach(image, *guess, with_maps=with_maps) for guess in self._guesses(image))
        first = next(looks)
        best = next((look for look in chain([first], looks) if look.enough), first)
        return best.diameter, best.found

    def _approach(
        self, image: UInt8[np.ndarray, "H W 3"], first: float, seen: bool, *, with_maps: bool
    ) -> _Look:
        """Looks from a first guess on until the cells found have the size searched for.

        `seen`: the guess rests on something seen.
        """
        guess = first
        for _ in range(MOST_LOOKS):
            part, found = self._sample(image, guess, with_maps=with_maps)
            whole = found if part.shape == image.shape else None
            boxes = found.boxes[found.scores >= SURE]
            enough = len(boxes) >= ENOUGH
            if enough:
                better = corrected(guess, boxes)
            elif seen and guess / CLOSER >= self.nominal / MOST_ZOOM:
                better = guess / CLOSER  # a crowd is taken for large cells
            else:
                return _Look(first, whole if guess == first else None, enough=False)
            if better == guess:
                return _Look(guess, whole, enough=True)
            guess = better
        return _Look(guess if enough else first, None, enough=enough)

    def _sample(
        self, image: UInt8[np.ndarray, "H W 3"], diameter: float, *, with_maps: bool
    ) -> tuple[UInt8[np.ndarray, "_ _ 3"], _Found]:
        """The image if it is one tile, else its middle; and the cells found there."""
        to_image = diameter / self.nominal
        fits = max(image.shape[:2]) <= self.settings.tile * to_image
        middle = image if fits else _middle(image, round(SAMPLE * to_image))
        with self._running():
            return middle, self._search(middle, diameter, with_maps=with_maps)

    def _guesses(self, image: UInt8[np.ndarray, "H W 3"]) -> Iterator[tuple[float, bool]]:
        """Diameters to begin with, best first, and whether anything was seen that they rest on."""
        seen: list[float] = []
        for channel in (GREEN, BLUE):
            guess = guess_diameter(image, channel)
            if guess is not None and guess not in seen:  # the channels of a grey image are one
                seen.append(guess)
                yield max(guess, self.nominal / MOST_ZOOM), True
        if not seen:
            yield self.nominal * max(1.0, max(image.shape[:2]) / FIRST_LOOK), False

    def _diameter_for(self, image: UInt8[np.ndarray, "H W 3"], boxes: Float[np.ndarray, "N 4"]) -> float:
        height, width = image.shape[:2]
        if len(boxes) == 1 and np.array_equal(boxes[0], [0, 0, width, height]):
            return float(max(height, width))
        return self.diameter(image)

    def _search(self, image: UInt8[np.ndarray, "H W 3"], diameter: float, *, with_maps: bool) -> _Found:
        """All tiles of the image at the scale where `diameter` is nominal, merged."""
        scaled, zoom = self._scaled(image, diameter)
        tiles = self._lay(scaled)
        parts = []
        for rows in torch.split(torch.arange(len(tiles.corners)), self.settings.batch):
            parts += self._search_tiles(scaled, tiles, rows, with_maps=with_maps)
        found = _Found(
            **{name: torch.cat([getattr(part, name) for part in parts]) for name in _Found.__slots__}
        )
        return self._merged(found, zoom, image.shape)

    def _merged(self, found: _Found, zoom: Float[Tensor, "4"], shape: tuple[int, ...]) -> _Found:
        """One box a cell, in pixels of the image, in reading order."""
        kept = batched_nms(found.boxes, found.scores, found.labels, self.settings.nms_iou)
        found = found.rows(kept[: self.settings.max_cells])
        limit = torch.tensor([shape[1], shape[0], shape[1], shape[0]], device=self.device)
        boxes = torch.minimum(found.boxes / zoom, limit)
        in_order = np.lexsort(boxes[:, :2].cpu().numpy().T)
        moved = _Found(**{**dict(found._items()), "boxes": boxes})
        return moved.rows(torch.from_numpy(in_order).to(self.device))

    def _search_tiles(self, scaled: Tensor, tiles: Tiles, rows: Tensor, *, with_maps: bool) -> list[_Found]:
        images = self._batch(scaled, tiles, rows)
        pyramid = self._searching.backbone(images.tensors)
        proposals, _ = self._searching.rpn(images, pyramid)
        results, _ = self._searching.roi_heads(pyramid, proposals, images.image_sizes)
        align = roi_align(self._levels(), MAP_SIZE)
        parts = []
        for place, (row, found) in enumerate(zip(rows.tolist(), results, strict=True)):
            result = in_doubt_red(found, self.nominal)
            kept = self._kept(result, tiles, row)
            level_maps = {name: level[place : place + 1] for name, level in pyramid.items()}
            boxes = result["boxes"][kept]
            maps = align(level_maps, [boxes[: len(boxes) if with_maps else 0]], images.image_sizes[:1])
            shift = tiles.corners[row].repeat(2).to(self.device)
            parts.append(
                _Found(
                    boxes=boxes + shift,
                    scores=result["scores"][kept],
                    labels=result["labels"][kept],
                    masks=result["masks"][kept, 0],
                    maps=maps.half(),
                )
            )
        return parts

    def _kept(self, result: dict[str, Tensor], tiles: Tiles, row: int) -> Tensor:
        """Rows of a tile's result that are red cells of its core, good enough, no part of something better.

        A lobe of a nucleus inside a white cell goes with the white cell.
        """
        shift = tiles.corners[row].repeat(2).to(self.device)
        core = tiles.cores[row].to(self.device)
        # the slack covers boxes that two tiles place a little differently; the doubles fall to suppression
        kept = in_core(result["boxes"] + shift, core, self.nominal / 4)
        kept &= result["scores"] >= self.settings.score_threshold
        rows = torch.nonzero(kept)[:, 0]
        better = not_inside_a_better(result["boxes"][rows], result["scores"][rows], self.settings.nms_iom)
        return rows[better & (result["labels"][rows] == RED)]

    def _roi_maps(
        self, image: UInt8[np.ndarray, "H W 3"], boxes: Float[np.ndarray, "N 4"], diameter: float
    ) -> Float16[Tensor, "N 256 14 14"]:
        maps = torch.zeros(len(boxes), CHANNELS, MAP_SIZE, MAP_SIZE, dtype=torch.float16, device=self.device)
        for rows, values in self._at(image, boxes, diameter, roi_align(self._levels(), MAP_SIZE)):
            maps[rows] = values.half()
        return maps

    def _at(
        self,
        image: UInt8[np.ndarray, "H W 3"],
        boxes: Float[np.ndarray, "N 4"],
        diameter: float,
        read: Callable[[Pyramid, list[Tensor], list[tuple[int, int]]], Tensor],
    ) -> list[tuple[Int64[Tensor, "B"], Tensor]]:
        """What `read` makes of the pyramid at the boxes of each batch of tiles, and the rows of the boxes."""
        scaled, zoom = self._scaled(image, diameter)
        tiles = self._lay(scaled)
        scaled_boxes = torch.from_numpy(boxes.astype(np.float32)).to(self.device) * zoom
        owner = owners(scaled_boxes.cpu(), tiles).to(self.device)
        parts = []
        # batches are the same whatever the boxes: a map must not change in its last bit with its company
        for rows in torch.split(torch.arange(len(tiles.corners)), self.settings.batch):
            here = [torch.nonzero(owner == tile)[:, 0] for tile in rows.tolist()]
            if not any(len(cells) for cells in here):
                continue
            images = self._batch(scaled, tiles, rows)
            pyramid = self.net.backbone(images.tensors)
            shifts = tiles.corners[rows].repeat(1, 2).to(self.device)
            local = [scaled_boxes[cells] - shift for cells, shift in zip(here, shifts, strict=True)]
            parts.append((torch.cat(here), read(pyramid, local, images.image_sizes)))
        return parts

    def _scaled(
        self, image: UInt8[np.ndarray, "H W 3"], diameter: float
    ) -> tuple[Tensor, Float[Tensor, "4"]]:
        """The image at the network's scale, uint8 3 H' W', and the factor that takes its boxes there."""
        scale = self.nominal / diameter
        scaled = resize(image, scale, scale)
        zoom = [scaled.shape[2] / image.shape[1], scaled.shape[1] / image.shape[0]]
        return scaled, torch.tensor(zoom * 2, device=self.device)

    def _lay(self, scaled: Tensor) -> Tiles:
        return lay_tiles(scaled.shape[1], scaled.shape[2], self.settings.tile, self.settings.overlap)

    def _levels(self) -> list[str]:
        return list(self.net.roi_heads.mask_roi_pool.featmap_names)

    def _batch(self, scaled: Tensor, tiles: Tiles, rows: Tensor) -> ImageList:
        """Tiles as the network wants them: normalised, sides padded to multiples of the coarsest stride."""
        cut = [scaled[:, y : y + tiles.height, x : x + tiles.width] for x, y in tiles.corners[rows].tolist()]
        pixels = torch.stack(cut).to(self.device).float() / 255
        normal = [self.net.transform.normalize(tile) for tile in pixels]
        padded = self.net.transform.batch_images(normal, size_divisible=STRIDE)
        padded = padded.contiguous(memory_format=torch.channels_last)
        return ImageList(padded, [(tiles.height, tiles.width)] * len(cut))

    def _cut(self, diameter: float, found: _Found) -> Detections:
        boxes = found.boxes.cpu().numpy()
        return Detections(
            boxes=boxes,
            scores=found.scores.cpu().numpy(),
            masks=cut_masks(found.masks.cpu(), boxes),
            diameter=diameter,
        )


def pick_device(name: str) -> torch.device:
    """The device of this name; `auto` is CUDA if there is one, else the CPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def _middle(image: UInt8[np.ndarray, "H W 3"], side: int) -> UInt8[np.ndarray, "_ _ 3"]:
    """The middle of the image, at most `side` pixels wide and high."""
    height, width = image.shape[:2]
    top, left = max(0, (height - side) // 2), max(0, (width - side) // 2)
    return image[top : top + side, left : left + side]


def corrected(guess: float, boxes: Float[Tensor, "N 4"]) -> float:
    """The median size of the cells found, if they are enough and the guess was far from it."""
    if len(boxes) < ENOUGH:
        return guess
    sides = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1).sqrt()
    found = float(sides.median())
    return guess if 1 / TOLERANCE < found / guess < TOLERANCE else max(found, 1.0)
