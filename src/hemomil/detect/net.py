"""The networks: torchvision's Mask R-CNN on a small backbone, or on the paper's ResNet-50.

Both have 256 pyramid channels, so the RoI maps of either are 256 x 14 x 14.
"""

from collections.abc import Sequence

import torch
from torch import nn
from torchvision.models import resnet18
from torchvision.models.detection import MaskRCNN, MaskRCNN_ResNet50_FPN_Weights, maskrcnn_resnet50_fpn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import MultiScaleRoIAlign

from hemomil.detect.settings import Backbone
from hemomil.errors import ModelError
from hemomil.products import Layer

CHANNELS = 256
"""Channels of every pyramid level, and of a RoI map."""
MAP_SIZE = 14
"""Side of a RoI map."""
CELLS_PER_TILE = 500
STRIDE = 32
"""Coarsest stride of the pyramid: sides of a batch are multiples of it."""


def build(backbone: Backbone, n_classes: int, seed: int) -> MaskRCNN:
    """An untrained network for `n_classes` kinds of cell (background not counted)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _multiplying(_small(n_classes) if backbone == "small" else _resnet50(n_classes))


def build_coco(n_classes: int, seed: int) -> MaskRCNN:
    """The paper's network with torchvision's COCO weights; box and mask predictors are new, for cells.

    Raises ModelError if the weights are neither in torch's cache nor to be had from the network.
    """
    coco = MaskRCNN_ResNet50_FPN_Weights.COCO_V1
    try:
        net: MaskRCNN = maskrcnn_resnet50_fpn(weights=coco, _skip_resize=True, **_limits())
    except OSError as error:  # URLError is one
        raise ModelError(
            f"the COCO weights could not be fetched from {coco.url}: {error}",
            hint=f"put that file into {torch.hub.get_dir()}/checkpoints, or use the small backbone",
        ) from error
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        n_features = net.roi_heads.box_predictor.cls_score.in_features
        net.roi_heads.box_predictor = FastRCNNPredictor(n_features, n_classes + 1)
        net.roi_heads.mask_predictor = MaskRCNNPredictor(CHANNELS, CHANNELS, n_classes + 1)
    return _multiplying(net)


def roi_align(names: Sequence[str], size: int, samples: int = 2) -> MultiScaleRoIAlign:
    """RoIAlign over these levels of the pyramid, `samples` x `samples` points a bin."""
    return MultiScaleRoIAlign(featmap_names=list(names), output_size=size, sampling_ratio=samples)


def _multiplying(net: MaskRCNN) -> MaskRCNN:
    """The same with the first layer of its box head, up to a fifth of a small field's time, by `products`."""
    head = net.roi_heads.box_head
    head.fc6 = Layer.standing_for(head.fc6)
    return net


def _small(n_classes: int) -> MaskRCNN:
    """ResNet-18 cut after layer3, strides 4, 8, 16 (and 32, pooled, for proposals only)."""
    body = resnet18(weights=None)
    del body.layer4
    backbone = BackboneWithFPN(
        body,
        return_layers={"layer1": "0", "layer2": "1", "layer3": "2"},
        in_channels_list=[64, 128, 256],
        out_channels=CHANNELS,
    )
    levels = ("0", "1", "2")
    # a cell of nominal size is 10 pixels of the finest level across: one point a bin loses nothing, and
    # RoIAlign with its gradient was a third of a training step
    return MaskRCNN(
        backbone,
        rpn_anchor_generator=AnchorGenerator(
            sizes=((16, 24), (32, 46), (64, 90), (128, 180)), aspect_ratios=((0.5, 1.0, 2.0),) * 4
        ),
        box_roi_pool=roi_align(levels, 7, samples=1),
        box_head=TwoMLPHead(CHANNELS * 49, 256),
        box_predictor=FastRCNNPredictor(256, n_classes + 1),
        mask_roi_pool=roi_align(levels, MAP_SIZE, samples=1),
        mask_head=MaskRCNNHeads(CHANNELS, (128, 128), 1),
        mask_predictor=MaskRCNNPredictor(128, 128, n_classes + 1),
        _skip_resize=True,
        **_limits(),
    )


def _resnet50(n_classes: int) -> MaskRCNN:
    """torchvision's `maskrcnn_resnet50_fpn`, batch norm trainable since nothing is pretrained."""
    net: MaskRCNN = maskrcnn_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=n_classes + 1, _skip_resize=True, **_limits()
    )
    return net


def _limits() -> dict[str, int]:
    """Fewer samples an image in training than the defaults, which are for whole photographs, not for crops;
    more proposals and detections: a smear is dense.
    """
    return {
        "rpn_batch_size_per_image": 96,
        "box_batch_size_per_image": 64,
        "box_detections_per_img": CELLS_PER_TILE,
        "rpn_pre_nms_top_n_train": 600,
        "rpn_post_nms_top_n_train": 300,
        "rpn_pre_nms_top_n_test": 1000,
        "rpn_post_nms_top_n_test": 1000,
    }


def norms(net: nn.Module) -> list[nn.BatchNorm2d]:
    """The batch-norm layers whose statistics can be frozen."""
    return [layer for layer in net.modules() if isinstance(layer, nn.BatchNorm2d)]
