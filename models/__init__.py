"""The table of networks, as plain strings, so that listing them imports nothing; `models.build` builds a network.

Read `build` first, then `masking` (how a plain network becomes a masked one) and `layers` (how scores become masks).
The networks in `networks/` know nothing of masks.
"""

MODELS = {
    "FC": "models.networks.conv:FC",
    "Conv2": "models.networks.conv:conv2",
    "Conv4": "models.networks.conv:conv4",
    "Conv6": "models.networks.conv:conv6",
    "Conv8": "models.networks.conv:conv8",
    # In the published code `width_mult` scales only these two; here `width` scales every network.
    "Conv4Wide": "models.networks.conv:conv4",
    "Conv6Wide": "models.networks.conv:conv6",
    "resnet20": "models.networks.resnet_cifar:resnet20",
    "resnet32": "models.networks.resnet_cifar:resnet32",
    "resnet32_double": "models.networks.resnet_cifar:resnet32_double",
    "cResNet18": "models.networks.resnet:small_resnet18",
    "cResNet50": "models.networks.resnet:small_resnet50",
    "ResNet18": "models.networks.resnet:resnet18",
    "ResNet50": "models.networks.resnet:resnet50",
    "ResNet101": "models.networks.resnet:resnet101",
    "WideResNet50_2": "models.networks.resnet:wide_resnet50_2",
    "WideResNet101_2": "models.networks.resnet:wide_resnet101_2",
    "WideResNet28": "models.networks.wideresnet:WideResNet28",
    "vgg16": "models.networks.vgg:VGG16",
    "MobileNetV2": "models.networks.mobilenet:MobileNetV2",
    # For the 64×64 images of Tiny ImageNet; these networks end in average pooling over the image, so any size fits.
    "TinyResNet18": "models.networks.resnet:resnet18",
    "tinyvgg16": "models.networks.vgg:VGG16",
    "tinyMobileNetV2": "models.networks.mobilenet:MobileNetV2",
}
"""Name -> module:factory; the factory takes a `ModelSpec` and returns a network of ordinary PyTorch layers."""

WITHOUT_MASKS = "Normal"
"""Suffix of the published names of networks without masks: `resnet20Normal` is resnet20 for dense training."""

TORCHVISION = "torchvision/"
"""Prefix of the name of a torchvision classifier."""
