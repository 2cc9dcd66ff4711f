"""Where: red cells found by Mask R-CNN, and their RoI feature maps."""
